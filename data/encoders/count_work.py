"""Counts the work of every known network, and writes ``work.csv`` beside this file.

Counted on the ``meta`` device: shapes only, no weights, no arithmetic. Published networks are built
from the papers (ResNet with the stride in the 3x3 convolution: arXiv
1512.03385; MobileNetV3-Large: 1905.02244, and its light head LR-ASPP; fully convolutional heads:
1411.4038; DeepLabV3: 1706.05587). They equal torchvision in shape, have no trained weights and are
only ever counted.

``python data/encoders/count_work.py`` rewrites the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

from mllm_sched.pipeline.encoders import ENCODERS, build_encoder, encoder_spec
from mllm_sched.pipeline.work import WORK_TABLE, Work

DLA_LOADABLES = 16
"""Segments that one DLA core holds at a time (TensorRT's limit)."""

# Operators a DLA core takes, from TensorRT's list of layers. LayerNorm, softmax, attention,
# GELU (through erf), embeddings, resizing and copies are not among them.
_DLA = {
    *("conv1d", "conv2d", "batch_norm", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"),
    *("add", "add_", "mul", "mul_", "relu", "relu_", "sigmoid", "tanh", "linear"),
}
_DLA_POOLING_WINDOW = 8  # pixels a side, at most

_ALLOCATIONS = {"empty", "empty_like", "empty_strided"}


@dataclass(frozen=True)
class Operator:
    """One operator that was launched."""

    name: str
    flops: int
    bytes: int
    parameters: int
    dla: bool


class Recorder(TorchDispatchMode):
    """Records in order every operator that moves data.

    Under ``torch.inference_mode`` an operator arrives here whole (``linear``, attention), as a
    GPU launches it, and not in the parts it could be made of.

    Parameters
    ----------
    parameters
        Tensors that are constant; a linear layer needs a constant weight to run on the DLA.
    """

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._constants = {_memory(tensor) for tensor in parameters}
        self._unread = set(self._constants)  # a parameter counts where it is read first

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        if name in _ALLOCATIONS or _is_view(func, inputs, outputs):
            return output
        read_first = [tensor for tensor in inputs if _memory(tensor) in self._unread]
        self._unread -= {_memory(tensor) for tensor in read_first}
        operator = Operator(
            name=name,
            flops=_flops(name, func, args, kwargs, output),
            bytes=sum(tensor.numel() * tensor.element_size() for tensor in inputs + outputs),
            parameters=sum(tensor.numel() for tensor in read_first),
            dla=self._fits_dla(name, args),
        )
        self.operators.append(operator)
        return output

    def _fits_dla(self, name: str, args: Any) -> bool:
        if name == "linear":
            return _memory(args[1]) in self._constants
        if name == "adaptive_avg_pool2d":
            sizes = zip(args[0].shape[-2:], args[1], strict=True)
            return all(size / out <= _DLA_POOLING_WINDOW for size, out in sizes)
        return name in _DLA


def count_work(model: torch.nn.Module, inputs: Tensor) -> Work:
    """Work of one pass.

    Parameters
    ----------
    model
        On the ``meta`` device, or any other; it is really run there.
    inputs
        What its ``forward`` takes, on the same device.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     work = count_work(torch.nn.Linear(10, 20), torch.empty(1, 10))
    >>> work.flops, work.parameters, work.kernels, work.dla_segments
    (400, 220, 1, 1)
    """
    with torch.inference_mode(), Recorder(model.parameters()) as recorder:
        model(inputs)
    placed = _dla_segments(recorder.operators)
    on_dla = [operator for segment in placed for operator in segment]
    everything, part = _total(recorder.operators), _total(on_dla)
    return Work(
        *everything,
        **{f"dla_{name}": part[i] for i, name in enumerate(_SUMS)},
        dla_segments=len(placed),
    )


def _dla_segments(operators: list[Operator]) -> list[list[Operator]]:
    """Runs of operators the DLA takes, those with most FLOPs, as many as a core holds."""
    runs = [list(run) for fits, run in groupby(operators, lambda operator: operator.dla) if fits]
    runs.sort(key=lambda run: -sum(operator.flops for operator in run))
    return runs[:DLA_LOADABLES]


_SUMS = ("flops", "bytes", "kernels", "parameters")


def _total(operators: list[Operator]) -> tuple[int, int, int, int]:
    """The sums named in ``_SUMS``."""
    return (
        sum(operator.flops for operator in operators),
        sum(operator.bytes for operator in operators),
        len(operators),
        sum(operator.parameters for operator in operators),
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_view(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether nothing was moved: the output is the memory of an input, and was not written."""
    if func._schema.is_mutable:
        return False
    known = {_memory(tensor) for tensor in inputs}
    return all(_memory(tensor) in known for tensor in outputs)


def _linear_flops(inputs: Tensor, weight: Tensor, output: Tensor) -> int:
    return 2 * output.numel() * inputs.shape[-1]


def _conv_flops(inputs: Tensor, weight: Tensor, output: Tensor) -> int:
    return conv_flop_count(list(inputs.shape), list(weight.shape), list(output.shape))


# Whole operators; torch's registry knows the parts they could be made of.
_FLOPS: dict[str, Callable[[Tensor, Tensor, Tensor], int]] = {
    "linear": _linear_flops,
    "matmul": _linear_flops,
    "conv1d": _conv_flops,
    "conv2d": _conv_flops,
    "conv3d": _conv_flops,
}


def _flops(name: str, func: Any, args: Any, kwargs: dict[str, Any], output: Any) -> int:
    if name == "scaled_dot_product_attention":
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if name in _FLOPS:
        return int(_FLOPS[name](args[0], args[1], output))
    if func.overloadpacket in flop_registry:
        return int(flop_registry[func.overloadpacket](*args, **kwargs, out_val=output))
    return 0


Activation = Callable[[], nn.Module]
DEPTHS = {34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

# MobileNetV3-Large (Table 1): kernel, expanded, output, squeeze and excite, activation, stride.
MobileBlock = tuple[int, int, int, bool, Activation, int]
MOBILE_BLOCKS: tuple[MobileBlock, ...] = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    activation: Activation | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation; padded so that stride 1 keeps the size."""
    padding = dilation * (kernel - 1) // 2
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Residual(nn.Module):
    """A body beside a shortcut, added up."""

    def __init__(
        self, body: nn.Module, shortcut: nn.Module | None = None, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        self.body, self.activation = body, activation()
        self.shortcut = shortcut or nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Body plus shortcut, activated."""
        output: Tensor = self.activation(self.body(inputs).add_(self.shortcut(inputs)))
        return output


class SqueezeExcite(nn.Module):
    """Weighs the channels by what the whole picture holds of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        squeezed = (quarter + 4) // 8 * 8  # the nearest multiple of 8 ...
        squeezed += 8 if squeezed < 0.9 * quarter else 0  # ... that is not much below
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Every channel times its weight."""
        output: Tensor = self.gate(inputs) * inputs
        return output


def _residual(inputs: int, width: int, depth: int, stride: int, dilation: int) -> Residual:
    outputs = width if depth == 34 else 4 * width
    if depth == 34:
        body = [conv(inputs, width, 3, stride), conv(width, width, 3, activation=None)]
    else:
        body = [
            conv(inputs, width),
            conv(width, width, 3, stride, dilation),
            conv(width, outputs, activation=None),
        ]
    same = stride == 1 and inputs == outputs
    shortcut = None if same else conv(inputs, outputs, stride=stride, activation=None)
    return Residual(nn.Sequential(*body), shortcut)


def resnet_stages(depth: int, dilated: bool = False) -> nn.ModuleList:
    """The stem and four stages; dilated, the last two keep their resolution."""
    stem = nn.Sequential(conv(3, 64, 7, stride=2), nn.MaxPool2d(3, 2, padding=1))
    stages, channels, dilation = [stem], 64, 1
    for stage, blocks in enumerate(DEPTHS[depth]):
        width, layers = 64 * 2**stage, []
        widen = dilated and stage >= 2
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 and not widen else 1
            layers.append(_residual(channels, width, depth, stride, dilation))
            channels = width if depth == 34 else 4 * width
            if block == 0 and widen:  # the first block still sees the old spacing
                dilation *= 2
        stages.append(nn.Sequential(*layers))
    return nn.ModuleList(stages)


def resnet(depth: int, classes: int = 1000) -> nn.Sequential:
    """The classifier; without classes, the backbone alone."""
    stages = resnet_stages(depth)
    width = 512 if depth == 34 else 2048
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)] if classes else []
    return nn.Sequential(*stages, *head)


def _mobile_block(inputs: int, block: MobileBlock, dilation: int) -> nn.Module:
    kernel, expanded, outputs, excite, activation, stride = block
    layers: list[nn.Module] = (
        [] if expanded == inputs else [conv(inputs, expanded, activation=activation)]
    )
    moved = 1 if dilation > 1 else stride  # dilated, a block keeps its resolution
    layers.append(conv(expanded, expanded, kernel, moved, dilation, expanded, activation))
    layers += [SqueezeExcite(expanded)] if excite else []
    body = nn.Sequential(*layers, conv(expanded, outputs, activation=None))
    return Residual(body, activation=nn.Identity) if stride == 1 and inputs == outputs else body


def mobile_stages() -> nn.ModuleList:
    """MobileNetV3-Large without its classifier, the last three blocks dilated."""
    stages: list[nn.Module] = [conv(3, 16, 3, stride=2, activation=nn.Hardswish)]
    channels = 16
    for number, block in enumerate(MOBILE_BLOCKS):
        stages.append(_mobile_block(channels, block, dilation=2 if number >= 12 else 1))
        channels = block[2]
    return nn.ModuleList([*stages, conv(channels, 6 * channels, activation=nn.Hardswish)])


CLASSES = 21  # Pascal VOC with background


def _fcn_head(inputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, inputs // 4, 3), nn.Conv2d(inputs // 4, CLASSES, 1))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: the same map seen at several scales (DeepLabV3)."""

    def __init__(self, inputs: int, width: int = 256) -> None:
        super().__init__()
        dilated = [conv(inputs, width, 3, dilation=rate) for rate in (12, 24, 36)]
        self.scales = nn.ModuleList([conv(inputs, width), *dilated])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(inputs, width))
        self.project = conv((len(self.scales) + 1) * width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        """All scales joined; the mean of the picture is one of them."""
        whole = _resize(self.whole(inputs), inputs)
        scales = [scale(inputs) for scale in self.scales]
        output: Tensor = self.project(torch.cat([*scales, whole], dim=1))
        return output


def _deeplab_head(inputs: int) -> nn.Sequential:
    return nn.Sequential(Pyramid(inputs), conv(256, 256, 3), nn.Conv2d(256, CLASSES, 1))


class LiteHead(nn.Module):
    """LR-ASPP: the last map, gated by its mean, added to an early one."""

    def __init__(self, low: int, high: int, width: int = 128) -> None:
        super().__init__()
        self.project = conv(high, width)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, width, 1, bias=False), nn.Sigmoid()
        )
        self.low, self.high = nn.Conv2d(low, CLASSES, 1), nn.Conv2d(width, CLASSES, 1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        """Class scores at the resolution of the early map."""
        gated = self.project(high) * self.gate(high)
        output: Tensor = self.low(low) + self.high(_resize(gated, low))
        return output


class Segmenter(nn.Module):
    """A class for every pixel, from the last map; the auxiliary head sees an earlier one."""

    def __init__(
        self, stages: nn.ModuleList, early: int, head: nn.Module, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stages, self.early, self.head, self.auxiliary = (stages, early, head, auxiliary)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Class scores at the input's resolution, the auxiliary ones second."""
        maps = [inputs]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        last, early = maps[-1], maps[self.early + 1]
        if self.auxiliary is None:
            return [_resize(self.head(last, early), inputs)]
        return [_resize(self.head(last), inputs), _resize(self.auxiliary(early), inputs)]


def _resize(image: Tensor, like: Tensor) -> Tensor:
    return interpolate(image, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _on_resnet(depth: int, head: Callable[[int], nn.Module]) -> Segmenter:
    return Segmenter(resnet_stages(depth, dilated=True), 3, head(2048), _fcn_head(1024))


@dataclass(frozen=True)
class Reference:
    """How a network is built, and the input it was measured with (batch first)."""

    build: Callable[[], nn.Module]
    input_shape: tuple[int, ...]


SWEEP_INPUT = (1, 3, 384, 512)

REFERENCES: Mapping[str, Reference] = MappingProxyType(
    {
        "fcn_resnet50": Reference(lambda: _on_resnet(50, _fcn_head), SWEEP_INPUT),
        "fcn_resnet101": Reference(lambda: _on_resnet(101, _fcn_head), SWEEP_INPUT),
        "deeplabv3_resnet50": Reference(lambda: _on_resnet(50, _deeplab_head), SWEEP_INPUT),
        "deeplabv3_resnet101": Reference(lambda: _on_resnet(101, _deeplab_head), SWEEP_INPUT),
        "deeplabv3_mobilenet_v3_large": Reference(
            lambda: Segmenter(mobile_stages(), 4, _deeplab_head(960), _fcn_head(40)), SWEEP_INPUT
        ),
        "lraspp_mobilenet_v3_large": Reference(
            lambda: Segmenter(mobile_stages(), 4, LiteHead(low=40, high=960)), SWEEP_INPUT
        ),
        "resnet34_1280x768": Reference(lambda: resnet(34, classes=0), (1, 3, 768, 1280)),
        "resnet50_224": Reference(lambda: resnet(50), (1, 3, 224, 224)),
    }
)


def build_reference(name: str) -> nn.Module:
    """The network in eval mode, on the current default device.

    Examples
    --------
    >>> with torch.device("meta"):
    ...     sum(weight.numel() for weight in build_reference("resnet50_224").parameters())
    25557032
    """
    if name not in REFERENCES:
        raise ValueError(f"network {name!r}: expected one of {', '.join(REFERENCES)}")
    return REFERENCES[name].build().eval()


def encoder_work(name: str, batch: int = 1) -> Work:
    """Work of a registered encoder at full size; no weights are made."""
    with torch.device("meta"):
        model = build_encoder(name).to("meta")
        return count_work(model, torch.empty(batch, *encoder_spec(name).input_shape))


def reference_work(name: str) -> Work:
    """Work of a network of the published measurements, at the input it was measured with."""
    with torch.device("meta"):
        return count_work(build_reference(name), torch.empty(REFERENCES[name].input_shape))


def count_table() -> pd.DataFrame:
    """Work of the full-size encoders and the reference networks; columns as in ``work.csv``."""
    rows = [
        _row(name, "encoder", spec.modality, (1, *spec.input_shape), encoder_work(name))
        for name, spec in ENCODERS.items()
        if not name.startswith("tiny-")
    ]
    rows += [
        _row(name, "reference", "image", network.input_shape, reference_work(name))
        for name, network in REFERENCES.items()
    ]
    return pd.DataFrame(rows)


def write_work_table(path: Path = WORK_TABLE) -> Path:
    """Count everything and write the table; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count_table().to_csv(path, index=False)
    return path


def _row(
    name: str, kind: str, modality: str, shape: tuple[int, ...], work: Work
) -> dict[str, object]:
    size = "x".join(str(side) for side in shape)
    return {
        "encoder": name,
        "kind": kind,
        "modality": modality,
        "input_shape": size,
        **asdict(work),
    }


if __name__ == "__main__":
    print(write_work_table().read_text())
