"""What image classifiers share: made-up batches, and the chain of a convolutional network."""

from torch import nn

from planner.models.data import generator, integers, normals
from planner.models.sizes import ConvolutionSize, VitSize
from planner.models.source import Batch


def image_batch(
    size: ConvolutionSize | VitSize, batch_size: int, sequence_length: int, seed: int
) -> Batch:
    """Return normal noise as images ``[batch, 3, height, width]`` and class numbers."""
    source = generator(seed)
    images = normals((batch_size, 3, size.image_size, size.image_size), source=source)
    targets = integers((batch_size,), below=size.num_classes, source=source)
    return Batch(inputs=(images,), keywords={}, targets=targets)


def convolution_chain(model: nn.Module) -> tuple[str, ...]:
    """Return every child in order, or its layers and blocks where it is a sequence of them.

    Examples
    --------
    >>> convolution_chain(nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Flatten()))
    ('0.0', '0.1', '1')
    """
    paths: list[str] = []
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):
            paths.extend(f"{name}.{inner}" for inner, _ in child.named_children())
        else:
            paths.append(name)
    return tuple(paths)
