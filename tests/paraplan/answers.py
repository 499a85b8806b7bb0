"""What a call of the command line leaves behind, and the calls that tests share."""

from collections.abc import Callable
from dataclasses import dataclass

MACHINE = "dgx-a100-80g:1"
SMALL = ("mlp", "--cluster", MACHINE, "--global-batch", "64")
"""A model, a machine and a batch, as every verb of planning takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one call left behind."""

    status: int
    out: str
    err: str


Call = Callable[..., Answer]
