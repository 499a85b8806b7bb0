"""Synchronisation of gradients and gathering of sharded weights, per pipeline stage."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.item_costs import GradientKey
from planner.mesh import MeshShape
from planner.stage_costs import StageCosts
from planner.state_memory import StateBytes
from planner.strategy import Sharding
from simulator.collectives import collective_time
from simulator.groups import CollectiveKind, Group

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SyncTimes:
    """Times per virtual stage on one rank."""

    gradient_s: Floats
    """Reduction of gradients once per step, before hiding [s]."""
    update_gather_s: Floats
    """All-gather of updated weights once per step (sharded optimizer or gradients) [s]."""
    gather_s: Floats
    """All-gather of the stage's weights once (sharded parameters) [s]."""
    tied_s: Floats
    """Sum of the gradients of weights that two pipeline stages hold, on either stage [s]."""
    scatter_s: Floats
    """Reduce-scatter of the stage's gradients once (sharded gradients or parameters) [s]."""


def sync_times(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    sharding: Sharding,
    state: StateBytes,
    gradient_bytes: float,
    cluster: Cluster,
    software: SoftwareProfile,
) -> SyncTimes:
    """Return what keeping replicas equal costs each stage.

    Unsharded gradients are all-reduced; sharded ones are reduce-scattered, and the updated or used
    weights all-gathered (ZeRO, arXiv:1910.02054, section 7: 2, 2 and 3 times the parameters); the
    shards of what is whole on several tensor ranks are all-reduced over these.
    Messages go in buckets of ``software.gradient_bucket_bytes``; sharded gradients and weights go
    unit by unit where a unit is larger (torch FSDP wraps blocks).
    """
    zero = np.zeros(stages.num_stages)
    gradient, update, gather, scatter = zero.copy(), zero.copy(), zero.copy(), zero.copy()
    for key, parameters in stages.parameters.items():
        group, shards = sync_group(key, mesh), shard_group(key, mesh)
        if group.num_ranks == 1:
            continue

        by_unit = sharding in ("gradients", "parameters")
        unit = stages.largest_item_parameters if by_unit else zero
        distinct, where = np.unique(
            np.stack((parameters, unit)), axis=1, return_inverse=True
        )  # equal stages are priced once

        def times(
            kind: CollectiveKind,
            item: float,
            group: Group = shards,
            distinct: Floats = distinct,
            where: NDArray[np.intp] = where,
        ) -> Floats:
            found = [
                _bucketed(
                    kind, count * item, group=group, cluster=cluster,
                    bucket_bytes=max(
                        software.gradient_bucket_bytes,
                        software.gradient_bucket_per_rank_bytes * group.num_ranks,
                        largest * item,
                    ),
                )
                for count, largest in distinct.T
            ]  # fmt: skip
            return np.array(found)[where.ravel()]

        if sharding == "none" or shards.num_ranks == 1:
            gradient += times("all_reduce", gradient_bytes, group)
            continue
        scattered = times("reduce_scatter", gradient_bytes)
        if group.num_ranks > shards.num_ranks:
            scattered += times("all_reduce", gradient_bytes / shards.num_ranks, mesh.group("tp"))
        gathered = times("all_gather", state.gathered)
        gradient += scattered
        scatter += scattered
        gather += gathered
        if sharding != "parameters":
            update += gathered
    tied_s = _tied_s(stages, mesh=mesh, gradient_bytes=gradient_bytes, cluster=cluster)
    return SyncTimes(
        tied_s=tied_s,
        gradient_s=gradient,
        update_gather_s=update,
        gather_s=gather,
        scatter_s=scatter,
    )


def _tied_s(
    stages: StageCosts, *, mesh: MeshShape, gradient_bytes: float, cluster: Cluster
) -> Floats:
    """Return the all-reduce between the first stage and a later one that holds its weights [s].

    Megatron-LM's embedding group (arXiv:1909.08053, section 3; arXiv:2104.04473): after the last
    backward, before the optimizer.
    """
    spent = np.zeros(stages.num_stages)
    if mesh.pp > 1:
        for stage, elements in enumerate(stages.tied_parameters):
            if elements > 0:
                seconds = collective_time(
                    "all_reduce", elements * gradient_bytes, group=mesh.neighbour_group(),
                    cluster=cluster,
                )  # fmt: skip
                spent[stage] += seconds
                spent[0] += seconds
    return spent


def sync_group(key: GradientKey, mesh: MeshShape) -> Group:
    """Return the ranks over which gradients are partial sums.

    Parameters that are whole on several tensor ranks (norms under sequence parallelism, layers that
    split the batch) are reduced over that axis, too.
    """
    axes, is_expert = key
    return mesh.expert_data_group() if is_expert else mesh.group(*axes)


def shard_group(key: GradientKey, mesh: MeshShape) -> Group:
    """Return the ranks over which parameters and their state are sharded: data and context ranks.

    Never tensor ranks: what is whole on several of them is sharded on each alike, by torch's
    ``fully_shard`` over ``dp`` as by Megatron's distributed optimizer.

    Examples
    --------
    >>> mesh = MeshShape(pp=1, dp=2, cp=1, tp=4, ep=1, devices_per_node=8)
    >>> norm = (("dp", "cp", "tp"), False)
    >>> sync_group(norm, mesh).num_ranks, shard_group(norm, mesh).num_ranks
    (8, 2)
    """
    _, is_expert = key
    return mesh.expert_data_group() if is_expert else mesh.group("dp", "cp")


def _bucketed(
    kind: CollectiveKind,
    message_bytes: float,
    *,
    group: Group,
    cluster: Cluster,
    bucket_bytes: float,
) -> float:
    if message_bytes <= 0:
        return 0.0
    num_buckets = max(1.0, np.ceil(message_bytes / bucket_bytes))
    return float(
        num_buckets
        * collective_time(kind, message_bytes / num_buckets, group=group, cluster=cluster)
    )
