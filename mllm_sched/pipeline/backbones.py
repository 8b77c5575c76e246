"""Backbones of the published measurements: ResNet and MobileNetV3-Large, in plain torch.

- ResNet: arXiv 1512.03385, with the stride in the 3x3 convolution ("v1.5").
- MobileNetV3-Large: arXiv 1905.02244.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

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
