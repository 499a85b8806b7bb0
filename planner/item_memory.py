"""Memory of the items of pipeline stages in a backward pass, for each way to recompute."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.item_costs import ItemCosts
from planner.strategy import Recompute

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemMemory:
    """Arrays over items, one microbatch, one rank [B]."""

    starts: Ints
    """First item of each virtual stage."""
    saved: Mapping[Recompute, Floats]
    """Kept for backward."""
    awaiting: Mapping[Recompute, Floats]
    """Kept between the gradients of inputs and those of weights, where these run apart; only with
    what such a backward pass allows to recompute."""
    transient: Mapping[Recompute, Floats]
    """Most alive beside it while the item runs backward, its recomputation included."""
    lazy: Mapping[Recompute, Floats]
    """The same with the gradients of the item's parameters made on the way."""
    parameters: Floats
    """Elements of the item [1]."""
    block_weights: Floats
    """Weights of the products of repeated blocks, 0 for other items."""
    _known: dict[object, Floats] = field(default_factory=dict, repr=False)
    """Arrays worked out before: many strategies share these items."""

    @cached_property
    def stage_of(self) -> Ints:
        """Virtual stage of each item."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=self.num_items))

    @property
    def num_items(self) -> int:
        """Number of items."""
        return len(self.parameters)

    def saved_so_far(self, mode: Recompute) -> Floats:
        """Return what a stage's items up to each one, itself included, keep [B]."""
        if mode not in self._known:
            self._known[mode] = self._within_stage(self.saved[mode])
        return self._known[mode]

    @cached_property
    def parameters_after(self) -> Floats:
        """Elements of the items of the same stage behind each one [1]."""
        through = self._within_stage(self.parameters)
        totals = np.add.reduceat(self.parameters, self.starts)
        after: Floats = totals[self.stage_of] - through
        return after

    def _within_stage(self, values: Floats) -> Floats:
        running = np.cumsum(values)
        before = running[self.starts] - values[self.starts]
        summed: Floats = running - before[self.stage_of]
        return summed

    def neighbour_parameters(self, step: int) -> Floats:
        """Return the elements of the next (1) or previous (-1) item of the same stage [1]."""
        if step in self._known:
            return self._known[step]
        found = np.zeros(self.num_items)
        stage = self.stage_of
        here = np.arange(self.num_items)
        there = here + step
        inside = (there >= 0) & (there < self.num_items)
        inside[inside] &= stage[there[inside]] == stage[here[inside]]
        found[inside] = self.parameters[there[inside]]
        self._known[step] = found
        return found


def item_memory(items: ItemCosts, starts: Ints) -> ItemMemory:
    """Return the memory of items under the cuts ``starts``.

    Full recomputation keeps what enters a repeated block and computes all that the block keeps
    again, but for its own output, which is the next block's entry; what leaves the last block is
    kept for what stands behind it.
    """
    again = items.is_recomputed > 0
    entry = items.boundary_bytes
    follows = np.zeros(items.num_items, dtype=bool)
    follows[1:] = again[:-1] & ~again[1:]
    repeated = np.where(again, np.maximum(items.saved_bytes - entry, 0.0), 0.0)
    beyond = np.where(follows, entry, 0.0)
    kept = np.where(again, np.minimum(items.op_saved_bytes, items.saved_bytes), items.saved_bytes)
    dropped = items.saved_bytes - kept
    return ItemMemory(
        starts=starts,
        saved={
            "none": items.saved_bytes,
            "selective": items.selective_saved_bytes,
            "selective_op": kept + beyond,
            "full": np.where(again, entry, items.saved_bytes + beyond),
        },
        awaiting={"none": items.awaiting_bytes, "selective": items.selective_awaiting_bytes},
        transient={
            "none": items.workspace_bytes,
            "selective": items.selective_workspace_bytes,
            "selective_op": items.workspace_bytes + dropped,
            "full": items.workspace_bytes + repeated,
        },
        lazy={
            "none": items.lazy_workspace_bytes,
            "selective": items.lazy_selective_workspace_bytes,
            "selective_op": items.lazy_workspace_bytes + dropped,
            "full": items.lazy_workspace_bytes + repeated,
        },
        parameters=items.total_parameters(),
        block_weights=np.where(again, items.weight_bytes, 0.0),
    )
