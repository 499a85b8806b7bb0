"""A plain multilayer perceptron."""

from itertools import pairwise

from torch import nn

from planner.models.data import cross_entropy, generator, integers, normals
from planner.models.sizes import MlpSize
from planner.models.source import Batch

loss = cross_entropy


def chain(model: nn.Module) -> tuple[str, ...]:
    """Return every layer of a sequential model in order."""
    return tuple(name for name, _ in model.named_children())


def build(name: str, size: MlpSize) -> nn.Module:
    """Return the model."""
    hidden = [size.hidden_size] * (size.num_layers - 1)
    layers = nn.Sequential()
    for inputs, outputs in pairwise((size.num_inputs, *hidden, size.num_classes)):
        layers.append(nn.Linear(inputs, outputs))
        layers.append(nn.ReLU())
    return layers[:-1]


def make_batch(size: MlpSize, batch_size: int, sequence_length: int, seed: int) -> Batch:
    """Return made-up features and class numbers."""
    source = generator(seed)
    features = normals((batch_size, size.num_inputs), source=source)
    targets = integers((batch_size,), below=size.num_classes, source=source)
    return Batch(inputs=(features,), keywords={}, targets=targets)
