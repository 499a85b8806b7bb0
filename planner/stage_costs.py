"""Costs of pipeline stages: item costs summed between cuts, for each way to recompute."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.item_costs import GradientKey, ItemCosts
from planner.item_memory import ItemMemory, item_memory
from planner.mesh import MeshShape
from planner.strategy import SPLIT_RECOMPUTE_MODES, Recompute

Floats = NDArray[np.float64]
RECOMPUTE_MODES: tuple[Recompute, ...] = ("none", "selective", "selective_op", "full")


@dataclass(frozen=True, kw_only=True, eq=False)
class StageCosts:
    """Arrays over virtual stages in pipeline order, for one microbatch on one rank."""

    starts: NDArray[np.int64]
    """First item of each stage."""
    forward_s: Floats
    """With exposed communication [s]."""
    backward_s: Mapping[Recompute, Floats]
    """With exposed communication and recomputation [s]."""
    forward_compute_s: Floats
    backward_compute_s: Mapping[Recompute, Floats]
    inputs_compute_s: Mapping[Recompute, Floats]
    """Gradients of inputs alone, where a schedule makes those of weights later; only with what
    such a backward pass allows to recompute [s]."""
    weights_compute_s: Floats
    """Gradients of weights alone [s]."""
    beside_weights_s: Floats
    """Tensor communication that is hidden only where weight gradients follow at once [s]."""
    forward_comm_s: Mapping[str, Floats]
    """Category -> exposed communication [s]."""
    backward_comm_s: Mapping[Recompute, Mapping[str, Floats]]
    saved_bytes: Mapping[Recompute, Floats]
    """Per microbatch in flight [B]."""
    awaiting_bytes: Mapping[Recompute, Floats]
    """Per microbatch between its input gradients and its weight gradients [B]."""
    transient_bytes: Mapping[Recompute, Floats]
    """Largest item's workspace, and under full recomputation what one item saves again [B]."""
    entry_bytes: Floats
    """What a stage receives from the one before it [B]."""
    parameters: Mapping[GradientKey, Floats]
    tied_parameters: Floats
    """Elements of weights that an earlier stage holds, too: their gradients are summed between the
    two stages once per step [1]."""
    model_flops: float
    """Forward and backward of all stages on one rank each, without recomputation [FLOP]."""
    recomputed_flops: Mapping[Recompute, float]
    largest_item_parameters: Floats
    """Elements of the largest item of each stage: what sharded data parallelism gathers [1]."""
    items: ItemMemory | None = None
    """What each item keeps and needs in backward; left out where no memory is asked for."""
    parameter_tensors: Floats = field(default_factory=lambda: np.zeros(1))
    """Parameter tensors that a rank updates [1]."""
    sharded_units: Floats = field(default_factory=lambda: np.zeros(1))
    """Items with parameters: what sharded data parallelism gathers one after another [1]."""

    @property
    def num_stages(self) -> int:
        """Number of virtual stages."""
        return len(self.starts)

    def total_parameters(self) -> Floats:
        """Return elements held by one rank per stage."""
        return sum(self.parameters.values(), np.zeros(self.num_stages))


def stage_costs(
    items: ItemCosts, starts: NDArray[np.int64], *, mesh: MeshShape | None = None
) -> StageCosts:
    """Return stage costs for cuts before the items ``starts``.

    ``mesh`` says which stages lie on the first one's rank, where weights tied to it are shared;
    left out, the first stage is alone.
    """
    is_shared = np.arange(len(starts)) == 0
    if mesh is not None:
        is_shared = mesh.ranks_of_stages(np.arange(len(starts), dtype=np.int64)) == 0

    def add(values: Floats) -> Floats:
        return np.add.reduceat(values, starts)

    def largest(values: Floats) -> Floats:
        return np.maximum.reduceat(values, starts)

    again = items.is_recomputed
    memory = item_memory(items, starts)
    extra_compute: dict[Recompute, Floats] = {
        "none": np.zeros(len(starts)),
        "selective": add(items.selective_s),
        "selective_op": add(items.op_s),
        "full": add(items.recompute_s),
    }
    backward_compute = {
        mode: add(items.backward_s) + extra_compute[mode] for mode in RECOMPUTE_MODES
    }
    forward_comm = {category: add(values) for category, values in items.forward_comm_s.items()}
    backward_comm: dict[Recompute, dict[str, Floats]] = {
        mode: {
            category: add(values)
            + (add(items.forward_comm_s[category] * again) if mode == "full" else 0.0)
            for category, values in items.backward_comm_s.items()
        }
        for mode in RECOMPUTE_MODES
    }
    zero = np.zeros(len(starts))
    return StageCosts(
        starts=starts,
        forward_s=add(items.forward_s) + sum(forward_comm.values(), zero),
        backward_s={
            mode: backward_compute[mode] + sum(backward_comm[mode].values(), zero)
            for mode in RECOMPUTE_MODES
        },
        forward_compute_s=add(items.forward_s),
        backward_compute_s=backward_compute,
        inputs_compute_s={
            mode: add(items.inputs_s) + extra_compute[mode] for mode in SPLIT_RECOMPUTE_MODES
        },
        weights_compute_s=add(items.weights_s),
        beside_weights_s=add(items.beside_weights_s),
        forward_comm_s=forward_comm,
        backward_comm_s=backward_comm,
        saved_bytes={mode: add(values) for mode, values in memory.saved.items()},
        awaiting_bytes={mode: add(values) for mode, values in memory.awaiting.items()},
        transient_bytes={mode: largest(values) for mode, values in memory.transient.items()},
        items=memory,
        entry_bytes=items.boundary_bytes[starts],
        parameters=_parameters(items, starts, is_shared),
        tied_parameters=_tied(items, starts, is_shared),
        model_flops=float((items.forward_flops + items.backward_flops).sum()),
        recomputed_flops={
            "none": 0.0,
            "selective": float(items.selective_flops.sum()),
            "selective_op": float(items.op_flops.sum()),
            "full": float((items.forward_flops * again).sum()),
        },
        largest_item_parameters=largest(items.total_parameters()),
        parameter_tensors=add(items.parameter_tensors),
        sharded_units=add((items.parameter_tensors > 0).astype(np.float64)),
    )


def _parameters(
    items: ItemCosts, starts: NDArray[np.int64], is_shared: NDArray[np.bool_]
) -> dict[GradientKey, Floats]:
    """Return elements per stage and gradient group; tied weights are held on both ranks."""
    found = {key: np.add.reduceat(values, starts) for key, values in items.parameters.items()}
    tied = _tied(items, starts, is_shared)
    if found and tied.any():
        largest = max(found, key=lambda key: float(found[key].sum()))
        found[largest] = found[largest] + tied
    return found


def _tied(items: ItemCosts, starts: NDArray[np.int64], is_shared: NDArray[np.bool_]) -> Floats:
    """Return elements per stage of weights that an earlier stage on another rank holds, too."""
    tied: Floats = np.add.reduceat(items.tied_parameters, starts)
    tied[is_shared] = 0.0
    return tied
