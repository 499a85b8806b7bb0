"""Full recomputation: blocks keep only their input and run again in the backward pass."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

ModeFactory = Callable[[], AbstractContextManager[Any]]


def recompute_blocks(blocks: Iterable[nn.Module], *, mode: ModeFactory) -> None:
    """Make each block recompute its forward pass; ``mode`` is entered around the second run.

    The module keeps its identity and parameter names (no wrapper), and hooks at its boundary run
    once.
    """
    for block in blocks:
        block.forward = _recomputed(block.forward, mode)


def _recomputed(forward: Callable[..., Any], mode: ModeFactory) -> Callable[..., Any]:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(
            forward, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), mode()),
            **kwargs,
        )  # fmt: skip

    return call
