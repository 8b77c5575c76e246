"""Models and their halves by name: small models, or checkpoints of which one half is read."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mllm_sched.pipeline.architectures import architecture_of
from mllm_sched.pipeline.encoders import CHECKPOINT
from mllm_sched.pipeline.options import DTYPES
from mllm_sched.pipeline.small_models import build, small_config, small_model
from mllm_sched.pipeline.split import EncoderHalf, LanguageHalf, split
from mllm_sched.process_setup import uncollected


@uncollected()
def load_model(name: str, seed: int = 0, dtype: str = "float32") -> Any:
    """A whole model: a small one by name, or a checkpoint (``hf:`` and a folder or hub id)."""
    if not name.startswith(CHECKPOINT):
        return small_model(name, seed).to(_dtype(dtype))
    model_class, _ = _checkpoint(name)
    return model_class.from_pretrained(name.removeprefix(CHECKPOINT), dtype=_dtype(dtype)).eval()


def load_encoders(
    name: str, modalities: Sequence[str] = (), seed: int = 0, dtype: str = "float32"
) -> EncoderHalf:
    """The edge's half alone; the LLM of a checkpoint is never held in memory.

    A small model, by ``name`` and ``seed``, is built whole and halved; a checkpoint is ``hf:`` and
    a folder or hub id. ``modalities`` are the encoders to hold, all by default. The weights are in
    ``float32``, ``bfloat16`` or ``float16``.
    """
    return _load_halves(name, seed, dtype, "language")[0].only(modalities)


def load_language(name: str, seed: int = 0, dtype: str = "float32") -> LanguageHalf:
    """The server's half alone; as ``load_encoders``, with the encoders left out."""
    return _load_halves(name, seed, dtype, "encoders")[1]


@uncollected()
def bare_encoders(name: str, modalities: Sequence[str] = (), seed: int = 0) -> EncoderHalf:
    """The edge's half without weights: it prepares items and knows shapes, and encodes nothing."""
    small = not name.startswith(CHECKPOINT)
    model_class, config = (build, small_config(name)) if small else _checkpoint(name)
    with torch.device("meta"):
        model = model_class(config)
    return _split(model.eval(), name, seed)[0].only(modalities)


def _load_halves(
    name: str, seed: int, dtype: str, unwanted: str
) -> tuple[EncoderHalf, LanguageHalf]:
    if name.startswith(CHECKPOINT):
        return _split(_load_part(name, _dtype(dtype), unwanted), name, seed)
    return _split(load_model(name, seed, dtype), name, seed)


def _split(model: Any, name: str, seed: int) -> tuple[EncoderHalf, LanguageHalf]:
    if not name.startswith(CHECKPOINT):
        return split(model, small_identity(name, seed))
    source = name.removeprefix(CHECKPOINT)
    return split(model, checkpoint_identity(source), source)


@uncollected()
def _load_part(name: str, dtype: torch.dtype, unwanted: str) -> Any:
    """A checkpoint of which the unwanted half stays on disk, without weights in memory."""
    from accelerate.hooks import remove_hook_from_submodules

    model_class, config = _checkpoint(name)
    architecture = architecture_of(config)
    left_out, kept = tuple(architecture.language), tuple[str, ...]()
    if unwanted == "encoders":
        left_out = tuple(architecture.encoders.values())
        kept = tuple(architecture.projectors.values())
    with torch.device("meta"):
        bare = model_class(config)
    modules = {
        path.rpartition(".")[0]
        for weights in (bare.named_parameters(), bare.named_buffers())
        for path, _ in weights
    }
    places = {
        module: "disk" if _within(module, left_out) and not _within(module, kept) else "cpu"
        for module in modules
    }
    with tempfile.TemporaryDirectory() as folder:
        model = model_class.from_pretrained(
            name.removeprefix(CHECKPOINT), dtype=dtype, device_map=places, offload_folder=folder
        )
    remove_hook_from_submodules(model)
    return model.eval()


def _within(module: str, paths: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{path}.") for path in paths)


def _checkpoint(name: str) -> tuple[Any, Any]:
    """Class and configuration of a checkpoint's model; UnsupportedError for one of another kind."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(name.removeprefix(CHECKPOINT))
    architecture_of(config)
    (model_class,) = config.architectures
    return getattr(transformers, model_class), config


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: expected one of {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def small_identity(name: str, seed: int) -> str:
    """Of a small model: digest of what its weights are drawn from."""
    drawn = f"{name} {seed} {torch.__version__} {small_config(name).to_json_string()}"
    return hashlib.sha256(drawn.encode()).hexdigest()


@lru_cache(maxsize=8)
def checkpoint_identity(source: str) -> str:
    """Of a folder or downloaded hub id: digest of its configuration and weight files."""
    from transformers.utils import cached_file

    config = Path(str(cached_file(source, "config.json")))
    digest = hashlib.sha256()
    files = [config, *sorted(config.parent.glob("*.safetensors"))]
    if len(files) == 1:
        raise ValueError(f"{source}: no *.safetensors beside its config.json")
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
