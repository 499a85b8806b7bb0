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
    after_loss: Floats
    """As ``lazy`` without recomputation, once the loss has run backward."""
    entry: Floats
    """What enters the item, and the gradient that leaves it."""
    output: Floats
    """Of what is kept, the model's output, which stays until the backward pass is through."""
    parameters: Floats
    """Elements of the item [1]."""
    tied: Floats
    """Elements of weights that an earlier item of the model counts (a head with the embedding's
    weight) [1]."""
    has_one_tensor: NDArray[np.bool_]
    """Whether the item's parameters are one tensor."""
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
        return self._after(self.parameters)

    @cached_property
    def output_after(self) -> Floats:
        """Return the model's output where an item behind this one of the stage made it [B]."""
        return self._after(self.output)

    def _after(self, values: Floats) -> Floats:
        totals = np.add.reduceat(values, self.starts)
        after: Floats = totals[self.stage_of] - self._within_stage(values)
        return after

    def _within_stage(self, values: Floats) -> Floats:
        running = np.cumsum(values)
        before = running[self.starts] - values[self.starts]
        summed: Floats = running - before[self.stage_of]
        return summed

    @cached_property
    def is_shared(self) -> NDArray[np.bool_]:
        """Whether an item's weights are another's of its stage, too.

        Where weights are sharded its parameters are no unit of their own and go with the root's.
        """
        found: NDArray[np.bool_] = (self.tied > 0) & (self.stage_of == 0)
        found[self.lender] |= bool(found.any())
        return found

    @property
    def lender(self) -> int:
        """The item that counts the weights that others share: the first that is large enough."""
        return int(np.argmax(self.parameters >= max(float(self.tied.max()), 1.0)))

    @cached_property
    def waiting(self) -> Floats:
        """Return elements of gradients of shared weights that wait while an item runs backward [1].

        A head's gradient waits for the embedding's; there torch's engine adds them into a third
        (``torch/csrc/autograd/input_buffer.cpp``).
        """
        found = np.zeros(self.num_items)
        for user in np.flatnonzero(self.is_shared & (self.tied > 0)):
            found[self.lender + 1 : user] += self.tied[user]
            found[self.lender] += 2.0 * self.tied[user]
        return found

    @cached_property
    def units(self) -> Floats:
        """Elements of the items that sharded data parallelism gathers one by one [1]."""
        return np.where(self.is_shared, 0.0, self.parameters)

    @cached_property
    def root(self) -> Floats:
        """Elements that are gathered with the model's root, for each item of the stage [1]."""
        held = np.where(self.is_shared, self.parameters, 0.0)
        whole: Floats = np.add.reduceat(held, self.starts)[self.stage_of]
        return whole

    def neighbour_units(self, step: int) -> Floats:
        """Return the elements of the next (1) or previous (-1) unit of the same stage [1]."""
        known = f"units {step}"
        if known not in self._known:
            self._known[known] = self._nearest_units(step)
        return self._known[known]

    def _nearest_units(self, step: int) -> Floats:
        found = np.zeros(self.num_items)
        stage, last, last_stage = self.stage_of, 0.0, -1
        for at in range(self.num_items)[::-step]:
            if stage[at] != last_stage:
                last, last_stage = 0.0, int(stage[at])
            found[at] = last
            last = float(self.units[at]) or last
        return found

    @cached_property
    def arriving(self) -> Floats:
        """Return the gradient that arrives at an item from the one behind it in the stage [B]."""
        found = np.append(self.entry[1:], 0.0)
        found[np.append(self.starts[1:], self.num_items) - 1] = 0.0
        return found

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
        after_loss=items.after_loss_workspace_bytes,
        entry=entry,
        output=items.output_bytes,
        parameters=items.total_parameters(),
        tied=items.tied_parameters,
        has_one_tensor=items.parameter_tensors == 1,
        block_weights=np.where(again, items.weight_bytes, 0.0),
    )
