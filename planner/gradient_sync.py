"""Synchronisation of gradients and gathering of sharded weights, per pipeline stage."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

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
SyncRole = Literal["reduce", "gather", "copies"]


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
    replica_s: Floats
    """Sum of the shards' gradients between copies, once per step [s]."""
    scatter_s: Floats
    """Reduce-scatter of the stage's gradients once (sharded gradients or parameters) [s]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SyncMessage:
    """A collective that keeps replicas equal, per virtual stage on one rank."""

    role: SyncRole
    """Sums gradients, gathers weights, or sums what copies of the shards hold."""
    kind: CollectiveKind
    axes: tuple[str, ...]
    """Mesh axes that its group spans."""
    group: Group
    message_bytes: Floats
    """All pieces together, in the nccl-tests convention [B]."""
    num_pieces: Floats
    """Buckets that it is sent in, one after the other [1]."""


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

    Messages are those of :func:`sync_messages`.
    """
    zero = np.zeros(stages.num_stages)
    spent_s = {"reduce": zero.copy(), "gather": zero.copy(), "copies": zero.copy()}
    for message in sync_messages(
        stages, mesh=mesh, sharding=sharding, state=state, gradient_bytes=gradient_bytes,
        software=software,
    ):  # fmt: skip
        spent_s[message.role] += _priced(message, cluster=cluster)
    reduced, gathered = spent_s["reduce"], spent_s["gather"]
    is_sharded = sharding != "none" and mesh.group("dp", "cp").num_ranks > 1
    tied_s = _tied_s(
        stages, mesh=mesh, cluster=cluster,
        gradient_bytes=gradient_bytes / tied_shards(mesh, sharding=sharding, software=software),
    )  # fmt: skip
    return SyncTimes(
        tied_s=tied_s,
        replica_s=spent_s["copies"],
        gradient_s=reduced,
        update_gather_s=gathered if sharding != "parameters" else zero,
        gather_s=gathered,
        scatter_s=reduced if is_sharded else zero,
    )


def sync_messages(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    sharding: Sharding,
    state: StateBytes,
    gradient_bytes: float,
    software: SoftwareProfile,
) -> Iterator[SyncMessage]:
    """Yield what keeps replicas equal, one message per kind and group.

    Unsharded gradients are all-reduced; sharded ones are reduce-scattered, and the updated or used
    weights all-gathered (ZeRO, arXiv:1910.02054, section 7: 2, 2 and 3 times the parameters).
    Gradients of what is whole on several tensor ranks are summed over these on their own and whole
    (Megatron-LM's ``_allreduce_layernorm_grads``, torch's partial gradients), then join the others.
    Messages go in buckets of ``software.gradient_bucket_bytes``, of which DDP's first is shorter;
    sharded gradients and weights go unit by unit where a unit is larger (torch FSDP wraps blocks).
    """
    by_unit = sharding in ("gradients", "parameters")
    largest = stages.largest_item_parameters if by_unit else np.zeros(stages.num_stages)
    partial = _elements(stages, {key for key in stages.parameters if "tp" in key[0] and not key[1]})
    tensor = mesh.group("tp")
    if tensor.num_ranks > 1 and partial.any():
        yield _message("reduce", "all_reduce", ("tp",), partial, gradient_bytes, tensor, largest,
                       software)  # fmt: skip
    for is_expert in (False, True):
        elements = _elements(stages, {key for key in stages.parameters if key[1] == is_expert})
        shards = shard_group(((), is_expert), mesh)
        if shards.num_ranks == 1 or not elements.any():
            continue
        axes = tuple(axis for axis in ("dp", "cp") if mesh.group(axis).num_ranks > 1)
        kind: CollectiveKind = "all_reduce" if sharding == "none" else "reduce_scatter"
        is_ddp = sharding == "none" and mesh.tp == mesh.pp == 1
        yield _message("reduce", kind, axes, elements, gradient_bytes, shards, largest, software,
                       first_bytes=software.first_bucket_bytes if is_ddp else 0.0)  # fmt: skip
        if sharding != "none":
            yield _message("gather", "all_gather", axes, elements, state.gathered, shards, largest,
                           software)  # fmt: skip
        if sharding != "none" and mesh.replicas > 1 and not is_expert:
            yield _message(
                "copies", "all_reduce", axes, elements / shards.num_ranks, gradient_bytes,
                mesh.data_replica_group(), largest / shards.num_ranks, software,
            )  # fmt: skip


def _elements(stages: StageCosts, keys: Collection[GradientKey]) -> Floats:
    """Return the elements of some gradient groups per stage [1]."""
    return sum((stages.parameters[key] for key in sorted(keys)), np.zeros(stages.num_stages))


def _message(
    role: SyncRole, kind: CollectiveKind, axes: tuple[str, ...], elements: Floats,
    item_bytes: float, group: Group, largest: Floats, software: SoftwareProfile,
    *, first_bytes: float = 0.0,
) -> SyncMessage:  # fmt: skip
    bucket_bytes = np.maximum(
        max(
            software.gradient_bucket_bytes,
            software.gradient_bucket_per_rank_bytes * group.num_ranks,
        ),
        largest * item_bytes,
    )
    num_bytes = elements * item_bytes
    starts_early = (num_bytes > first_bytes) & (first_bytes > 0)
    rest = np.where(starts_early, num_bytes - first_bytes, num_bytes)
    pieces = np.maximum(1.0, np.ceil(rest / bucket_bytes)) * (num_bytes > 0) + starts_early
    return SyncMessage(
        role=role, kind=kind, axes=axes, group=group, message_bytes=num_bytes, num_pieces=pieces
    )


def _priced(message: SyncMessage, *, cluster: Cluster) -> Floats:
    """Return the time of a message per stage, piece after piece; equal stages priced once [s]."""
    both = np.stack((message.message_bytes, message.num_pieces))
    distinct, where = np.unique(both, axis=1, return_inverse=True)
    found = [
        pieces
        * collective_time(message.kind, num_bytes / pieces, group=message.group, cluster=cluster)
        if pieces
        else 0.0
        for num_bytes, pieces in distinct.T
    ]
    return np.array(found)[where.ravel()]


def tied_shards(mesh: MeshShape, *, sharding: Sharding, software: SoftwareProfile) -> int:
    """Return by how much shorter a tied gradient is when it is summed: torch sums shards [1]."""
    is_cut = sharding != "none" and software.fully_shards
    return mesh.data_shard_group().num_ranks if is_cut else 1


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


def shard_group(key: GradientKey, mesh: MeshShape) -> Group:
    """Return the ranks over which parameters and their state are sharded: data and context ranks.

    One copy's, where several copies are sharded apart (``replicas``; experts have one copy). Never
    tensor ranks: what is whole on several of them is sharded on each alike, by torch's
    ``fully_shard`` over ``dp`` as by Megatron's distributed optimizer.

    Examples
    --------
    >>> mesh = MeshShape(pp=1, dp=2, cp=1, tp=4, ep=1, devices_per_node=8)
    >>> norm = (("dp", "cp", "tp"), False)
    >>> shard_group(norm, mesh).num_ranks
    2
    """
    _, is_expert = key
    return mesh.expert_data_group() if is_expert else mesh.data_shard_group()
