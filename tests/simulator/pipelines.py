"""Programs of pipeline schedules for tests."""

from simulator.program import Program, Task
from simulator.schedules import schedule_actions


def pipeline_program(
    name,
    *,
    num_ranks,
    num_microbatches,
    virtual_stages=1,
    forward=1,
    backward=2,
    send=0,
    factors=None,
):
    """One compute task per action, one send per stage boundary; factors scale the ranks."""
    schedule = schedule_actions(
        name,
        num_ranks=num_ranks,
        num_microbatches=num_microbatches,
        virtual_stages=virtual_stages,
    )
    num_stages = num_ranks * virtual_stages
    actions = [(rank, action) for rank, row in enumerate(schedule) for action in row]
    compute_at = {str(action): index for index, (_, action) in enumerate(actions)}
    steps = {"F": 1, "B": -1}
    crossing = [
        (rank, action)
        for rank, action in actions
        if 0 <= action.stage + steps[action.kind] < num_stages
    ]
    send_at = {str(action): len(actions) + index for index, (_, action) in enumerate(crossing)}
    factors = factors or [1] * num_ranks
    tasks = []
    for rank, action in actions:
        source = f"{action.stage - steps[action.kind]}{action.kind}{action.microbatch}"
        depends_on = [send_at[source]] if source in send_at else []
        if action.kind == "B":
            depends_on.append(compute_at[f"{action.stage}F{action.microbatch}"])
        forwards = action.kind == "F"
        tasks.append(
            Task(
                name=str(action),
                rank=rank,
                stream="compute",
                kind="compute",
                duration_s=(forward if forwards else backward) * factors[rank],
                depends_on=tuple(depends_on),
                memory_at_start_bytes=1 if forwards else 0,
                memory_at_end_bytes=0 if forwards else -1,
                stage=action.stage,
                microbatch=action.microbatch,
                category="forward" if forwards else "backward",
            )
        )
    for rank, action in crossing:
        tasks.append(
            Task(
                name=f"send {action}",
                rank=rank,
                stream="pipeline",
                kind="send",
                duration_s=send,
                depends_on=(compute_at[str(action)],),
                category="pipeline",
                stage=action.stage,
                microbatch=action.microbatch,
            )
        )
    return Program(tasks=tuple(tasks), num_ranks=num_ranks, resting_memory_bytes=(100,) * num_ranks)
