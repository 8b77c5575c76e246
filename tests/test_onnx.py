import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mllm_sched.pipeline import onnx as module
from mllm_sched.pipeline.encoders import build_encoder, example_input
from mllm_sched.pipeline.onnx import (
    CPU,
    CUDA,
    INPUT,
    TENSORRT,
    FallbackError,
    dla_share,
    export_encoder,
    open_encoder,
    open_on,
    open_session,
    placed,
    providers_for,
)

EXPORTED = pytest.mark.parametrize(
    "name",
    [
        "tiny-clip",
        "tiny-resnet",
        pytest.param("tiny-whisper", marks=pytest.mark.slow),
        pytest.param("tiny-videomae", marks=pytest.mark.slow),
    ],
)


@pytest.fixture
def exported(monkeypatch):
    """Nothing is exported; what would have been is listed."""
    made = []

    def write(name, seed, path):
        made.append((name, seed))
        path.write_bytes(b"a network")

    monkeypatch.setattr(module, "_export", write)
    monkeypatch.setattr(module, "_quantise", lambda name, source, path: path.write_bytes(b"int8"))
    return made


def run(session, inputs):
    return session.run(None, {INPUT: inputs})[0]


@EXPORTED
def test_onnx_agrees_with_torch_at_any_batch_size(name, cache):
    session, model = open_session(name, folder=cache), build_encoder(name)
    for batch in (1, 3):
        inputs = example_input(name, batch, np.random.default_rng(batch))
        with torch.inference_mode():
            expected = model(torch.from_numpy(inputs)).numpy()
        assert np.abs(run(session, inputs) - expected).max() < 1e-4


@EXPORTED
def test_int8_is_close_to_fp32_but_not_equal(name, cache):
    inputs = example_input(name, 2, np.random.default_rng(0))
    exact, rough = (run(open_session(name, p, folder=cache), inputs) for p in ("fp32", "int8"))
    error = np.linalg.norm(rough - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.05
    kinds = {
        node.op_type for node in onnx.load(export_encoder(name, "int8", folder=cache)).graph.node
    }
    assert ("ConvInteger" if name == "tiny-resnet" else "MatMulInteger") in kinds


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


def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def half(name, seed, path):
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(module, "_export", half)
    with pytest.raises(OSError, match="disk full"):
        export_encoder("tiny-resnet", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_may_export_at_once(tmp_path, monkeypatch):
    begun = []

    def write(name, seed, path):
        begun.append(path)
        if len(begun) == 1:
            export_encoder(name, folder=tmp_path)  # another one, in the meantime
        path.write_bytes(b"a network")

    monkeypatch.setattr(module, "_export", write)
    assert export_encoder("tiny-resnet", folder=tmp_path) == next(tmp_path.iterdir())
    assert len(set(begun)) == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_session_uses_the_threads_it_is_given_and_does_not_spin(cache):
    options = open_session("tiny-resnet", threads=2, folder=cache).get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: export_encoder("tiny-clip", "fp8"), "precision='fp8': expected one of fp32, int8"),
        (lambda: providers_for("npu"), "component 'npu': expected one of cpu, gpu, dla0, dla1"),
        (lambda: providers_for("dla0", "fp32"), "a DLA takes fp16 or int8"),
    ],
)
def test_bad_settings_are_named(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


NAMES = ["/stem/Conv", "/stem/Relu", "/norm/LayerNormalization", "/head/MatMul", "/head/Softmax"]

# In the words of TensorRT 8 and 10, as users' logs show them.
OFF = "Unsupported on DLA. Switching this layer's device type to GPU."
BUILT = f"""
[I:onnxruntime] Node(s) placed on [TensorrtExecutionProvider]. Number of nodes: 1
[W] [TRT] Layer '/norm/LayerNormalization' (NORMALIZATION): {OFF}
[W] [TRT] Layer '(Unnamed Layer* 7) [Shuffle]' (SHUFFLE): {OFF}
[W] [TRT] DLA supports only 16 subgraphs per DLA core. Switching to GPU for layer /head/Softmax
[I] [TRT] ---------- Layers Running on DLA ----------
[I] [TRT] [DlaLayer] {{ForeignNode[/stem/Conv.../stem/Relu]}}
[I] [TRT] [DlaLayer] {{ForeignNode[/head/MatMul]}}
[I] [TRT] ---------- Layers Running on GPU ----------
[I] [TRT] [GpuLayer] NORMALIZATION: /norm/LayerNormalization
[I] [TRT] [GpuLayer] COPY: Reformatting CopyNode for Network Input inputs
"""
NOTHING_THERE = BUILT.replace("[DlaLayer]", "[GpuLayer]")


@pytest.fixture(scope="module")
def model(cache):
    return export_encoder("tiny-resnet", folder=cache)


@pytest.fixture
def available(monkeypatch):
    """Providers that ONNX Runtime claims to have; a test may change them."""
    names = [TENSORRT, CUDA, CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    return names


def test_every_component_has_its_provider_and_options(available):
    assert providers_for("cpu") == [(CPU, {})]
    ((name, options),) = providers_for("dla1", "fp16")
    assert name == TENSORRT
    assert options["trt_dla_enable"] == "True" and options["trt_dla_core"] == "1"
    assert options["trt_fp16_enable"] == "True" and options["trt_int8_enable"] == "False"
    assert "trt_engine_cache_enable" not in options
    ((name, options),) = providers_for("gpu", "fp32")
    assert name == TENSORRT and "trt_dla_enable" not in options
    assert options["trt_fp16_enable"] == "False"
    available.remove(TENSORRT)
    assert providers_for("gpu", "fp32") == [(CUDA, {})]
    with pytest.raises(FallbackError, match="gpu in fp16 needs Tensorrt"):
        providers_for("gpu", "fp16")  # CUDA would run another precision in silence


def test_a_session_that_ends_up_elsewhere_is_an_error(model, monkeypatch):
    """ONNX Runtime itself only warns when a provider cannot be loaded."""
    monkeypatch.setattr(module, "providers_for", lambda *asked: [(TENSORRT, {})])
    with pytest.raises(FallbackError, match="asked for TensorrtExecutionProvider, got"):
        open_on("gpu", model)


def test_the_share_on_the_dla_is_what_was_not_taken_off_it():
    assert dla_share(BUILT, NAMES) == pytest.approx(3 / 5)
    left = BUILT + "\n Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2\n"
    assert dla_share(left, NAMES) == pytest.approx(1 / 5)


class LoggingSession:
    """Stands for TensorRT, which is not here: writes its log to standard error."""

    told = BUILT

    def __init__(self, path, options, providers):
        os.write(2, self.told.encode())

    def get_providers(self):
        return [TENSORRT, CPU]


def test_a_dla_without_layers_is_an_error(model, available, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", LoggingSession)
    assert open_on("dla0", model)[1] > 0
    monkeypatch.setattr(LoggingSession, "told", NOTHING_THERE)
    with pytest.raises(FallbackError, match=r"dla0: TensorRT put none of \d+ layers on the DLA"):
        open_on("dla0", model)


def test_placement_lines_are_read_from_a_real_log(model, capfd):
    """The line that ONNX Runtime really writes, of this version."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 0
    onnxruntime.InferenceSession(str(model), options, providers=[CPU])
    counted = placed(capfd.readouterr().err)
    assert set(counted) == {CPU} and counted[CPU] > 5


def test_an_encoder_opens_on_the_cpu_and_says_so(cache):
    call, facts = open_encoder("tiny-clip", "cpu", "fp32", 1, 2, 0, str(cache))
    assert facts == {"provider": CPU}
    assert call()[0].shape[0] == 2
