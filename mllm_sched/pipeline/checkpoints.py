"""Models and their halves by name: small ones, or checkpoints of which one half is read."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mllm_sched.garbage import uncollected
from mllm_sched.pipeline.architectures import architecture_of
from mllm_sched.pipeline.encoders import CHECKPOINT
from mllm_sched.pipeline.small_models import build, small_config, small_model
from mllm_sched.pipeline.split import EncoderHalf, LanguageHalf, split

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@uncollected()
def load_model(name: str, seed: int = 0, dtype: str = "float32") -> Any:
    """A whole model: a small one by name, or a checkpoint (``hf:`` and a folder or hub id)."""
    _check_dtype(dtype)
    if not name.startswith(CHECKPOINT):
        return small_model(name, seed).to(DTYPES[dtype])
    source = name.removeprefix(CHECKPOINT)
    return _model_class(source).from_pretrained(source, dtype=DTYPES[dtype]).eval()


def load_encoders(
    name: str, modalities: Sequence[str] = (), seed: int = 0, dtype: str = "float32"
) -> EncoderHalf:
    """The edge's half alone; the LLM of a checkpoint is never held in memory.

    A small model is built whole, and halved. Where ``dtype`` is not the checkpoint's own, weights
    of the other half pass through memory a few at a time.

    Parameters
    ----------
    name
        A small model, or ``hf:`` and a folder or hub id.
    modalities
        Encoders to hold; all by default.
    seed
        Of a small model's weights.
    dtype
        Of the weights in memory: ``float32``, ``bfloat16`` or ``float16``.
    """
    return _load_halves(name, seed, dtype, "language")[0].only(modalities)


@uncollected()
def bare_encoders(name: str, modalities: Sequence[str] = (), seed: int = 0) -> EncoderHalf:
    """The edge's half without weights: it prepares items and knows shapes, and encodes nothing.

    Parameters are those of ``load_encoders``. No weight is ever in memory.

    Examples
    --------
    >>> half = bare_encoders("small-llava")
    >>> next(half.model.parameters()).device
    device(type='meta')
    """
    if not name.startswith(CHECKPOINT):
        with torch.device("meta"):
            model = build(small_config(name)).eval()
        return split(model, small_identity(name, seed))[0].only(modalities)
    from transformers import AutoConfig

    source = name.removeprefix(CHECKPOINT)
    with torch.device("meta"):
        model = _model_class(source)(AutoConfig.from_pretrained(source)).eval()
    return split(model, checkpoint_identity(source), source)[0].only(modalities)


def load_language(name: str, seed: int = 0, dtype: str = "float32") -> LanguageHalf:
    """The server's half alone; as ``load_encoders``, with the encoders left out."""
    return _load_halves(name, seed, dtype, "encoders")[1]


def _load_halves(
    name: str, seed: int, dtype: str, unwanted: str
) -> tuple[EncoderHalf, LanguageHalf]:
    if not name.startswith(CHECKPOINT):
        return split(load_model(name, seed, dtype), small_identity(name, seed))
    source = name.removeprefix(CHECKPOINT)
    return split(_load_part(source, dtype, unwanted), checkpoint_identity(source), source)


@uncollected()
def _load_part(source: str, dtype: str, unwanted: str) -> Any:
    """A checkpoint of which the unwanted half stays on disk, without weights in memory."""
    from accelerate.hooks import remove_hook_from_submodules
    from transformers import AutoConfig

    _check_dtype(dtype)
    config = AutoConfig.from_pretrained(source)
    architecture, model_class = architecture_of(config), _model_class(source)
    if unwanted == "language":
        left_out, kept = tuple(architecture.language), tuple[str, ...]()
    else:
        left_out = tuple(architecture.encoders.values())
        kept = tuple(architecture.projectors.values())
    with torch.device("meta"):
        named = [*model_class(config).named_parameters(), *model_class(config).named_buffers()]
    places = {
        module: "disk" if _within(module, left_out) and not _within(module, kept) else "cpu"
        for module in {name.rpartition(".")[0] for name, _ in named}
    }
    with tempfile.TemporaryDirectory() as folder:
        model = model_class.from_pretrained(
            source, dtype=DTYPES[dtype], device_map=places, offload_folder=folder
        )
    remove_hook_from_submodules(model)
    return model.eval()


def _within(module: str, paths: Sequence[str]) -> bool:
    return any(f"{module}.".startswith(f"{path}.") for path in paths)


def _model_class(source: str) -> Any:
    """The class of a checkpoint's model, by the name its configuration gives."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    architecture_of(config)  # an unsupported one is told apart before anything is loaded
    (name,) = config.architectures
    return getattr(transformers, name)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")


def small_identity(name: str, seed: int) -> str:
    """Of weights drawn by a seed: what they are drawn from."""
    drawn = f"{name} {seed} {torch.__version__} {small_config(name).to_json_string()}"
    return hashlib.sha256(drawn.encode()).hexdigest()


@lru_cache(maxsize=8)
def checkpoint_identity(source: str) -> str:
    """Digest of a checkpoint's configuration and weight files: the same on both machines.

    Parameters
    ----------
    source
        A folder, or a hub id that was downloaded before.
    """
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
