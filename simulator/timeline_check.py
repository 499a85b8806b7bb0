"""Conservation laws that every run of a program obeys."""

from collections import defaultdict

from simulator.program import Program
from simulator.timeline import Timeline

_RELATIVE = 1e-9
"""Rounding that sums of times may show [1]."""


class ConservationError(Exception):
    """A timeline breaks a law that no right simulation can break."""


def check_timeline(program: Program, timeline: Timeline) -> None:
    """Raise unless a timeline is a possible run of a program.

    Parameters
    ----------
    program : Program
        What was to run.
    timeline : Timeline
        What ran.

    Raises
    ------
    ConservationError
        If a law below does not hold; this is a fault of the simulator, not of the user.

    Notes
    -----
    Invariants: each task runs once, no shorter than it lasts; none starts before its inputs end;
    a stream never overlaps itself and keeps its order; the longest chain of dependencies is no
    longer than the makespan and the makespan no longer than all tasks in a row; no link carries
    more bytes than it can; memory starts at its resting level and ends there plus all changes.
    """
    if len(program.tasks) != len(timeline.spans):
        msg = f"{len(program.tasks)} tasks but {len(timeline.spans)} spans"
        raise ConservationError(msg)
    slack_s = _RELATIVE * (_makespan_s(timeline) + 1e-30)
    _check_tasks(program, timeline, slack_s)
    _check_streams(timeline, slack_s)
    _check_bounds(program, timeline, slack_s)
    _check_links(program, timeline)
    _check_memory(program, timeline)


def _makespan_s(timeline: Timeline) -> float:
    """Return the time from the first start to the last end."""
    first = min((span.start_s for span in timeline.spans), default=0.0)
    return max((span.end_s for span in timeline.spans), default=first) - first


def _check_tasks(program: Program, timeline: Timeline, slack_s: float) -> None:
    """Match each task with its span: long enough, and after its inputs."""
    for task, span in zip(program.tasks, timeline.spans, strict=True):
        if (task.name, task.rank, task.stream) != (span.name, span.rank, span.stream):
            msg = f"span {span.name!r} stands in the place of task {task.name!r}"
            raise ConservationError(msg)
        if span.end_s - span.start_s < task.duration_s - slack_s:
            msg = f"task {task.name!r} ran {span.end_s - span.start_s} s of {task.duration_s} s"
            raise ConservationError(msg)
        for other in task.depends_on:
            if timeline.spans[other].end_s > span.start_s + slack_s:
                msg = f"task {task.name!r} started before {timeline.spans[other].name!r} ended"
                raise ConservationError(msg)


def _check_streams(timeline: Timeline, slack_s: float) -> None:
    """Let no stream run two tasks at a time or change their order."""
    free_s: dict[tuple[int, str], float] = {}
    for span in timeline.spans:
        stream = (span.rank, span.stream)
        if span.start_s < free_s.get(stream, span.start_s) - slack_s:
            msg = f"span {span.name!r} overlaps the one before it on rank {span.rank} {span.stream}"
            raise ConservationError(msg)
        free_s[stream] = span.end_s


def _check_bounds(program: Program, timeline: Timeline, slack_s: float) -> None:
    """Fit the longest chain into the makespan, and the makespan into all tasks in a row."""
    finish_s: list[float] = [0.0] * len(program.tasks)
    order = sorted(
        range(len(program.tasks)),
        key=lambda i: (timeline.spans[i].start_s, timeline.spans[i].end_s),
    )
    for index in order:
        task = program.tasks[index]
        ready_s = max((finish_s[other] for other in task.depends_on), default=0.0)
        finish_s[index] = ready_s + task.duration_s
    total_s = sum(span.end_s - span.start_s for span in timeline.spans)
    if max(finish_s, default=0.0) > _makespan_s(timeline) + slack_s:
        msg = f"a chain of {max(finish_s)} s in a makespan of {_makespan_s(timeline)} s"
        raise ConservationError(msg)
    if _makespan_s(timeline) > total_s + slack_s * len(timeline.spans):
        msg = f"makespan {_makespan_s(timeline)} s exceeds all tasks in a row, {total_s} s"
        raise ConservationError(msg)


def _check_links(program: Program, timeline: Timeline) -> None:
    """Let no link carry more bytes than its bandwidth allows from first use to last."""
    bytes_on: dict[str, float] = defaultdict(float)
    for task in program.tasks:
        for link in set(task.links):
            bytes_on[link] += task.num_bytes
    for link, num_bytes in bytes_on.items():
        users = [
            (span.start_s + task.duration_s, span.end_s)
            for task, span in zip(program.tasks, timeline.spans, strict=True)
            if link in task.links
        ]
        open_s = max(end for _, end in users) - min(start for start, _ in users)
        capacity_bytes = program.link_bandwidth_bytes_per_s[link] * open_s
        if num_bytes > capacity_bytes * (1 + _RELATIVE) + _RELATIVE:
            msg = f"link {link!r} carried {num_bytes} B where {capacity_bytes} B fit"
            raise ConservationError(msg)


def _check_memory(program: Program, timeline: Timeline) -> None:
    """Start memory at rest and end it at rest plus all changes."""
    expected = list(program.resting_memory_bytes or (0.0,) * program.num_ranks)
    for rank, points in enumerate(timeline.memory):
        if points and points[0][1] != expected[rank]:
            msg = f"rank {rank} starts at {points[0][1]} B, expected {expected[rank]} B"
            raise ConservationError(msg)
    scale = [abs(value) for value in expected]
    for task in program.tasks:
        change = task.memory_at_start_bytes + task.memory_at_end_bytes
        expected[task.rank] += change
        scale[task.rank] += abs(task.memory_at_start_bytes) + abs(task.memory_at_end_bytes)
    for rank, points in enumerate(timeline.memory):
        if points and abs(points[-1][1] - expected[rank]) > _RELATIVE * (scale[rank] + 1):
            msg = f"rank {rank} ends at {points[-1][1]} B, expected {expected[rank]} B"
            raise ConservationError(msg)
