"""The end of a step in a program: gradient reduction, tied weights, update, gathered weights."""

from collections.abc import Mapping

from planner.step_costs import ProgramBuilder
from simulator.program import Stream, Task


def add_end(builder: ProgramBuilder) -> None:
    """Add gradient reduction, optimizer and gather of updated weights of every stage."""
    stages = tuple(reversed(range(builder.costs.stages.num_stages)))
    synced = {key: task for stage in stages for key, task in _add_sync(builder, stage).items()}
    synced |= _add_tied(builder, synced)
    for stage in stages:
        _add_update(builder, stage, synced)


def _add_sync(builder: ProgramBuilder, stage: int) -> dict[tuple[int, int], int]:
    """Add the reduction among replicas; return by (stage, replica) the task that ends it."""
    end = builder.costs.end
    members = range(builder.replicas)
    starts = {r: builder.ready["sync", stage, 0, builder.rank(stage, r)] for r in members}
    duration_s = float(end.sync_s[stage] - end.tied_s[stage])
    if duration_s <= 0:
        return {(stage, r): builder.last_compute[builder.rank(stage, r)] for r in members}
    return {
        (stage, r): builder.add(
            _end_task(f"sync {stage}", builder.rank(stage, r), "data", "collective", duration_s,
                      tuple(starts[p] for p in builder.peers("data", r)), stage)
        )
        for r in members
    }  # fmt: skip


def _add_tied(
    builder: ProgramBuilder, synced: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], int]:
    """Add the sum of tied weights' gradients once all stages that hold them have theirs."""
    tied_s = builder.costs.end.tied_s
    holders = [stage for stage in reversed(range(len(tied_s))) if tied_s[stage] > 0]
    ends: dict[tuple[int, int], int] = {}
    for replica in range(builder.replicas):
        ranks = [builder.rank(stage, replica) for stage in holders]
        ready = {synced[stage, replica] for stage in holders}
        ready |= {builder.last_compute[rank] for rank in ranks}
        for stage, rank in zip(holders, ranks, strict=True):
            ends[stage, replica] = builder.add(
                _end_task(f"tied {stage}", rank, "data", "collective",
                          float(tied_s[stage]), tuple(sorted(ready)), stage)
            )  # fmt: skip
    return ends


def _add_update(builder: ProgramBuilder, stage: int, synced: Mapping[tuple[int, int], int]) -> None:
    """Add the optimizer step and the gather of updated weights."""
    end = builder.costs.end
    for replica in range(builder.replicas):
        rank = builder.rank(stage, replica)
        waits = {synced[stage, replica], builder.last_compute[rank]}
        waits |= {builder.gate.pop(rank)} if rank in builder.gate else set()
        updated = builder.add(
            _end_task(f"optimizer {stage}", rank, "compute", "compute",
                      float(end.optimizer_s[stage]), tuple(sorted(waits)), stage)
        )  # fmt: skip
        builder.last_compute[rank] = updated
        if end.update_gather_s[stage] > 0:
            builder.gate[rank] = builder.add(
                _end_task(f"gather {stage}", rank, "data", "collective",
                          float(end.update_gather_s[stage]), (updated,), stage)
            )  # fmt: skip


def _end_task(
    name: str,
    rank: int,
    stream: Stream,
    kind: str,
    duration_s: float,
    depends_on: tuple[int, ...],
    stage: int,
) -> Task:
    return Task(
        name=name,
        rank=rank,
        stream=stream,
        kind="collective" if kind == "collective" else "compute",
        duration_s=duration_s,
        depends_on=depends_on,
        category="optimizer" if stream == "compute" else "data",
        stage=stage,
    )
