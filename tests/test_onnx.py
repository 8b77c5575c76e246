import math
import os

import pytest

from mllm_sched.pipeline import onnx
from mllm_sched.pipeline.export import export_encoder
from mllm_sched.pipeline.onnx import (
    CPU,
    CUDA,
    TENSORRT,
    FallbackError,
    open_encoder,
    open_on,
    placed,
    providers_for,
    read_placement,
)

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


def test_every_component_has_its_provider_and_options():
    there = [TENSORRT, CUDA, CPU]
    assert providers_for("cpu", available=there) == [(CPU, {})]
    ((name, options),) = providers_for("dla1", "fp16", there)
    assert name == TENSORRT
    assert options["trt_dla_enable"] == "True" and options["trt_dla_core"] == "1"
    assert options["trt_fp16_enable"] == "True" and options["trt_int8_enable"] == "False"
    assert "trt_engine_cache_enable" not in options
    ((name, options),) = providers_for("gpu", "fp32", there)
    assert name == TENSORRT and "trt_dla_enable" not in options
    assert options["trt_fp16_enable"] == "False"
    assert providers_for("gpu", "fp32", available=[CUDA, CPU]) == [(CUDA, {})]


def test_cuda_alone_would_run_another_precision_in_silence():
    with pytest.raises(FallbackError, match="gpu in fp16 needs Tensorrt"):
        providers_for("gpu", "fp16", available=[CUDA, CPU])


@pytest.mark.parametrize("component", ["gpu", "dla0", "dla1"])
def test_a_missing_provider_is_an_error_and_never_the_cpu(component, model):
    with pytest.raises(
        FallbackError, match=rf"{component} in fp16 needs Tensorrt.*has .*CPUExecution"
    ):
        open_on(component, model)


def test_cuda_is_no_dla():
    with pytest.raises(FallbackError, match="dla0 in fp16 needs Tensorrt"):
        providers_for("dla0", available=[CUDA, CPU])


def test_unknown_components_and_precisions_are_refused():
    with pytest.raises(ValueError, match="component 'npu': expected one of cpu, gpu, dla0, dla1"):
        providers_for("npu")
    with pytest.raises(ValueError, match="a DLA takes fp16 or int8"):
        providers_for("dla0", "fp32", [TENSORRT])


def test_a_session_that_ends_up_elsewhere_is_an_error(model, monkeypatch):
    """ONNX Runtime itself only warns when a provider cannot be loaded."""
    monkeypatch.setattr(onnx, "providers_for", lambda *asked: [(TENSORRT, {})])
    with pytest.raises(FallbackError, match="asked for TensorrtExecutionProvider, got"):
        open_on("gpu", model)


def test_the_share_on_the_dla_is_what_was_not_taken_off_it():
    placement = read_placement(BUILT, TENSORRT, NAMES, dla=True)
    assert (placement.nodes, placement.on_dla, placement.regions) == (5, 3, 2)
    assert placement.dla_share == pytest.approx(3 / 5)


def test_nodes_left_to_other_providers_are_not_on_the_dla():
    told = BUILT + "\n Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2\n"
    assert read_placement(told, TENSORRT, NAMES, dla=True).on_dla == 1


def test_no_region_means_nothing_is_on_the_dla():
    assert read_placement(NOTHING_THERE, TENSORRT, NAMES, dla=True).dla_share == 0


def test_elsewhere_there_is_no_share():
    assert math.isnan(read_placement("", CUDA, NAMES).dla_share)


class LoggingSession:
    """Stands for TensorRT, which is not here: writes its log to standard error."""

    told = BUILT

    def __init__(self, path, options, providers):
        os.write(2, self.told.encode())

    def get_providers(self):
        return [TENSORRT, CPU]


def test_a_dla_without_layers_is_an_error(model, monkeypatch):
    monkeypatch.setattr(onnx.onnxruntime, "get_available_providers", lambda: [TENSORRT, CPU])
    monkeypatch.setattr(onnx.onnxruntime, "InferenceSession", LoggingSession)
    assert open_on("dla0", model)[1].dla_share > 0
    monkeypatch.setattr(LoggingSession, "told", NOTHING_THERE)
    with pytest.raises(FallbackError, match=r"dla0: TensorRT put none of \d+ layers on the DLA"):
        open_on("dla0", model)


def test_onnx_runtimes_own_placement_is_read_and_its_log_kept_off_the_terminal(model, capfd):
    with onnx._stderr_to_file() as log:
        session, _ = open_on("cpu", model)
        log.seek(0)
    assert session.get_inputs()[0].shape[0] == 1
    assert capfd.readouterr().err == ""
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n"


def test_placement_lines_are_read_from_a_real_log(model, capfd):
    """The line that ONNX Runtime really writes, of this version."""
    options = onnx.onnxruntime.SessionOptions()
    options.log_severity_level = 0
    onnx.onnxruntime.InferenceSession(str(model), options, providers=[CPU])
    counted = placed(capfd.readouterr().err)
    assert set(counted) == {CPU} and counted[CPU] > 5


def test_standard_error_comes_back_after_an_exception(capfd):
    def fail():
        with onnx._stderr_to_file():
            os.write(2, b"lost\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    os.write(2, b"back\n")
    assert capfd.readouterr().err == "back\n"


def test_an_encoder_opens_on_the_cpu_and_says_so(cache):
    call, facts = open_encoder("tiny-clip", "cpu", "fp32", 1, 2, 0, str(cache))
    assert facts == {"provider": CPU}
    assert call()[0].shape[0] == 2
    with pytest.raises(FallbackError):
        open_encoder("tiny-clip", "dla0", "fp16", 1, 1, 0, str(cache))
