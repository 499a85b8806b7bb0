"""Memory of each pipeline rank: what is kept between steps and what a step adds at its peak."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.device import DeviceKind
from hardware_profiles.software import SoftwareProfile
from planner.gathered_memory import (
    gathered_of_items,
    gathered_of_stage,
    reduction_of_items,
)
from planner.gradient_sync import shard_group
from planner.item_memory import ItemMemory
from planner.mesh import MeshShape
from planner.stage_costs import StageCosts
from planner.state_memory import StateBytes, sharded_state_bytes
from planner.strategy import Recompute, Sharding
from simulator.held import Held

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
_NO_TENSORS = ("fixed", "allocator")
"""Terms beside tensors: context, libraries, and what the allocator holds back."""
_BUCKETS_IN_TURN = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class StageMemory:
    """Bytes per pipeline rank, by term of :data:`MEMORY_TERMS` [B]."""

    terms: Mapping[str, Floats]

    @property
    def peak_bytes(self) -> Floats:
        """Return the sum of all terms per pipeline rank."""
        peak: Floats = np.add.reduce(list(self.terms.values()))
        return peak

    @property
    def tensor_bytes(self) -> Floats:
        """Return live tensors at the peak per pipeline rank: what torch's allocator counts [B]."""
        found = [value for term, value in self.terms.items() if term not in _NO_TENSORS]
        tensors: Floats = np.add.reduce(found)
        return tensors

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
    software: SoftwareProfile,
    keeps_whole_gradients: bool,
) -> dict[str, Floats]:
    """Return weights, gradients and optimizer state per pipeline rank [B].

    ``keeps_whole_gradients`` says that sharded gradients are nonetheless accumulated whole: torch
    pipelining reduces once per step.
    """
    zero = np.zeros(stages.num_stages)
    weights, gradients, optimizer = zero.copy(), zero.copy(), zero.copy()
    for key, elements in stages.parameters.items():
        kept = sharded_state_bytes(
            state, sharding=sharding, shard_size=shard_group(key, mesh).num_ranks,
            fully_shards=software.fully_shards,
        )  # fmt: skip
        weights += elements * kept[0]
        gradients += elements * (state.gradients if keeps_whole_gradients else kept[1])
        optimizer += elements * kept[2]
    return {
        "parameters": per_rank_sum(weights, mesh),
        "gradients": per_rank_sum(gradients, mesh),
        "optimizer": per_rank_sum(optimizer, mesh),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """What decides which gradients and gathered weights are there when activations peak."""

    sharding: Sharding
    state: StateBytes
    software: SoftwareProfile
    stays_gathered: bool
    """Torch pipelining reshards a stage's units only in their next forward."""
    num_microbatches: int


def step_memory(
    stages: StageCosts,
    state_terms: Mapping[str, Floats],
    *,
    mesh: MeshShape,
    recompute: Recompute,
    held: Sequence[Held],
    moment: Moment,
) -> dict[str, Floats]:
    """Return gradients, gathered weights, activations and workspace at the peak of a training step.

    The step peaks in the backward pass of some item: all microbatches in flight, those whose
    gradients of weights are still to come (see :mod:`planner.layouts.awaiting`), of the one at hand
    what the items up to this one keep, what this item needs, its gathered weights; and where
    gradients are made anew in each step and no backward pass is through yet, those of the items
    behind it. Or it peaks in the update, when all gradients are there and no activations.

    Parameters
    ----------
    stages : StageCosts
        Costs per virtual stage.
    state_terms : mapping
        Terms of :func:`state_memory` [B].
    mesh : MeshShape
        Sizes of the axes.
    recompute : str
        What is recomputed.
    held : sequence of Held
        Microbatches alive at the moments at which a rank may hold most [1].
    moment : Moment
        Sharding, precision recipe, software.
    """
    items = stages.items
    if items is None:
        raise ValueError("stage costs without items have no memory")
    pp, stage = mesh.pp, items.stage_of
    rank = mesh.ranks_of_stages(stage)
    is_late = _makes_gradients_late(mesh, held[0], moment)
    elements = np.maximum(per_rank_sum(stages.total_parameters(), mesh), 1.0)
    late_bytes = np.where(is_late, state_terms["gradients"] / elements, 0.0)[rank]
    missing = late_bytes * (np.add.reduceat(items.parameters, items.starts)[stage]
                            - items.parameters_after)  # fmt: skip
    needs, gathered = _beside_activations(
        items, recompute=recompute, moment=moment, is_late=is_late[rank],
        late_bytes=late_bytes,
    )  # fmt: skip
    so_far = items.saved_so_far(recompute)
    worst = _worst_item(so_far + needs + gathered - missing, items.starts)
    kept = np.add.reduceat(items.saved[recompute], items.starts)
    alive = _alive(stages, mesh=mesh, recompute=recompute, held=held, software=moment.software)
    # the microbatch that runs backward keeps only what stands before the item
    partly = so_far[worst] - kept
    if any(each.awaiting.any() for each in held):  # or ends up waiting for its weight gradients
        waiting = np.add.reduceat(items.awaiting[recompute], items.starts)
        partly = np.maximum(partly, waiting - kept)
    beside = needs[worst] + gathered[worst] - missing[worst]
    chunk = _worst_chunk(partly + beside, mesh)
    at = worst[chunk]
    gathered_whole = gathered_of_stage(
        stages, mesh=mesh, sharding=moment.sharding, state=moment.state,
        software=moment.software, stays=moment.stays_gathered,
    )  # fmt: skip
    backward = {
        "gradients": state_terms["gradients"] - missing[at],
        "gathered_parameters": gathered_whole + gathered[at],
        "activations": alive + partly[chunk],
        "workspace": needs[at],
    }
    zero = np.zeros(pp)
    update = {
        "gradients": state_terms["gradients"],
        "gathered_parameters": zero,
        "activations": zero,
        "workspace": _update_bytes(stages, state_terms, mesh=mesh, moment=moment),
    }
    if moment.software.keeps_dummy_gradients:
        dummies = np.maximum.reduceat(items.block_weights, items.starts)
        for term in (backward, update):
            term["workspace"] = term["workspace"] + per_rank_max(dummies, mesh)
    is_update = sum(update.values(), zero) > sum(backward.values(), zero)
    return {term: np.where(is_update, update[term], backward[term]) for term in backward}


def _beside_activations(
    items: ItemMemory,
    *,
    recompute: Recompute,
    moment: Moment,
    is_late: NDArray[np.bool_],
    late_bytes: Floats,
) -> tuple[Floats, Floats]:
    """Return per item what its backward pass needs for itself, and what is whole meanwhile [B].

    Torch's FSDP2 makes an item's gradients whole and anew, and gathers its weights once the loss
    is through. With a library that gathers in a copy, that copy is there when the item starts. When
    its gradients are reduced, what it kept is gone, and its shard of them (``late_bytes`` per
    element where none was there before) is new.
    """
    software, state, sharding = moment.software, moment.state, moment.sharding
    gathered = gathered_of_items(
        items, sharding=sharding, state=state, software=software, stays=moment.stays_gathered
    )
    lazy = items.lazy[recompute]
    has_units = (
        software.fully_shards and sharding in ("gradients", "parameters")
        and not moment.stays_gathered
    )  # fmt: skip
    is_new = is_late & (sharding == "none") | has_units
    needs: Floats = np.where(is_new, lazy, items.transient[recompute])
    needs = needs + items.output_after
    if software.frees_gradients:
        needs = needs + state.gradients * items.waiting
    if not has_units:
        return needs, gathered
    behind_loss = needs + items.after_loss - items.lazy["none"]
    behind = items.output + items.output_after + items.entry - items.saved[recompute]
    reduced = behind + reduction_of_items(
        items, sharding=sharding, state=state, software=software, shard_bytes=late_bytes
    )
    start = items.output_after + items.arriving + gathered + _gather_copies(items, moment)
    most = np.maximum.reduce([needs, behind_loss + gathered, reduced, start])
    return needs, most - needs


def _gather_copies(items: ItemMemory, moment: Moment) -> Floats:
    """Return the copy in which the unit before an item is gathered while the item starts [B]."""
    if moment.sharding != "parameters" or not moment.software.copies_messages:
        return np.zeros(items.num_items)
    return moment.state.gathered * items.neighbour_units(-1)


def _alive(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    recompute: Recompute,
    held: Sequence[Held],
    software: SoftwareProfile,
) -> Floats:
    """Return what all microbatches alive keep at the fullest moment per pipeline rank [B]."""
    kept = _edges(stages, mesh=mesh, software=software) + stages.saved_bytes[recompute]
    alive = []
    for each in held:
        num_bytes = kept * mesh.by_stage(each.in_flight)
        if each.awaiting.any():
            num_bytes += stages.awaiting_bytes[recompute] * mesh.by_stage(each.awaiting)
        alive.append(per_rank_sum(num_bytes, mesh))
    most: Floats = np.maximum.reduce(alive)
    return most


def _update_bytes(
    stages: StageCosts, state_terms: Mapping[str, Floats], *, mesh: MeshShape, moment: Moment
) -> Floats:
    """Return what the optimizer holds for itself while it runs per pipeline rank [B].

    Copies of all it updates; none where one kernel updates a tensor (torch's ``fused=True``).
    """
    at_once, state = moment.software.optimizer_temporary_bytes, moment.state
    if state.optimizer == 0 or at_once == 0:
        return np.zeros(mesh.pp)
    return at_once * state_terms["optimizer"] / state.optimizer


def _makes_gradients_late(mesh: MeshShape, held: Held, moment: Moment) -> NDArray[np.bool_]:
    """Return per rank whether activations peak before any gradient of the step is there."""
    software = moment.software
    has_views = (
        software.gradient_buckets == "views" and mesh.dp * mesh.cp > 1
        and moment.sharding == "none"
    )  # fmt: skip
    alive = held.in_flight + held.awaiting
    is_first: NDArray[np.bool_] = alive.sum(axis=0) >= moment.num_microbatches * len(alive)
    return is_first & (software.frees_gradients and not has_views)


def _edges(stages: StageCosts, *, mesh: MeshShape, software: SoftwareProfile) -> Floats:
    """Return what arrives from the stage before, less what is handed on and not kept [B].

    A tensor is counted by its producer. Megatron-LM frees what it handed on
    (``deallocate_output_tensor``); torch's stages hold it, and what arrives lies in buffers that
    :func:`overhead_memory` counts.
    """
    extra = np.zeros(stages.num_stages)
    if mesh.pp > 1 and not software.fully_shards:
        extra[1:] += stages.entry_bytes[1:]
        extra[:-1] -= stages.entry_bytes[1:]
    return extra


def _receive_buffers(
    stages: StageCosts, *, mesh: MeshShape, software: SoftwareProfile, num_microbatches: int
) -> Floats:
    """Return buffers in which neighbours' tensors arrive per pipeline rank [B].

    Torch's stages have one per microbatch for activations and for gradients
    (``torch.distributed.pipelining.stage``, ``_prepare_forward_infra`` and
    ``_prepare_backward_infra``), others one of each.
    """
    arriving = np.zeros(stages.num_stages)
    if mesh.pp > 1:
        arriving[1:] += stages.entry_bytes[1:]
        arriving[:-1] += stages.entry_bytes[1:]
    if software.fully_shards:
        return num_microbatches * per_rank_sum(arriving, mesh)
    return per_rank_max(arriving, mesh)


def _worst_item(values: Floats, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the item with the largest value of each stage, the first of equal ones."""
    largest = np.maximum.reduceat(values, starts)
    sizes = np.diff(starts, append=len(values))
    hits = np.flatnonzero(values >= np.repeat(largest, sizes))
    first: NDArray[np.int64] = hits[np.searchsorted(hits, starts)]
    return first


def _worst_chunk(values: Floats, mesh: MeshShape) -> NDArray[np.int64]:
    """Return the virtual stage with the largest value of each pipeline rank."""
    chunk: NDArray[np.int64] = mesh.by_rank(values).argmax(axis=0).astype(np.int64)
    place = np.arange(mesh.pp, dtype=np.int64)
    if mesh.v_shaped:
        place = np.where(chunk % 2, mesh.pp - 1 - place, place)
    return chunk * mesh.pp + place


def inference_memory(stages: StageCosts, *, mesh: MeshShape) -> dict[str, Floats]:
    """Return activations and workspace without a backward pass: nothing is kept [B]."""
    zero = np.zeros(mesh.pp)
    transient = per_rank_max(stages.transient_bytes["none"], mesh)
    return {"gathered_parameters": zero, "activations": zero, "workspace": transient}


def overhead_memory(
    terms: Mapping[str, Floats],
    *,
    stages: StageCosts,
    mesh: MeshShape,
    sharding: Sharding,
    software: SoftwareProfile,
    device_kind: DeviceKind,
    gradient_bytes: float,
    num_microbatches: int,
) -> dict[str, Floats]:
    """Return communication buffers, the fixed part and fragmentation per pipeline rank [B]."""
    has_context = device_kind != "fpga"
    buckets = np.zeros(mesh.pp)
    if mesh.dp * mesh.cp > 1 and gradient_bytes > 0:
        whole = per_rank_sum(stages.total_parameters(), mesh) * gradient_bytes
        if software.gradient_buckets == "two":
            buckets = np.minimum(_BUCKETS_IN_TURN * software.gradient_bucket_bytes, whole)
        elif software.gradient_buckets == "copies" and sharding == "none":
            buckets = whole
        elif software.gradient_buckets == "views" and sharding == "none":
            # gradients that accumulate without a reduction are no views yet (DDP.no_sync)
            buckets = whole if num_microbatches > 1 and software.frees_gradients else buckets
    buckets = buckets + _receive_buffers(
        stages, mesh=mesh, software=software, num_microbatches=num_microbatches
    )
    moving = terms["activations"] + terms["workspace"] + terms["gathered_parameters"]
    return {
        "communication": buckets,
        "fixed": np.full(mesh.pp, software.fixed_memory_bytes if has_context else 0.0),
        "allocator": software.allocator_overhead * (moving + buckets),
    }


def per_rank_sum(values: Floats, mesh: MeshShape) -> Floats:
    """Add virtual stages of the same pipeline rank.

    Examples
    --------
    >>> mesh = MeshShape(pp=2, dp=1, cp=1, tp=1, ep=1, devices_per_node=8)
    >>> per_rank_sum(np.array([1.0, 2.0, 3.0, 4.0]), mesh).tolist()
    [4.0, 6.0]
    """
    summed: Floats = mesh.by_rank(values).sum(axis=0)
    return summed


def per_rank_max(values: Floats, mesh: MeshShape) -> Floats:
    """Return the largest of the virtual stages of each pipeline rank."""
    largest: Floats = mesh.by_rank(values).max(axis=0)
    return largest
