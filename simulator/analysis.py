"""What a timeline says: makespan, idle time, exposed communication, memory, critical path."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import cast

from simulator.program import Stream
from simulator.timeline import Span, Timeline
from simulator.timeline_check import check_timeline

__all__ = [
    "bubble_fraction", "busy_s", "check_timeline", "critical_path", "exposed_communication_s",
    "makespan_s", "peak_memory_bytes",
]  # fmt: skip

Interval = tuple[float, float]
_TOLERANCE = 1e-9
"""Two times nearer than this share of the makespan are one [1]."""


def makespan_s(timeline: Timeline) -> float:
    """Return the time from the first start to the last end.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    float
        Duration of the whole [s]; 0 without spans.

    """
    if not timeline.spans:
        return 0.0
    first = min(span.start_s for span in timeline.spans)
    return max(span.end_s for span in timeline.spans) - first


def busy_s(timeline: Timeline) -> dict[tuple[int, Stream], float]:
    """Return how long each stream was busy.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    dict
        By rank and stream, the time some task ran [s].

    """
    intervals: dict[tuple[int, Stream], list[Interval]] = defaultdict(list)
    for span in timeline.spans:
        intervals[span.rank, span.stream].append((span.start_s, span.end_s))
    return {key: _length(_union(found)) for key, found in sorted(intervals.items())}


def bubble_fraction(timeline: Timeline) -> float:
    r"""Return the idle share of the compute streams.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    float
        Idle time over all ranks by *makespan times ranks* (the whole, not the busy time) [1].

    Notes
    -----
    For GPipe and 1F1B with equal stages this is :math:`(p - 1) / (m + p - 1)`; Megatron's
    :math:`(p - 1) / m` is the same idle time over the *busy* time (arXiv:2104.04473, section 2.2).
    Waiting for exposed communication counts as idle too.

    """
    total_s = makespan_s(timeline) * timeline.num_ranks
    if total_s == 0:
        return 0.0
    busy = sum(value for (_, stream), value in busy_s(timeline).items() if stream == "compute")
    return 1 - busy / total_s


def exposed_communication_s(timeline: Timeline) -> dict[str, float]:
    """Return, by category, how long communication ran while its rank's compute stream was idle.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    dict of str to float
        Mean over ranks per category of collectives, sends and host transfers [s]. Two categories
        that run at the same idle time both count it.

    """
    exposed: dict[str, float] = defaultdict(float)
    by_rank: dict[int, list[Span]] = defaultdict(list)
    for span in timeline.spans:
        by_rank[span.rank].append(span)
    for spans in by_rank.values():
        compute = _union((s.start_s, s.end_s) for s in spans if s.stream == "compute")
        for category in sorted({s.category for s in spans if s.stream != "compute"}):
            running = _union(
                (s.start_s, s.end_s)
                for s in spans
                if s.category == category and s.stream != "compute"
            )
            exposed[category] += _length(running) - _overlap(running, compute)
    return {name: value / timeline.num_ranks for name, value in sorted(exposed.items())}


def peak_memory_bytes(timeline: Timeline) -> tuple[float, ...]:
    """Return the largest memory of each rank.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured, with memory curves.

    Returns
    -------
    tuple of float
        Peak per rank [B].

    """
    return tuple(max((value for _, value in points), default=0.0) for points in timeline.memory)


def critical_path(timeline: Timeline) -> tuple[Span, ...]:
    """Return a chain of spans that explains the makespan.

    From the last end walk back, each time to a span that ended when the current one started, one
    of the same rank first. A gap (a span that started when nothing ended) ends the walk.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    tuple of Span
        Spans in order of time.

    Notes
    -----
    The timeline holds no dependencies, so a span that ended at the same instant by chance can
    stand in the chain; its length is right all the same.

    """
    if not timeline.spans:
        return ()
    tolerance = _TOLERANCE * makespan_s(timeline)
    by_end = sorted(timeline.spans, key=lambda span: span.end_s)
    ends = [span.end_s for span in by_end]
    current = by_end[-1]
    path, seen = [current], {id(current)}
    while True:
        low = bisect_left(ends, current.start_s - tolerance)
        high = bisect_left(ends, current.start_s + tolerance, lo=low)
        while high < len(ends) and ends[high] <= current.start_s + tolerance:
            high += 1
        candidates = [span for span in by_end[low:high] if id(span) not in seen]
        if not candidates:
            return tuple(reversed(path))
        current = _nearest(candidates, current)
        path.append(current)
        seen.add(id(current))


def _nearest(candidates: Sequence[Span], current: Span) -> Span:
    """Return the candidate that most likely held the current span up."""
    return min(
        candidates,
        key=lambda span: (
            span.rank != current.rank,
            span.stream != current.stream,
            span.microbatch != current.microbatch,
            -(span.end_s - span.start_s),
        ),
    )


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the intervals without overlaps, in order."""
    merged: list[list[float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return [cast("Interval", tuple(pair)) for pair in merged]


def _length(intervals: Sequence[Interval]) -> float:
    """Return the total length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def _overlap(left: Sequence[Interval], right: Sequence[Interval]) -> float:
    """Return the length two ordered sets of disjoint intervals have in common."""
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return total
