"""Weights and gradients that are whole beside their shards while a step runs."""

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.software import SoftwareProfile
from planner.item_memory import ItemMemory
from planner.mesh import MeshShape
from planner.stage_costs import StageCosts
from planner.state_memory import StateBytes
from planner.strategy import Sharding

Floats = NDArray[np.float64]


def gathered_of_items(
    items: ItemMemory,
    *,
    sharding: Sharding,
    state: StateBytes,
    software: SoftwareProfile,
    stays: bool,
) -> Floats:
    """Return what is whole for the backward pass of each item alone, its gradients aside [B].

    Torch's FSDP2, under sharded weights: the item's own, those of the unit before it (prefetched),
    the model's root, and gradients of the unit behind it, which are on their way through the
    reduce-scatter (``_fsdp_param_group.py``: ``_backward_prefetch`` and ``post_backward``, which
    frees the input of a reduce-scatter when the next one starts). Under sharded gradients: these
    alone. Other stacks: the item's own, the one before, and gradients of the item and of the one
    behind. Autocast's 16-bit copies live until their item has run backward.
    """
    own, behind = items.parameters, items.neighbour_parameters(1)
    if sharding == "none":
        copies = state.cast * (
            np.add.reduceat(own, items.starts)[items.stage_of] - items.parameters_after
        )
        return copies if not software.master_weights else np.zeros(items.num_items)
    if sharding == "optimizer" or stays:
        return np.zeros(items.num_items)
    if software.fully_shards:
        return _units_in_backward(items, sharding=sharding, state=state, software=software)
    gradients: Floats = state.gathered * own + state.gradients * behind
    if sharding == "gradients":
        return gradients
    weights = state.gathered * (own + items.neighbour_parameters(-1))
    total: Floats = weights + gradients
    return total


def _units_in_backward(
    items: ItemMemory, *, sharding: Sharding, state: StateBytes, software: SoftwareProfile
) -> Floats:
    in_reduction: Floats = state.gradients * items.neighbour_units(1)
    if sharding == "gradients":
        return in_reduction
    weights = items.units + items.neighbour_units(-1) + items.root
    total: Floats = state.gathered * weights + in_reduction
    return total


def reduction_of_items(
    items: ItemMemory,
    *,
    sharding: Sharding,
    state: StateBytes,
    software: SoftwareProfile,
    shard_bytes: Floats,
) -> Floats:
    """Return what is alive beside activations when each unit's gradients are reduced [B].

    Its gradients and a copy of them in one piece, the reduce-scatter's input; then that and, with a
    library that reduces in a copy, the copy. Gradients are free by then, but for the last one,
    which the loop that lists them still names (torch 2.13, ``_fsdp_collectives.py``,
    ``foreach_reduce``): nearly all of a head's; the shard that comes out takes ``shard_bytes`` per
    element. The unit before is gathered already. Items without a unit have -inf.
    """
    own = np.where(
        np.arange(items.num_items) == items.lender, items.units + items.root, items.units
    )
    before = np.where(items.is_shared, 0.0, items.neighbour_units(-1))
    weights = items.root * ~items.is_shared + before
    copy_in = (state.gathered + state.gradients) * own
    last = np.where(items.has_one_tensor | (items.output > 0), own, 0.0)
    copies = 2.0 if software.copies_messages else 1.0
    sending = state.gathered * last + (copies * state.gradients + shard_bytes) * own
    gradients = np.maximum(copy_in, sending)
    held = gradients if sharding == "gradients" else gradients + state.gathered * weights
    found: Floats = np.where(own > 0, held, -np.inf)
    return found


def gathered_of_stage(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    sharding: Sharding,
    state: StateBytes,
    software: SoftwareProfile,
    stays: bool,
) -> Floats:
    """Return the weights of all items that are whole throughout a step per pipeline rank [B].

    Torch pipelining gathers a stage's weights once and keeps them to the next forward
    (``set_reshard_after_backward(False)`` in ``torch.distributed.pipelining.stage``); sharded
    gradients or optimizer states alone keep weights gathered where they rest as shards.
    """
    whole = mesh.by_rank(stages.total_parameters()).sum(axis=0) * state.gathered
    if sharding == "none":
        return np.zeros(mesh.pp)
    if sharding == "parameters":
        return whole if stays else np.zeros(mesh.pp)
    return whole if software.fully_shards else np.zeros(mesh.pp)
