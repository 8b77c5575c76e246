"""The networks of the published measurements, so that their work can be counted.

Built from the papers, and equal in shape to torchvision's: parameters and FLOPs are held to its
published numbers by a test. They have no trained weights and are only ever counted.

- Fully convolutional heads: arXiv 1411.4038.
- DeepLabV3: arXiv 1706.05587.
- LR-ASPP, the light head: arXiv 1905.02244.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mllm_sched.pipeline.backbones import conv, mobile_stages, resnet, resnet_stages

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
