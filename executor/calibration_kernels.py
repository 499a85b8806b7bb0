"""The kernels of a calibration, as training runs them: forward, and gradients by autograd."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional

Action = Callable[[], object]
BYTES_PER_ELEMENT = 4
SQUARES = (64, 128, 256, 512, 1024)
OBLONG = ((512, 512, 32), (512, 512, 128), (1024, 64, 256), (16, 512, 512), (256, 2048, 512),
          (1024, 4096, 192))  # fmt: skip
LAYERS = ((512, 192, 192), (512, 768, 192), (2048, 128, 512), (256, 32, 128), (128, 64, 64),
          (64, 1024, 1024), (24, 2048, 2048), (48, 3072, 1536))  # fmt: skip
"""Rows, output and input width of linear layers whose gradients are measured, too."""
BF16_SQUARES = (256, 512, 1024)
COPY_BYTES = tuple(1 << power for power in range(14, 25, 2))
ATTENTIONS = ((4, 4, 64, 32), (1, 4, 256, 64), (2, 4, 128, 64))
"""Samples, heads, positions, head width."""
CONVOLUTIONS = ((8, 32, 16, 16, 32, 1), (8, 64, 8, 8, 128, 1), (8, 32, 16, 16, 32, 3),
                (8, 64, 8, 8, 64, 3))  # fmt: skip
"""Samples, channels, height, width, filters, edge of the filter."""
LAUNCHES = 200
POOL_BYTES = 1 << 25
"""Memory that a kernel goes round in, so that its operands come from where a step's would: not from
the innermost cache [B]."""
_ROWS, _WIDTH = 512, 512
_CLASSES = 4096


class Kernel(NamedTuple):
    """One repetition of something to measure."""

    kind: str
    shape: tuple[int, ...]
    precision: str
    action: Action


def kernels() -> Iterator[Kernel]:
    """Yield every kernel; its tensors live until the next is asked for."""
    yield from _products()
    for num_bytes in COPY_BYTES:
        count = num_bytes // BYTES_PER_ELEMENT
        yield Kernel("copy", (num_bytes,), "fp32", _cold(torch.clone, [(count,)]))
    small = torch.ones(16)
    yield Kernel("launch", (LAUNCHES,), "fp32",
                 lambda: [small.add(1.0) for _ in range(LAUNCHES)])  # fmt: skip
    vector = torch.ones(1 << 13)
    yield Kernel("vector", (vector.numel(),), "fp32", lambda: vector.mul_(1.0))
    yield from _attentions()
    yield from _convolutions()
    for name, count, function, shapes in element_functions():
        yield Kernel(f"element:{name}", (count,), "fp32", _cold(function, shapes))
        backward = _cold(function, shapes, backward=True)
        yield Kernel(f"element:{name}.backward", (count,), "fp32", backward)


def _products() -> Iterator[Kernel]:
    for size in SQUARES:
        yield _product((size, size, size))
    for shape in OBLONG:
        yield _product(shape)
    for m, n, k in LAYERS:
        yield _product((m, n, k))
        yield Kernel("matmul", (m, k, n), "fp32", _cold(torch.mm, [(m, n), (n, k)]))
        yield Kernel("matmul", (n, k, m), "fp32", _cold(_weight_gradient, [(m, n), (m, k)]))
    for size in BF16_SQUARES:
        yield _product((size, size, size), dtype=torch.bfloat16)


def _product(shape: tuple[int, int, int], *, dtype: torch.dtype = torch.float32) -> Kernel:
    m, n, k = shape
    name = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return Kernel("matmul", shape, name, _cold(functional.linear, [(m, k), (n, k)], dtype=dtype))


def _weight_gradient(upstream: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
    return torch.mm(upstream.t(), entered)


def element_functions() -> Iterator[tuple[str, int, Callable[..., Any], list[tuple[int, ...]]]]:
    """Yield memory-bound kernels whose arithmetic counts: name as in a graph, elements, function.

    GELU is the mean of its two forms, which a graph does not tell apart.
    """
    plane, count = (_ROWS, _WIDTH), _ROWS * _WIDTH

    def both_gelus(x: torch.Tensor) -> torch.Tensor:
        half = _ROWS // 2
        return torch.cat((
            functional.gelu(x[:half]), functional.gelu(x[half:], approximate="tanh")
        ))  # fmt: skip

    weight, bias = torch.ones(_WIDTH, requires_grad=True), torch.zeros(_WIDTH, requires_grad=True)
    yield "gelu", count, both_gelus, [plane]
    yield "silu", count, functional.silu, [plane]
    yield "relu", count, functional.relu, [plane]
    yield "tanh", count, torch.tanh, [plane]
    yield "layer_norm", count, lambda x: functional.layer_norm(x, (_WIDTH,), weight, bias), [plane]
    targets = torch.arange(_ROWS) % _CLASSES
    yield ("cross_entropy", _ROWS * _CLASSES,
           lambda x: functional.cross_entropy(x, targets), [(_ROWS, _CLASSES)])  # fmt: skip
    image, channels = (8, 32, 32, 32), 32
    scale, shift = (
        torch.ones(channels, requires_grad=True),
        torch.zeros(channels, requires_grad=True),
    )
    mean, variance = torch.zeros(channels), torch.ones(channels)
    yield (
        "batch_norm", 8 * 32 * 32 * 32,
        lambda x: functional.batch_norm(x, mean, variance, scale, shift, training=True), [image],
    )  # fmt: skip
    yield ("max_pool2d_with_indices", 8 * 32 * 32 * 32,
           lambda x: functional.max_pool2d(x, 3, stride=2, padding=1), [image])  # fmt: skip


def _cold(
    function: Callable[..., Any],
    shapes: Sequence[tuple[int, ...]],
    *,
    backward: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Action:
    """Return an action that goes round operands of :data:`POOL_BYTES` together."""
    total = sum(BYTES_PER_ELEMENT * torch.Size(shape).numel() for shape in shapes)
    copies = max(2, min(1024, POOL_BYTES // total))
    pool = [[torch.randn(shape).to(dtype) for shape in shapes] for _ in range(copies)]
    if not backward:
        going_round = itertools.cycle(pool)
        return lambda: function(*next(going_round))
    kept = []
    for operands in pool:
        for operand in operands:
            operand.requires_grad_()
        out = function(*operands)
        kept.append((out, operands, torch.ones_like(out)))
    rounds = itertools.cycle(kept)

    def gradients() -> object:
        out, operands, upstream = next(rounds)
        return torch.autograd.grad(out, operands, upstream, retain_graph=True)

    return gradients


def _attentions() -> Iterator[Kernel]:
    attend = partial(functional.scaled_dot_product_attention, is_causal=True)
    for shape in ATTENTIONS:
        operands = [shape] * 3
        yield Kernel("attention", shape, "fp32", _cold(attend, operands))
        yield Kernel("attention_backward", shape, "fp32", _cold(attend, operands, backward=True))


def _convolutions() -> Iterator[Kernel]:
    for shape in CONVOLUTIONS:
        samples, channels, height, width, filters, edge = shape
        convolve = partial(functional.conv2d, padding=edge // 2)
        operands = [(samples, channels, height, width), (filters, channels, edge, edge)]
        yield Kernel("convolution", shape, "fp32", _cold(convolve, operands))
        yield Kernel("convolution_backward", shape, "fp32",
                     _cold(convolve, operands, backward=True))  # fmt: skip
