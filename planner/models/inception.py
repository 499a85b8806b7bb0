"""Inception-v3, arXiv:1512.00567 with the widths of its released form, as a chain of blocks."""

import torch
from torch import nn

from planner.models.data import cross_entropy
from planner.models.images import convolution_chain, image_batch
from planner.models.sizes import InceptionSize

chain = convolution_chain
loss = cross_entropy
make_batch = image_batch
_STEM = ((32, 3, 2, 0), (32, 3, 1, 0), (64, 3, 1, 1), None, (80, 1, 1, 0), (192, 3, 1, 0), None)
"""Channels, kernel, stride and padding of each convolution, None for a pooling layer."""
_POOL_CHANNELS = (32, 64, 64)
_SEVEN_CHANNELS = (128, 160, 160, 192)
_NUM_LAST_BLOCKS = 2
_EPSILON = 1e-3

Kernel = int | tuple[int, int]


class Branches(nn.Module):
    """Several branches over one input, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, channels, height, width]`` to the same with the sum of all channels."""
        return torch.cat([branch(images) for branch in self.branches], dim=1)


class Builder:
    """Writes layers of published widths in the widths of a size."""

    def __init__(self, size: InceptionSize) -> None:
        self.size = size

    def convolution(
        self, inputs: int, outputs: int, kernel: Kernel, *, stride: int = 1, padding: Kernel = 0
    ) -> nn.Sequential:
        """Return a convolution with its norm and activation; ``inputs`` is a real width."""
        width = self.size.width(outputs)
        return nn.Sequential(
            nn.Conv2d(inputs, width, kernel, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(width, eps=_EPSILON),
            nn.ReLU(),
        )

    def branch(self, inputs: int, *layers: tuple[int, Kernel]) -> nn.Sequential:
        """Return convolutions (channels, kernel) that keep height and width."""
        built = nn.Sequential()
        for outputs, kernel in layers:
            height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
            padding = (height // 2, width // 2)
            built.append(self.convolution(inputs, outputs, kernel, padding=padding))
            inputs = self.size.width(outputs)
        return built

    def halving(self, inputs: int, *layers: tuple[int, Kernel]) -> nn.Sequential:
        """Return a branch whose last convolution has a stride of two and no padding."""
        *before, (outputs, kernel) = layers
        built = self.branch(inputs, *before)
        inputs = self.size.width(before[-1][0]) if before else inputs
        return built.append(self.convolution(inputs, outputs, kernel, stride=2))

    def pooled(self, inputs: int, outputs: int) -> nn.Sequential:
        """Return average pooling and a projection."""
        return nn.Sequential(
            nn.AvgPool2d(3, stride=1, padding=1), self.convolution(inputs, outputs, 1)
        )

    def stem(self) -> tuple[nn.Sequential, int]:
        """Return the layers before the blocks, and their width."""
        built, inputs = nn.Sequential(), 3
        for layer in _STEM:
            if layer is None:
                built.append(nn.MaxPool2d(3, stride=2))
                continue
            outputs, kernel, stride, padding = layer
            built.append(self.convolution(inputs, outputs, kernel, stride=stride, padding=padding))
            inputs = self.size.width(outputs)
        return built, inputs

    def width(self, *published: int) -> int:
        """Return the width of concatenated branches."""
        return sum(self.size.width(one) for one in published)

    def spread(self, inputs: int) -> Branches:
        """Return a 1x3 beside a 3x1 convolution."""
        return Branches(self.branch(inputs, (384, (1, 3))), self.branch(inputs, (384, (3, 1))))


def _blocks(make: Builder, inputs: int) -> tuple[list[nn.Module], int]:
    """Return the blocks, figures 5, 10, 6 and 7 of the paper in this order, and their width."""
    built: list[nn.Module] = []
    for pooled in _POOL_CHANNELS:
        built.append(
            Branches(
                make.branch(inputs, (64, 1)),
                make.branch(inputs, (48, 1), (64, 5)),
                make.branch(inputs, (64, 1), (96, 3), (96, 3)),
                make.pooled(inputs, pooled),
            )
        )
        inputs = make.width(64, 64, 96, pooled)
    built.append(
        Branches(
            make.halving(inputs, (384, 3)),
            make.halving(inputs, (64, 1), (96, 3), (96, 3)),
            nn.MaxPool2d(3, stride=2),
        )
    )
    inputs += make.width(384, 96)
    for seven in _SEVEN_CHANNELS:
        wide, tall = (seven, (1, 7)), (seven, (7, 1))
        built.append(
            Branches(
                make.branch(inputs, (192, 1)),
                make.branch(inputs, (seven, 1), wide, (192, (7, 1))),
                make.branch(inputs, (seven, 1), tall, wide, tall, (192, (1, 7))),
                make.pooled(inputs, 192),
            )
        )
        inputs = make.width(192, 192, 192, 192)
    built.append(
        Branches(
            make.halving(inputs, (192, 1), (320, 3)),
            make.halving(inputs, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)),
            nn.MaxPool2d(3, stride=2),
        )
    )
    inputs += make.width(320, 192)
    for _ in range(_NUM_LAST_BLOCKS):
        inner = make.width(384)
        built.append(
            Branches(
                make.branch(inputs, (320, 1)),
                make.branch(inputs, (384, 1)).append(make.spread(inner)),
                make.branch(inputs, (448, 1), (384, 3)).append(make.spread(inner)),
                make.pooled(inputs, 192),
            )
        )
        inputs = make.width(320, 384, 384, 384, 384, 192)
    return built, inputs


class Inception(nn.Module):
    """Stem, blocks, pooling and classifier, without the auxiliary classifier."""

    def __init__(self, size: InceptionSize) -> None:
        super().__init__()
        make = Builder(size)
        self.stem, inputs = make.stem()
        blocks, inputs = _blocks(make, inputs)
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(size.dropout)
        self.fc = nn.Linear(inputs, size.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, 3, height, width]`` to ``[batch, classes]``."""
        pooled = self.flatten(self.avgpool(self.blocks(self.stem(images))))
        logits: torch.Tensor = self.fc(self.dropout(pooled))
        return logits


def build(name: str, size: InceptionSize) -> nn.Module:
    """Return the model."""
    return Inception(size)
