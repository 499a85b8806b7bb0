"""From stage costs to the ordered program that the engine runs.

Folded, one representative rank stands for all ranks of a pipeline stage: tensor, data and context
groups are symmetric. Unfolded (``--detail full``), every rank has its own tasks and a collective
starts only when all members of its group have reached it.
"""

from collections.abc import Mapping

from planner.lowering_end import add_end
from planner.step_costs import Floats, ProgramBuilder, StepCosts
from simulator.actions import PHASE_OF_KIND
from simulator.program import Program, Stream, Task
from simulator.schedules import Action, schedule_actions

STREAM_OF_CATEGORY: Mapping[str, Stream] = {
    "tensor": "tensor",
    "context": "tensor",
    "expert": "tensor",
    "data": "data",
    "pipeline": "pipeline",
}


def lower(costs: StepCosts, *, detail: str = "folded") -> Program:
    """Return the program of one step.

    Parameters
    ----------
    costs : StepCosts
        Stage costs and schedule of a candidate.
    detail : str
        ``folded`` (one rank per pipeline stage) or ``full`` (every rank).

    Returns
    -------
    Program
        Tasks in stream order; ranks are pipeline-major, as in the mesh.
    """
    mesh = costs.mesh
    replicas = mesh.stage_ranks if detail == "full" else 1
    orders = schedule_actions(
        costs.schedule if mesh.pp > 1 else "1f1b",
        num_ranks=mesh.pp,
        num_microbatches=costs.num_microbatches,
        virtual_stages=costs.stages.num_stages // mesh.pp,
    )
    builder = ProgramBuilder(costs=costs, replicas=replicas)
    for action in _in_dependency_order(orders, costs):
        _add_action(builder, action)
    if costs.is_training:
        add_end(builder)
    resting = tuple(bytes_ for bytes_ in costs.resting_memory_bytes for _ in range(replicas))
    return Program(
        tasks=tuple(builder.tasks), num_ranks=mesh.pp * replicas, resting_memory_bytes=resting
    )


def _in_dependency_order(orders: tuple[tuple[Action, ...], ...], costs: StepCosts) -> list[Action]:
    """Merge per-rank orders so that each action stands after those it depends on."""
    last = costs.stages.num_stages - 1
    queues = [
        [action for action in order if costs.is_training or action.kind == "F"] for order in orders
    ]
    position = [0] * len(queues)
    done: set[tuple[str, int, int]] = set()
    merged: list[Action] = []
    total = sum(len(queue) for queue in queues)
    while len(merged) < total:
        before = len(merged)
        for rank, queue in enumerate(queues):
            while position[rank] < len(queue):
                action = queue[position[rank]]
                if not _needs(action, last) <= done:
                    break
                done.add(_result(action))
                merged.append(action)
                position[rank] += 1
        if len(merged) == before:
            raise RuntimeError(f"schedule {costs.schedule} deadlocks")
    return merged


def _result(action: Action) -> tuple[str, int, int]:
    """Return what others wait for: input gradients alone serve as a whole backward does."""
    return ("B" if action.kind == "I" else action.kind, action.stage, action.microbatch)


def _needs(action: Action, last_stage: int) -> set[tuple[str, int, int]]:
    stage, microbatch = action.stage, action.microbatch
    if action.kind == "F":
        return {("F", stage - 1, microbatch)} if stage > 0 else set()
    if action.kind == "W":
        return set()  # its own rank runs the gradients of inputs before, which its order says
    needs = {("F", stage, microbatch)}
    if stage < last_stage:
        needs.add(("B", stage + 1, microbatch))
    return needs


def _add_action(builder: ProgramBuilder, action: Action) -> None:
    """Add compute, exposed communication and transfer of one pass."""
    costs = builder.costs
    compute_s, comm = _durations(costs, action)
    last_backward = action.kind in "BW" and action.microbatch == costs.num_microbatches - 1
    ends: dict[int, int] = {}
    for replica in range(builder.replicas):
        rank = builder.rank(action.stage, replica)
        inputs = [
            builder.ready[(*need, replica)]
            for need in sorted(_needs(action, costs.stages.num_stages - 1))
        ]
        waits = [builder.gate.pop(rank)] if rank in builder.gate else []
        ends[replica] = _add_compute(
            builder, action, rank=rank, duration_s=compute_s,
            depends_on=tuple(sorted({*inputs, *waits})), splits=last_backward,
        )  # fmt: skip
        builder.last_compute[rank] = ends[replica]
    for category, duration_s in comm.items():
        if duration_s > 0 and category != "pipeline":
            ends = _add_collective(builder, action, category, duration_s, ends)
    if last_backward:
        ends = _add_tails(builder, action, ends)
    for replica, end in ends.items() if action.kind != "W" else ():
        _add_transfer(builder, action, replica=replica, end=end, blocking_s=comm.get("pipeline", 0))


def _durations(costs: StepCosts, action: Action) -> tuple[float, dict[str, float]]:
    actions, stage = costs.actions, action.stage
    compute: Floats
    table: Mapping[str, Floats]
    if action.kind == "F":
        compute, table = actions.forward_compute_s, actions.forward_comm_s
    elif action.kind == "W":
        compute, table = actions.last_compute_s, {}
    else:
        compute, table = actions.backward_compute_s, actions.backward_comm_s
        if action.kind == "I":
            compute = compute - actions.last_compute_s
    return float(compute[stage]), {category: float(v[stage]) for category, v in table.items()}


def _add_compute(
    builder: ProgramBuilder,
    action: Action,
    *,
    rank: int,
    duration_s: float,
    depends_on: tuple[int, ...],
    splits: bool,
) -> int:
    """Add the compute task; the last backward leaves out its tail."""
    costs = builder.costs
    transient = float(costs.stages.transient_bytes[costs.recompute][action.stage])
    kept = _kept_bytes(costs, action)
    overlap = float(costs.tail_s[action.stage]) if splits else 0.0
    return builder.add(
        Task(
            name=f"{action.stage}{action.kind}{action.microbatch}",
            rank=rank,
            stream="compute",
            kind="compute",
            duration_s=duration_s - overlap,
            depends_on=depends_on,
            memory_at_start_bytes=transient + max(kept, 0.0),
            memory_at_end_bytes=-transient + (0.0 if splits else min(kept, 0.0)),
            category=PHASE_OF_KIND[action.kind],
            stage=action.stage,
            microbatch=action.microbatch,
        )
    )


def _kept_bytes(costs: StepCosts, action: Action) -> float:
    """Return by how much an action changes what its rank keeps, for good [B]."""
    if not costs.is_training:
        return 0.0
    saved = float(costs.stages.saved_bytes[costs.recompute][action.stage])
    if action.kind in "FB":
        return saved if action.kind == "F" else -saved
    awaiting = float(costs.stages.awaiting_bytes[costs.recompute][action.stage])
    return awaiting - saved if action.kind == "I" else -awaiting


def _add_tails(builder: ProgramBuilder, action: Action, ends: Mapping[int, int]) -> dict[int, int]:
    """Add the part of the last backward under which gradient reduction may already run."""
    costs = builder.costs
    hidden = float(costs.end.sync_hidden_s[action.stage])
    tails: dict[int, int] = {}
    for replica, end in ends.items():
        rank = builder.rank(action.stage, replica)
        builder.ready["sync", action.stage, 0, rank] = end
        builder.gate.pop(rank, None)
        tails[replica] = builder.add(
            Task(
                name=f"{action}'",
                rank=rank,
                stream="compute",
                kind="compute",
                duration_s=float(costs.tail_s[action.stage]) + costs.sync_slowdown * hidden,
                depends_on=(end,),
                memory_at_end_bytes=_kept_bytes(costs, action),
                category=PHASE_OF_KIND[action.kind],
                stage=action.stage,
                microbatch=action.microbatch,
            )
        )
        builder.last_compute[rank] = tails[replica]
    return tails


def _add_collective(
    builder: ProgramBuilder,
    action: Action,
    category: str,
    duration_s: float,
    ends: Mapping[int, int],
) -> dict[int, int]:
    after: dict[int, int] = {}
    for replica in ends:
        rank = builder.rank(action.stage, replica)
        after[replica] = builder.add(
            Task(
                name=f"{category} {action.stage}{action.kind}{action.microbatch}",
                rank=rank,
                stream=STREAM_OF_CATEGORY[category],
                kind="collective",
                duration_s=duration_s,
                depends_on=tuple(ends[peer] for peer in builder.peers(category, replica)),
                category=category,
                stage=action.stage,
                microbatch=action.microbatch,
            )
        )
        builder.gate[rank] = after[replica]
    return after


def _add_transfer(
    builder: ProgramBuilder, action: Action, *, replica: int, end: int, blocking_s: float
) -> None:
    """Record when the neighbour may use the result; a blocking part holds the sender's compute."""
    costs = builder.costs
    rank = builder.rank(action.stage, replica)
    last = costs.stages.num_stages - 1
    sends = action.stage < last if action.kind == "F" else action.stage > 0
    entered = action.stage + 1 if action.kind == "F" else action.stage
    key = (*_result(action), replica)
    mesh = costs.mesh
    if not sends or mesh.rank_of_stage(entered) == mesh.rank_of_stage(entered - 1):
        builder.ready[key] = end
        return
    parts = (("send", blocking_s), ("send'", costs.actions.transfer_s - blocking_s))
    for label, duration_s in parts:
        if duration_s <= 0 and label != "send'":
            continue
        end = builder.add(
            Task(
                name=f"{label} {action.stage}{action.kind}{action.microbatch}",
                rank=rank,
                stream="pipeline",
                kind="send",
                duration_s=max(duration_s, 0.0),
                depends_on=(end,),
                num_bytes=float(costs.stages.entry_bytes[entered]),
                category="pipeline",
                stage=action.stage,
                microbatch=action.microbatch,
            )
        )
        if label == "send":
            builder.gate[rank] = end
    builder.ready[key] = end
