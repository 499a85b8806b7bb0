"""Memory of each pipeline rank: what is kept between steps and what a step adds at its peak."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.device import DeviceKind
from hardware_profiles.software import SoftwareProfile
from planner.gradient_sync import shard_group
from planner.mesh import MeshShape
from planner.stage_costs import StageCosts
from planner.state_memory import StateBytes, sharded_state_bytes
from planner.strategy import Recompute, Sharding

Floats = NDArray[np.float64]
MEMORY_TERMS = (
    "parameters",
    "gradients",
    "optimizer",
    "gathered_parameters",
    "activations",
    "workspace",
    "communication",
    "fixed",
    "allocator",
)
GATHERED_UNITS = 2
"""Units whose weights are whole at once under sharded parameters: the one in use and the one
prefetched (torch FSDP2's default)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StageMemory:
    """Bytes per pipeline rank, by term of :data:`MEMORY_TERMS` [B]."""

    terms: Mapping[str, Floats]

    @property
    def peak_bytes(self) -> Floats:
        """Return the sum of all terms per pipeline rank."""
        peak: Floats = np.add.reduce(list(self.terms.values()))
        return peak

    def breakdown_of_largest(self) -> dict[str, float]:
        """Return the terms of the rank that needs most."""
        rank = int(np.argmax(self.peak_bytes))
        return {term: float(values[rank]) for term, values in self.terms.items()}


def state_memory(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    sharding: Sharding,
    state: StateBytes,
    keeps_whole_gradients: bool,
) -> dict[str, Floats]:
    """Return weights, gradients, optimizer state and gathered units per pipeline rank [B].

    ``keeps_whole_gradients`` says that sharded gradients are nonetheless accumulated whole: torch
    pipelining reduces once per step, and what a backward gathered stays whole until the next
    forward reshards it (``set_reshard_after_backward(False)`` in
    ``torch.distributed.pipelining.stage``), so that a rank comes to hold all its weights.
    """
    zero = np.zeros(stages.num_stages)
    weights, gradients, optimizer = zero.copy(), zero.copy(), zero.copy()
    for key, elements in stages.parameters.items():
        kept = sharded_state_bytes(
            state, sharding=sharding, shard_size=shard_group(key, mesh).num_ranks
        )
        weights += elements * kept[0]
        gradients += elements * (state.gradients if keeps_whole_gradients else kept[1])
        optimizer += elements * kept[2]
    return {
        "parameters": per_rank_sum(weights, mesh.pp),
        "gradients": per_rank_sum(gradients, mesh.pp),
        "optimizer": per_rank_sum(optimizer, mesh.pp),
        "gathered_parameters": _gathered_bytes(
            stages, mesh=mesh, sharding=sharding, state=state, stays=keeps_whole_gradients
        ),
    }


def _gathered_bytes(
    stages: StageCosts, *, mesh: MeshShape, sharding: Sharding, state: StateBytes, stays: bool
) -> Floats:
    """Return weights and gradients that are whole beside their shards per pipeline rank [B].

    A unit's gradient is whole until its reduce-scatter is through, under sharded gradients, too.
    """
    if sharding in ("none", "optimizer") or (stays and sharding == "gradients"):
        return np.zeros(mesh.pp)
    if stays:
        return per_rank_sum(stages.total_parameters() * state.gathered, mesh.pp)
    units = np.minimum(GATHERED_UNITS * stages.largest_item_parameters, stages.total_parameters())
    weights = state.gathered if sharding == "parameters" else 0.0
    return per_rank_max(units * (weights + state.gradients), mesh.pp)


def activation_memory(
    stages: StageCosts,
    *,
    pipeline_size: int,
    recompute: Recompute,
    in_flight: Floats,
    is_training: bool,
) -> dict[str, Floats]:
    """Return saved activations and the largest transient per pipeline rank [B].

    Parameters
    ----------
    stages : StageCosts
        Costs per virtual stage.
    pipeline_size : int
        Pipeline ranks.
    recompute : str
        What is recomputed.
    in_flight : array of float
        Peak number of (microbatch, virtual stage) pairs alive per pipeline rank [1].
    is_training : bool
        Without a backward pass nothing is saved.
    """
    transient = per_rank_max(stages.transient_bytes[recompute], pipeline_size)
    if not is_training:
        return {"activations": np.zeros(pipeline_size), "workspace": transient}
    chunks = stages.num_stages // pipeline_size
    per_chunk = per_rank_sum(stages.saved_bytes[recompute], pipeline_size) / chunks
    return {"activations": per_chunk * in_flight, "workspace": transient}


def overhead_memory(
    terms: Mapping[str, Floats],
    *,
    stages: StageCosts,
    mesh: MeshShape,
    software: SoftwareProfile,
    device_kind: DeviceKind,
) -> dict[str, Floats]:
    """Return communication buffers, the fixed part and fragmentation per pipeline rank [B]."""
    has_context = device_kind != "fpga"
    communicates = mesh.dp * mesh.cp > 1
    buckets = np.full(mesh.pp, 2.0 * software.gradient_bucket_bytes if communicates else 0.0)
    total = per_rank_sum(stages.total_parameters(), mesh.pp) * 4.0
    buckets = np.minimum(buckets, total)
    if mesh.pp > 1:
        buckets = buckets + 2.0 * per_rank_max(stages.entry_bytes, mesh.pp)
    moving = terms["activations"] + terms["workspace"] + terms["gathered_parameters"]
    return {
        "communication": buckets,
        "fixed": np.full(mesh.pp, software.fixed_memory_bytes if has_context else 0.0),
        "allocator": software.allocator_overhead * (moving + buckets),
    }


def per_rank_sum(values: Floats, pipeline_size: int) -> Floats:
    """Add virtual stages of the same pipeline rank (stage ``i`` sits on rank ``i % p``).

    Examples
    --------
    >>> per_rank_sum(np.array([1.0, 2.0, 3.0, 4.0]), 2).tolist()
    [4.0, 6.0]
    """
    summed: Floats = values.reshape(-1, pipeline_size).sum(axis=0)
    return summed


def per_rank_max(values: Floats, pipeline_size: int) -> Floats:
    """Return the largest of the virtual stages of each pipeline rank."""
    largest: Floats = values.reshape(-1, pipeline_size).max(axis=0)
    return largest
