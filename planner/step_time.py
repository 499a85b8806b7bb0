"""The closed form of a step: pipeline, synchronisation, optimizer and stragglers, per candidate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.cluster import Cluster
from hardware_profiles.software import SoftwareProfile
from planner.gradient_sync import SyncTimes, shard_group
from planner.mesh import MeshShape
from planner.stage_costs import StageCosts
from planner.stage_memory import per_rank_sum
from planner.state_memory import StateBytes
from planner.strategy import Recompute, Schedule, Sharding
from planner.workload import OPTIMIZER_STATE_BYTES, Workload
from simulator.closed_form import pipeline_time_s
from simulator.collectives import collective_time
from simulator.operators import operator_time
from simulator.work import Work
from simulator.zero_bubble_time import zero_bubble_time_s

Floats = NDArray[np.float64]
GRADIENT_PASSES = 3.0
"""Passes over the gradients at the end of a step: norm, update, setting them to zero [1]."""
ROUNDING = 1e-9
"""Share of a step below which waiting is rounding [1]."""
BREAKDOWN_TERMS = (
    "compute",
    "tensor",
    "data",
    "pipeline",
    "context",
    "expert",
    "bubble",
    "optimizer",
    "input",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActionTimes:
    """Duration of one forward and one backward of each virtual stage, and what it consists of."""

    forward_compute_s: Floats
    backward_compute_s: Floats
    weights_compute_s: Floats | None = None
    """Part of the backward compute that makes gradients of weights as an action of its own; None
    where a backward pass is one [s]."""
    forward_comm_s: Mapping[str, Floats]
    """Category -> exposed communication, ``data`` for gathered weights [s]."""
    backward_comm_s: Mapping[str, Floats]
    transfer_s: float
    """One transfer between neighbouring stages; its exposed part also blocks the sender and is in
    the ``pipeline`` communication [s]."""
    blocking_s: float
    """That exposed part [s]."""

    @property
    def forward_s(self) -> Floats:
        """Forward of each stage with exposed communication [s]."""
        return sum(self.forward_comm_s.values(), self.forward_compute_s)

    @property
    def backward_s(self) -> Floats:
        """Backward of each stage with exposed communication [s]."""
        return sum(self.backward_comm_s.values(), self.backward_compute_s)

    @property
    def last_compute_s(self) -> Floats:
        """Compute of the action after which a stage's gradients are whole [s]."""
        return self.backward_compute_s if self.weights_compute_s is None else self.weights_compute_s


@dataclass(frozen=True, kw_only=True, eq=False)
class EndTimes:
    """What follows the last backward of each virtual stage, once per step."""

    sync_s: Floats
    """Gradient reduction, hidden part and tied weights included [s]."""
    tied_s: Floats
    """Sum of gradients of weights that two stages hold: waits for all of backward [s]."""
    sync_hidden_s: Floats
    """How much of it may hide under the last backward [s]."""
    optimizer_s: Floats
    update_gather_s: Floats
    """Exposed all-gather of updated weights [s]."""


def transfer_time(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    cluster: Cluster,
    software: SoftwareProfile,
    is_replicated: bool,
) -> float:
    """Return the time of the largest transfer between neighbouring stages [s].

    Where every tensor rank holds the whole activation (``is_replicated``) and the stack scatters,
    each sends its piece and the receivers gather it (arXiv:2104.04473, section 4.1).
    """
    if mesh.pp == 1:
        return 0.0
    entry_bytes = float(stages.entry_bytes[1:].max())
    pieces = mesh.tp if is_replicated and software.scatters_pipeline else 1
    sent = collective_time(
        "send", entry_bytes / pieces, group=mesh.neighbour_group(), cluster=cluster
    )
    if pieces == 1:
        return sent
    return sent + collective_time(
        "all_gather", entry_bytes, group=mesh.group("tp"), cluster=cluster
    )


def action_times(
    stages: StageCosts,
    sync: SyncTimes,
    *,
    recompute: Recompute,
    sharding: Sharding,
    mesh: MeshShape,
    transfer_s: float,
    software: SoftwareProfile,
    is_training: bool,
    splits: bool = False,
) -> ActionTimes:
    """Return the durations of forwards and backwards of every stage.

    Sharded weights are gathered before each use. Without a pipeline torch gathers again in backward
    and reduces each microbatch; with one it gathers once per microbatch and reduces once per step
    (``fully_shard`` under ``torch.distributed.pipelining``). Where the schedule ``splits`` the
    backward pass, nothing hides beside the products for weight gradients.
    """
    forward_compute = stages.forward_compute_s
    backward_compute = stages.backward_compute_s[recompute] if is_training else 0 * forward_compute
    forward_comm = dict(stages.forward_comm_s)
    backward_comm = dict(stages.backward_comm_s[recompute]) if is_training else {}
    if splits:
        backward_compute = stages.inputs_compute_s[recompute] + stages.weights_compute_s
        backward_comm["tensor"] = backward_comm.get("tensor", 0.0) + stages.beside_weights_s
    slower = software.compute_slowdown - 1.0
    hooks = software.sharded_unit_s * stages.sharded_units if mesh.dp * mesh.cp > 1 else 0.0
    if sharding == "parameters":
        exposed, hidden = _hide(sync.gather_s, software.overlap_parameter_gather * forward_compute)
        forward_comm["data"] = exposed + hooks
        forward_compute = forward_compute + slower * hidden
    if mesh.pp == 1 and is_training and sharding in ("gradients", "parameters"):
        moved = sync.scatter_s + (sync.gather_s if sharding == "parameters" else 0.0)
        exposed, hidden = _hide(moved, software.overlap_gradient_sync * backward_compute)
        backward_comm["data"] = exposed + hooks * (2.0 if sharding == "parameters" else 1.0)
        backward_compute = backward_compute + slower * hidden
    blocking = transfer_s * (1.0 - software.overlap_pipeline)
    if mesh.pp > 1:
        sends = np.where(mesh.crossings(stages.num_stages), blocking, 0.0)
        forward_comm["pipeline"] = np.concatenate((sends, [0.0]))
        if is_training:
            backward_comm["pipeline"] = np.concatenate(([0.0], sends))
    return ActionTimes(
        forward_compute_s=forward_compute,
        backward_compute_s=backward_compute,
        weights_compute_s=stages.weights_compute_s if splits else None,
        forward_comm_s=forward_comm,
        backward_comm_s=backward_comm,
        transfer_s=transfer_s,
        blocking_s=blocking,
    )


def _hide(moved_s: Floats, budget_s: Floats) -> tuple[Floats, Floats]:
    hidden = np.minimum(moved_s, budget_s)
    return moved_s - hidden, hidden


def end_times(
    stages: StageCosts,
    sync: SyncTimes,
    actions: ActionTimes,
    *,
    sharding: Sharding,
    mesh: MeshShape,
    state: StateBytes,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> EndTimes:
    """Return what each stage still does after its last backward."""
    zero = np.zeros(stages.num_stages)
    if not workload.is_training:
        return EndTimes(
            sync_s=zero, tied_s=zero, sync_hidden_s=zero, optimizer_s=zero, update_gather_s=zero
        )
    synced_in_backward = mesh.pp == 1 and sharding in ("gradients", "parameters")
    reduction = (zero if synced_in_backward else sync.gradient_s) + sync.replica_s + sync.tied_s
    hooks = software.sharded_unit_s * stages.sharded_units if mesh.dp * mesh.cp > 1 else 0.0
    if sharding != "none" and not synced_in_backward:
        reduction = reduction + hooks
    hidden = np.minimum(
        reduction - sync.tied_s, software.overlap_gradient_sync * actions.last_compute_s
    )
    update, _ = _hide(
        sync.update_gather_s, software.overlap_parameter_gather * actions.forward_compute_s
    )
    return EndTimes(
        sync_s=reduction,
        tied_s=sync.tied_s,
        sync_hidden_s=hidden,
        optimizer_s=_optimizer_s(
            stages, mesh=mesh, sharding=sharding, state=state, workload=workload,
            cluster=cluster, software=software,
        ),
        update_gather_s=update + (hooks if sharding in ("optimizer", "gradients") else 0.0),
    )  # fmt: skip


def _optimizer_s(
    stages: StageCosts,
    *,
    mesh: MeshShape,
    sharding: Sharding,
    state: StateBytes,
    workload: Workload,
    cluster: Cluster,
    software: SoftwareProfile,
) -> Floats:
    """Return the time of the update: gradients read and cleared, state read and written [s].

    On a mixed cluster that of the slowest kind of device.
    """
    elements = np.zeros(stages.num_stages)
    for key, parameters in stages.parameters.items():
        elements += parameters / (1 if sharding == "none" else shard_group(key, mesh).num_ranks)
    kept = OPTIMIZER_STATE_BYTES[workload.optimizer]
    optimizer = max(state.optimizer, kept)
    rewrites = 1.0 if optimizer > kept else 2.0  # weights with an fp32 copy are only written
    per_element = GRADIENT_PASSES * state.gradients + 2.0 * optimizer + rewrites * state.parameters
    distinct, where = np.unique(elements, return_inverse=True)
    devices = {group.device.name: group.device for group in cluster.node_groups}.values()
    times = [
        max(
            operator_time(
                Work(
                    kind="memory",
                    precision=workload.precision,
                    memory_bytes=n * per_element,
                    function=workload.optimizer,
                    num_elements=n,
                ),
                device=device,
                software=software,
            )
            for device in devices
        )
        for n in distinct
    ]
    updated: Floats = np.array(times)[where]
    return updated + software.optimizer_tensor_s * stages.parameter_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """A step by the closed form, with the breakdown of its busiest pipeline rank."""

    step_time_s: float
    breakdown_s: Mapping[str, float]
    """By :data:`BREAKDOWN_TERMS`; adds up to ``step_time_s`` [s]."""
    bottleneck_rank: int


def step_time(
    actions: ActionTimes,
    end: EndTimes,
    *,
    schedule: Schedule,
    mesh: MeshShape,
    num_microbatches: int,
    num_nodes: int,
    software: SoftwareProfile,
) -> StepTime:
    r"""Return the closed form of a step.

    Notes
    -----
    The pipeline takes :func:`simulator.closed_form.pipeline_time_s`. Stage ``s`` may synchronise
    while stages before it still run backward, so the tail is
    :math:`\max_s (e_s - \sum_{j<s} B_j)` (:func:`_slack_s`) with :math:`e_s` its exposed reduction,
    optimizer and gather of updated weights. Jitter adds ``software.straggler_share`` per doubling
    of nodes; replicas wait for it in their gradient reduction.
    """
    pipeline = _pipeline_s(actions, schedule=schedule, mesh=mesh, num_microbatches=num_microbatches)
    slower = (software.compute_slowdown - 1.0) * end.sync_hidden_s
    own = end.sync_s - end.sync_hidden_s + slower + end.optimizer_s + end.update_gather_s
    tail = np.maximum(per_rank_sum(own, mesh) - _slack_s(actions, mesh=mesh), 0.0)
    optimizer = per_rank_sum(end.optimizer_s, mesh)
    tail_s = float(np.maximum(tail, optimizer).max())
    straggler = software.straggler_share * math.log2(max(1, num_nodes))
    total = (pipeline + tail_s) * (1.0 + straggler)
    rank, parts = _busiest(actions, mesh=mesh, num_microbatches=num_microbatches)
    parts["optimizer"] = float(optimizer[rank])
    parts["data"] += max(0.0, tail_s - parts["optimizer"])
    jitter = total - pipeline - tail_s
    parts["data" if mesh.dp * mesh.cp > 1 else "bubble"] += jitter
    waiting = total - sum(parts.values())
    parts["bubble"] += waiting if waiting > ROUNDING * total else 0.0
    return StepTime(step_time_s=total, breakdown_s=parts, bottleneck_rank=rank)


def _pipeline_s(
    actions: ActionTimes, *, schedule: Schedule, mesh: MeshShape, num_microbatches: int
) -> float:
    """Return the time of all forwards and backwards [s]."""
    forward, backward = actions.forward_s, actions.backward_s
    virtual_stages = len(forward) // mesh.pp
    trains = bool(backward.any())  # else nothing comes back: half of GPipe's sends
    sends_s = (actions.transfer_s - actions.blocking_s) * (1.0 if trains else 0.5)
    if actions.weights_compute_s is not None:
        return zero_bubble_time_s(
            schedule,
            forward_s=per_rank_sum(forward, mesh),
            input_s=per_rank_sum(backward - actions.weights_compute_s, mesh),
            weight_s=per_rank_sum(actions.weights_compute_s, mesh),
            num_microbatches=num_microbatches,
            virtual_stages=virtual_stages,
            send_s=sends_s,
        )
    per_rank = per_rank_sum(forward + backward, mesh)
    slowest = int(np.argmax(per_rank))
    return float(
        pipeline_time_s(
            schedule if trains else "gpipe",
            forward_s=per_rank_sum(forward, mesh)[slowest],
            backward_s=per_rank_sum(backward, mesh)[slowest],
            total_s=per_rank.sum(),
            num_stages=mesh.pp,
            num_microbatches=num_microbatches,
            virtual_stages=virtual_stages,
            send_s=sends_s,
        )
    )


def _slack_s(actions: ActionTimes, *, mesh: MeshShape) -> Floats:
    """Return how much earlier than the last one each rank is through its backward passes [s].

    Weight gradients that wait fill this time, as far as they last.
    """
    backward = actions.backward_s[: mesh.pp]
    if mesh.v_shaped:
        return np.zeros(mesh.pp)
    if actions.weights_compute_s is not None:
        backward = np.maximum(backward - 2.0 * actions.weights_compute_s[: mesh.pp], 0.0)
    return np.concatenate(([0.0], np.cumsum(backward)[:-1]))


def _busiest(
    actions: ActionTimes, *, mesh: MeshShape, num_microbatches: int
) -> tuple[int, dict[str, float]]:
    """Return the pipeline rank with most work and what it does in all its actions [s]."""
    parts = {term: np.zeros(mesh.pp) for term in BREAKDOWN_TERMS}
    compute = actions.forward_compute_s + actions.backward_compute_s
    parts["compute"] = num_microbatches * per_rank_sum(compute, mesh)
    for table in (actions.forward_comm_s, actions.backward_comm_s):
        for category, values in table.items():
            parts[category] = parts[category] + num_microbatches * per_rank_sum(values, mesh)
    rank = int(np.argmax(np.add.reduce(list(parts.values()))))
    return rank, {term: float(values[rank]) for term, values in parts.items()}
