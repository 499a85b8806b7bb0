"""Which gradients no library averages, and among which ranks."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch.distributed as dist

from executor.rank_mesh import DATA, EXPERT_COPIES, RankMesh
from executor.shape import RunShape


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientAverage:
    """Gradients to sum over the ranks that hold the same parameters, and to scale."""

    names: tuple[str, ...]
    """Parameters by canonical name."""
    group: dist.ProcessGroup | None
    """None where no other rank holds them, so that they are scaled alone."""
    num_losses: int
    """Ranks whose mean losses the gradients hold together [1]."""
    label: str
    """Mesh axes of the group, as results name them."""


def own_averages(
    names: Iterable[str], *, expert_names: Iterable[str], ranks: RankMesh
) -> tuple[GradientAverage, ...]:
    """Return the averages that neither DDP nor FSDP makes.

    An expert's gradient already holds the
    tokens of all ranks that send some, so it is summed over fewer ranks and divided by as many.

    Parameters
    ----------
    names : iterable of str
        All parameters of this rank.
    expert_names : iterable of str
        Those of experts that are spread over ranks.
    ranks : RankMesh
        The mesh.
    """
    experts = tuple(expert_names)
    rest = tuple(name for name in names if name not in set(experts))
    return tuple(_averages(rest, experts, ranks))


def needs_own_average(shape: RunShape) -> bool:
    """Whether neither DDP nor FSDP can average the gradients of what all data ranks hold.

    DDP flattens parameters and cannot hold distributed ones, and torch's pipeline calls backward in
    a way that its hooks do not follow for all schedules.
    """
    is_plain = shape.size("tp") == 1 and shape.size("pp") == 1
    return shape.sharding == "none" and not is_plain


def _averages(
    rest: tuple[str, ...], experts: tuple[str, ...], ranks: RankMesh
) -> Iterator[GradientAverage]:
    data, shape = ranks.axis(DATA), ranks.shape
    if data is None or shape.mode != "train":
        return
    if needs_own_average(shape):
        yield GradientAverage(
            names=rest, group=data.get_group(), num_losses=data.size(), label=ranks.data_label
        )
    copies = ranks.axis(EXPERT_COPIES)
    if experts and (copies is None or shape.sharding == "none"):
        yield GradientAverage(
            names=experts, group=None if copies is None else copies.get_group(),
            num_losses=data.size(), label=ranks.data_label,
        )  # fmt: skip
