"""ResNets of bottleneck blocks with torchvision's names, as a chain of layers and blocks."""

import torch
from torch import nn

from planner.models.data import cross_entropy
from planner.models.images import convolution_chain, image_batch
from planner.models.sizes import ResnetSize

chain = convolution_chain
loss = cross_entropy
make_batch = image_batch
_EXPANSION = 4
_STEM_CHANNELS = 64
_STAGE_CHANNELS = (64, 128, 256, 512)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, added to the input; the 3x3 strides, or the first 1x1."""

    def __init__(
        self, *, inputs: int, channels: int, outputs: int, stride: int, strides_first: bool
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if strides_first else (1, stride)
        self.conv1 = nn.Conv2d(inputs, channels, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu3 = nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, channels, height, width]`` to the same with other sizes."""
        shortcut = images if self.downsample is None else self.downsample(images)
        hidden = self.relu1(self.bn1(self.conv1(images)))
        hidden = self.relu2(self.bn2(self.conv2(hidden)))
        added: torch.Tensor = self.relu3(self.bn3(self.conv3(hidden)) + shortcut)
        return added


class Resnet(nn.Module):
    """Stem, four stages of blocks, pooling and classifier."""

    def __init__(self, size: ResnetSize) -> None:
        super().__init__()
        inputs = size.width(_STEM_CHANNELS)
        self.conv1 = nn.Conv2d(3, inputs, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.num_stages = len(size.depths)
        for stage, depth in enumerate(size.depths):
            blocks = nn.Sequential()
            for block in range(depth):
                channels = size.width(_STAGE_CHANNELS[stage])
                outputs = size.width(_EXPANSION * _STAGE_CHANNELS[stage])
                stride = 2 if block == 0 and stage > 0 else 1
                blocks.append(
                    Bottleneck(
                        inputs=inputs,
                        channels=channels,
                        outputs=outputs,
                        stride=stride,
                        strides_first=size.strides_first,
                    )
                )
                inputs = outputs
            self.add_module(f"layer{stage + 1}", blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(inputs, size.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, 3, height, width]`` to ``[batch, classes]``."""
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(self.num_stages):
            hidden = self.get_submodule(f"layer{stage + 1}")(hidden)
        logits: torch.Tensor = self.fc(self.flatten(self.avgpool(hidden)))
        return logits


def build(name: str, size: ResnetSize) -> nn.Module:
    """Return the model."""
    return Resnet(size)
