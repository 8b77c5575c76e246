import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mllm_sched import paths
from mllm_sched.pipeline import export
from mllm_sched.pipeline.encoders import ENCODERS, example_input
from mllm_sched.pipeline.export import INPUT, export_encoder, open_session
from mllm_sched.pipeline.models import build_encoder

TINY = [name for name in ENCODERS if name.startswith("tiny-")]


@pytest.fixture(scope="module")
def folder(cache):
    return cache


@pytest.fixture
def exported(monkeypatch):
    """Nothing is exported; what would have been is listed."""
    made = []

    def write(name, seed, path):
        made.append((name, seed))
        path.write_bytes(b"a network")

    monkeypatch.setattr(export, "_export", write)
    monkeypatch.setattr(export, "_quantise", lambda name, source, path: path.write_bytes(b"int8"))
    return made


def run(session, inputs):
    return session.run(None, {INPUT: inputs})[0]


@pytest.mark.parametrize("name", TINY)
def test_onnx_agrees_with_torch_at_any_batch_size(name, folder):
    session, model = open_session(name, folder=folder), build_encoder(name)
    for batch in (1, 3):
        inputs = example_input(name, batch, np.random.default_rng(batch))
        with torch.inference_mode():
            expected = model(torch.from_numpy(inputs)).numpy()
        assert np.abs(run(session, inputs) - expected).max() < 1e-4


@pytest.mark.parametrize("name", TINY)
def test_int8_is_close_to_fp32_but_not_equal(name, folder):
    inputs = example_input(name, 2, np.random.default_rng(0))
    exact, rough = (run(open_session(name, p, folder=folder), inputs) for p in ("fp32", "int8"))
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("name", "operator"), [("tiny-clip", "MatMulInteger"), ("tiny-resnet", "ConvInteger")]
)
def test_int8_quantises_what_the_network_is_made_of(name, operator, folder):
    graph = onnx.load(export_encoder(name, "int8", folder=folder)).graph
    assert operator in {node.op_type for node in graph.node}
    assert not {"Conv"} & {node.op_type for node in graph.node if name == "tiny-resnet"}


def test_an_export_is_made_once(folder):
    path = export_encoder("tiny-resnet", folder=folder)
    made = path.stat().st_mtime_ns
    assert export_encoder("tiny-resnet", folder=folder) == path
    assert path.stat().st_mtime_ns == made


def test_seeds_and_precisions_have_files_of_their_own(exported, tmp_path):
    files = {
        export_encoder("tiny-resnet", precision, seed, tmp_path)
        for precision in ("fp32", "int8")
        for seed in (0, 1)
    }
    assert len(files) == 4
    assert exported == [("tiny-resnet", 0), ("tiny-resnet", 1)]


def test_a_checkpoint_that_changed_is_exported_anew(exported, tmp_path):
    name = f"hf:{tmp_path / 'checkpoint'}"
    for seed in (0, 1):
        build_encoder("tiny-resnet", seed).model.save_pretrained(tmp_path / "checkpoint")
        for _ in range(2):
            export_encoder(name, folder=tmp_path / "cache")
    assert exported == 2 * [(name, 0)]


def test_the_default_folder_is_the_cache(monkeypatch, folder):
    monkeypatch.setattr(paths, "CACHE", folder)
    assert export_encoder("tiny-resnet").parent == folder


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def half(name, seed, path):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(export, "_export", half)
    with pytest.raises(OSError, match="disk full"):
        export_encoder("tiny-resnet", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_may_export_at_once(tmp_path):
    script = (
        "from pathlib import Path; from mllm_sched.pipeline.export import *; "
        f"print(export_encoder('tiny-resnet', folder=Path({str(tmp_path)!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    printed = {process.communicate(timeout=120)[0].strip().splitlines()[-1] for process in both}
    assert len(printed) == 1
    onnx.checker.check_model(printed.pop())
    assert len(list(tmp_path.iterdir())) == 1


def test_a_session_uses_the_threads_it_is_given_and_does_not_spin(folder):
    options = open_session("tiny-resnet", threads=2, folder=folder).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_fallback_to_another_provider_is_an_error(folder, monkeypatch):
    class Elsewhere:
        def __init__(self, *args, **kwargs):
            pass

        def get_providers(self):
            return ["SomewhereElse"]

    export_encoder("tiny-resnet", folder=folder)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Elsewhere)
    with pytest.raises(RuntimeError, match=r"asked for CPUExecutionProvider.*SomewhereElse"):
        open_session("tiny-resnet", folder=folder)


def test_bad_settings_are_named(folder):
    with pytest.raises(ValueError, match="precision='fp8': expected one of fp32, int8"):
        export_encoder("tiny-clip", "fp8", folder=folder)
    with pytest.raises(ValueError, match="threads=0: expected at least 1"):
        open_session("tiny-clip", threads=0, folder=folder)
    with pytest.raises(ValueError, match="encoder 'tiny-x'"):
        export_encoder("tiny-x", folder=folder)
