"""Which positions of a sample a forward pass holds: all in order, unless told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from planner.errors import ModelError

_HELD: ContextVar[torch.Tensor | None] = ContextVar("held_positions", default=None)


def positions_of(
    length: int, *, device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Return the positions of a sample's tokens, for embeddings and rotations by position.

    Parameters
    ----------
    length : int
        Tokens of the sample that are here [1].
    device, dtype
        Of the result.

    Raises
    ------
    ModelError
        If other positions are held than there are tokens.

    Examples
    --------
    >>> positions_of(3, device=torch.device("cpu"))
    tensor([0, 1, 2])
    """
    held = _HELD.get()
    if held is None:
        return torch.arange(length, device=device, dtype=dtype)
    if held.numel() != length:
        raise ModelError(f"{length} tokens here, but {held.numel()} positions are held")
    return held.to(device=device, dtype=dtype)


@contextmanager
def held_positions(positions: torch.Tensor) -> Iterator[None]:
    """Let :func:`positions_of` return these while inside: the rank holds a part of each sample."""
    token = _HELD.set(positions)
    try:
        yield
    finally:
        _HELD.reset(token)
