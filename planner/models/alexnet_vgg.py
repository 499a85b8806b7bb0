"""AlexNet and VGG with torchvision's structure: features, avgpool, flatten, classifier."""

import torch
from torch import nn

from planner.models.data import cross_entropy
from planner.models.images import convolution_chain, image_batch
from planner.models.sizes import AlexnetSize, ConvolutionSize

chain = convolution_chain
loss = cross_entropy
make_batch = image_batch
_ALEXNET = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
"""Kernel, stride and padding of each convolution, arXiv:1404.5997."""
_ALEXNET_POOLS_AFTER = (0, 1, 4)
_VGG_CHANNELS = (64, 128, 256, 512, 512)
_VGG_DEPTHS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions before each pooling layer, arXiv:1409.1556 configurations A, D and E."""
_FULLY_CONNECTED = 4096


class FeatureClassifier(nn.Module):
    """Convolutions, pooling to a fixed size, fully connected layers."""

    def __init__(self, *, features: nn.Sequential, pooled: int, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self.flatten = nn.Flatten()
        self.classifier = classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, 3, height, width]`` to ``[batch, classes]``."""
        logits: torch.Tensor = self.classifier(self.flatten(self.avgpool(self.features(images))))
        return logits


def _alexnet(size: AlexnetSize) -> nn.Module:
    features = nn.Sequential()
    inputs = 3
    for index, (kernel, stride, padding) in enumerate(_ALEXNET):
        outputs = size.width(size.channels[index])
        features.append(nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding))
        features.append(nn.ReLU())
        if index in _ALEXNET_POOLS_AFTER:
            features.append(nn.MaxPool2d(3, stride=2))
        inputs = outputs
    pooled = 6
    wide = size.width(_FULLY_CONNECTED)
    classifier = nn.Sequential(
        nn.Dropout(size.dropout), nn.Linear(inputs * pooled * pooled, wide), nn.ReLU(),
        nn.Dropout(size.dropout), nn.Linear(wide, wide), nn.ReLU(),
        nn.Linear(wide, size.num_classes),
    )  # fmt: skip
    return FeatureClassifier(features=features, pooled=pooled, classifier=classifier)


def _vgg(size: ConvolutionSize, depths: tuple[int, ...]) -> nn.Module:
    features = nn.Sequential()
    inputs = 3
    for channels, depth in zip(_VGG_CHANNELS, depths, strict=True):
        outputs = size.width(channels)
        for _ in range(depth):
            features.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            features.append(nn.ReLU())
            inputs = outputs
        features.append(nn.MaxPool2d(2, stride=2))
    pooled = 7
    wide = size.width(_FULLY_CONNECTED)
    classifier = nn.Sequential(
        nn.Linear(inputs * pooled * pooled, wide), nn.ReLU(), nn.Dropout(size.dropout),
        nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(size.dropout),
        nn.Linear(wide, size.num_classes),
    )  # fmt: skip
    return FeatureClassifier(features=features, pooled=pooled, classifier=classifier)


def build(name: str, size: ConvolutionSize) -> nn.Module:
    """Return the model of this name."""
    return _alexnet(size) if isinstance(size, AlexnetSize) else _vgg(size, _VGG_DEPTHS[name])
