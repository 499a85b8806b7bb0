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
    """Return what is whole for the backward pass of each item alone [B].

    Under sharded weights: the item's own, those of the one before it (prefetched), the item's
    gradients, and those of the one behind it, which are on their way through the reduce-scatter
    (torch FSDP2, ``_fsdp_param_group.py``: ``_backward_prefetch`` and ``post_backward``, which
    frees the input of a reduce-scatter when the next one starts). Under sharded gradients: these
    two alone. Autocast's 16-bit copies live until their item has run backward.
    """
    own, behind = items.parameters, items.neighbour_parameters(1)
    if sharding == "none":
        copies = state.cast * (
            np.add.reduceat(own, items.starts)[items.stage_of] - items.parameters_after
        )
        return copies if not software.master_weights else np.zeros(items.num_items)
    if sharding == "optimizer" or stays:
        return np.zeros(items.num_items)
    gradients: Floats = state.gathered * own + state.gradients * behind
    if sharding == "gradients":
        return gradients
    weights = state.gathered * (own + items.neighbour_parameters(-1))
    total: Floats = weights + gradients
    return total


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
