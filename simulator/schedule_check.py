"""Check any schedule against the rules of order, whoever wrote it."""

from dataclasses import replace

from simulator.actions import Action, ActionKind, Schedule
from simulator.errors import ScheduleError
from simulator.placement import rank_of_stage

_FOLLOWS: dict[ActionKind, tuple[ActionKind, str]] = {
    "B": ("F", "a backward follows its forward"),
    "I": ("F", "a backward follows its forward"),
    "W": ("I", "weight gradients follow those of the input"),
}
_GRID_COLUMNS = 16
"""Actions per rank that the error grid shows, those around the fault [1]."""


def check_schedule(
    schedule: Schedule, *, num_microbatches: int, virtual_stages: int = 1, v_shaped: bool = False
) -> None:
    """Raise unless a schedule does all work once, in an order that can run.

    Parameters
    ----------
    schedule : tuple of tuple of Action
        Per rank, its actions in order.
    num_microbatches : int
        Microbatches that every stage must run [1].
    virtual_stages : int
        Stages per rank [1].
    v_shaped : bool
        Stages go down the ranks and up again, else stage ``i`` belongs to rank ``i % num_ranks``.

    Raises
    ------
    ScheduleError
        If a rule is broken; the message ends in a grid of the ranks that marks the place.

    Notes
    -----
    Invariants: every stage stands on its rank; every microbatch occurs on every stage once as ``F``
    and once as ``B``, or once as ``I`` and once as ``W``; ``B`` and ``I`` follow the ``F`` of their
    stage and ``W`` its ``I``; running all ranks in order, with ``F`` after the ``F`` of the stage
    before and ``B`` or ``I`` after that of the stage behind, ends. The check knows nothing of how
    schedules are made.

    Examples
    --------
    >>> from simulator.actions import from_csv
    >>> check_schedule(from_csv("0F0,0B0"), num_microbatches=1)
    >>> check_schedule(from_csv("0B0,0F0"), num_microbatches=1)
    Traceback (most recent call last):
        ...
    simulator.errors.ScheduleError: schedule: 0B0 stands before 0F0; a backward follows its forward
    rank 0: 0B0<-- 0F0
    """
    num_stages = len(schedule) * virtual_stages
    _check_each_once(schedule, num_stages, num_microbatches, v_shaped=v_shaped)
    _check_runs(schedule, num_stages)


def _check_each_once(
    schedule: Schedule, num_stages: int, num_microbatches: int, *, v_shaped: bool
) -> None:
    """Check place, range, and that nothing is missing or done twice."""
    num_ranks = len(schedule)
    for rank, actions in enumerate(schedule):
        seen: set[Action] = set()
        for position, action in enumerate(actions):
            place = (rank, position)
            home = rank_of_stage(action.stage, num_ranks=num_ranks, v_shaped=v_shaped)
            if home != rank or action.stage >= num_stages:
                _fail(schedule, place, f"{action} is no stage of rank {rank}")
            if action.microbatch >= num_microbatches:
                _fail(schedule, place, f"{action} exceeds the {num_microbatches} microbatches")
            fault = _told_by_those_before(action, seen)
            if fault:
                _fail(schedule, place, fault)
            seen.add(action)
        # an I and its W are what one B is
        num_whole = sum(2 if action.kind in "FB" else 1 for action in actions)
        expected = 4 * num_microbatches * (num_stages // num_ranks)
        if num_whole != expected:
            _fail(
                schedule,
                (rank, len(actions) - 1),
                f"rank {rank} has {num_whole / 2:g} actions, expected {expected // 2} "
                "(I and W count half)",
            )


def _told_by_those_before(action: Action, seen: set[Action]) -> str:
    """Return what is wrong with an action after those of its rank before it, or nothing."""
    other: dict[ActionKind, ActionKind] = {"B": "I", "I": "B"}
    if action in seen or (
        action.kind in other and replace(action, kind=other[action.kind]) in seen
    ):
        return f"{action} stands twice"
    kind, why = _FOLLOWS.get(action.kind, (None, ""))
    needed = replace(action, kind=kind) if kind else None
    if needed is not None and needed not in seen:
        return f"{action} stands before {needed}; {why}"
    return ""


def _check_runs(schedule: Schedule, num_stages: int) -> None:
    """Run the ranks against each other without times, and see whether all come to the end."""
    done: set[Action] = set()
    position = [0] * len(schedule)
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule):
            while position[rank] < len(actions):
                action = actions[position[rank]]
                if not _inputs(action, num_stages) <= done:
                    break
                done.add(_result(action))
                position[rank] += 1
                moved = True
    for rank, actions in enumerate(schedule):
        if position[rank] < len(actions):
            action = actions[position[rank]]
            missing = min(map(str, _inputs(action, num_stages) - done))
            _fail(
                schedule, (rank, position[rank]), f"{action} waits for {missing}, which never comes"
            )


def _inputs(action: Action, num_stages: int) -> set[Action]:
    """Return what an action needs from other stages."""
    step = -1 if action.kind == "F" else 1
    stage = action.stage + step
    if action.kind == "W" or not 0 <= stage < num_stages:
        return set()
    return {_result(replace(action, stage=stage))}


def _result(action: Action) -> Action:
    """Return what others wait for: input gradients alone serve as a whole backward does."""
    return replace(action, kind="B") if action.kind == "I" else action


def _fail(schedule: Schedule, place: tuple[int, int], what: str) -> None:
    """Raise with a grid of the ranks, the fault marked."""
    fault_rank, fault = place
    first = max(0, fault - _GRID_COLUMNS // 2)
    width = max((len(str(action)) for actions in schedule for action in actions), default=3)
    rows = []
    for rank, actions in enumerate(schedule):
        cells = [
            f"{action!s:>{width}}" + ("<--" if (rank, position) == (fault_rank, fault) else "")
            for position, action in enumerate(actions)
        ][first : first + _GRID_COLUMNS]
        rows.append(f"rank {rank}: " + " ".join(cells))
    msg = f"schedule: {what}\n" + "\n".join(rows)
    raise ScheduleError(msg)
