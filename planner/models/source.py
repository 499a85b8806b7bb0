"""A model as its user names it: how to build it, feed it and take its loss.

Nothing here imports torch at module level: listing presets must be instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One batch of made-up data."""

    inputs: tuple[torch.Tensor, ...]
    """Positional inputs, first dimension = samples."""
    keywords: dict[str, Any]
    """Keyword inputs (transformers models)."""
    targets: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Everything the tracer and the executor need to know about a model."""

    source: str
    """As the user wrote it."""
    name: str
    default_sequence_length: int
    """Tokens per sample; 1 where the model has no sequence [1]."""
    build: Callable[[], torch.nn.Module]
    """Return the module with initialised weights (cheap only under a fake or meta device)."""
    make_batch: Callable[[int, int, int], Batch]
    """``make_batch(batch_size, sequence_length, seed)`` on the current default device."""
    loss: Callable[[Any, torch.Tensor | None], torch.Tensor]
    """``loss(output, targets)``: a scalar, the mean over the batch."""
    chain: Callable[[torch.nn.Module], tuple[str, ...] | None]
    """Module paths whose composition, one tensor in and one out, is the forward pass in order; None
    where the model is no such chain (pipelines then need torch's own splitter)."""
    scale_down: Callable[[int], ModelSource] | None = None
    """``scale_down(divisor)``: a narrower, shallower model of the same structure, see each preset;
    None where the model has no sizes to shrink."""
    key: str = ""
    """What identifies the built model for the cache (source, options, file content)."""
    tensor_parallel_limits: tuple[tuple[str, int], ...] = ()
    """Counts that tensor parallelism must divide: (``num_attention_heads``, 32), ..."""
