"""A timeline as a Chrome trace, which Perfetto and ``chrome://tracing`` open."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from simulator.errors import ProgramError
from simulator.program import Stream
from simulator.timeline import Span, Timeline

_MICROSECONDS = 1e6
"""The format counts in microseconds [1/s]."""
_STREAMS = get_args(Stream)


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """Return a timeline in the trace event format.

    A rank is a process, a stream is a thread, a span is a complete event, memory is a counter.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    dict
        JSON-ready; times are microseconds from the start, exact seconds stand in ``args``.

    References
    ----------
    .. [1] N. Duca, D. Sinclair, "Trace event format", Google, 2016.

    """
    processes = [
        TraceProcess(number=rank, name=f"rank {rank}") for rank in range(timeline.num_ranks)
    ]
    return {
        "traceEvents": trace_events(timeline, processes=processes),
        "displayTimeUnit": "ms",
        "metadata": {"num_ranks": timeline.num_ranks, "origin": timeline.origin},
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceProcess:
    """How a rank is shown: one process of the trace."""

    number: int
    """Its identity and its place from the top."""
    name: str


def trace_events(timeline: Timeline, *, processes: Sequence[TraceProcess]) -> list[dict[str, Any]]:
    """Return the events of a timeline whose ranks are shown as the given processes, in order.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.
    processes : sequence of TraceProcess
        One per rank.

    Returns
    -------
    list of dict
        Every event has ``ph``, ``ts``, ``pid`` and ``tid``.

    """
    events: list[dict[str, Any]] = []
    for process in processes:
        events.append(_named("process_name", process.number, 0, process.name))
        order = _named("process_sort_index", process.number, 0, "")
        events.append({**order, "args": {"sort_index": process.number}})
    of_rank = [process.number for process in processes]
    threads = sorted({(span.rank, _STREAMS.index(span.stream)) for span in timeline.spans})
    events += [
        _named("thread_name", of_rank[rank], number, _STREAMS[number]) for rank, number in threads
    ]
    events += [_span_event(span, process=of_rank[span.rank]) for span in timeline.spans]
    events += [
        {
            "name": "memory", "ph": "C", "pid": of_rank[rank], "tid": 0,
            "ts": time_s * _MICROSECONDS, "args": {"bytes": value}, "time_s": time_s,
        }
        for rank, points in enumerate(timeline.memory)
        for time_s, value in points
    ]  # fmt: skip
    return events


def chrome_json(timeline: Timeline) -> str:
    """Return a timeline as the text of a trace file.

    Parameters
    ----------
    timeline : Timeline
        Simulated or measured.

    Returns
    -------
    str
        JSON; the same timeline always gives the same text.

    """
    return json.dumps(chrome_trace(timeline), separators=(",", ":"))


def timeline_from_chrome(trace: Mapping[str, Any]) -> Timeline:
    """Return the timeline of a trace that :func:`chrome_trace` wrote.

    Parameters
    ----------
    trace : mapping
        The parsed JSON.

    Returns
    -------
    Timeline
        Equal to the one that was written.

    Raises
    ------
    ProgramError
        If the trace comes from another tool.

    """
    metadata = trace.get("metadata", {})
    if "num_ranks" not in metadata or "origin" not in metadata:
        msg = (
            "trace: metadata holds no num_ranks and origin, expected a trace written by paraplan; "
            "write it with chrome_json"
        )
        raise ProgramError(msg)
    spans = []
    memory: list[list[tuple[float, float]]] = [[] for _ in range(metadata["num_ranks"])]
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            spans.append(Span(name=event["name"], rank=event["pid"], **event["args"]))
        elif event["ph"] == "C":
            memory[event["pid"]].append((event["time_s"], event["args"]["bytes"]))
    has_memory = any(memory)
    return Timeline(
        spans=tuple(spans),
        num_ranks=metadata["num_ranks"],
        memory=tuple(tuple(points) for points in memory) if has_memory else (),
        origin=metadata["origin"],
    )


def _named(what: str, rank: int, thread: int, name: str) -> dict[str, Any]:
    """Return the event that names a process or a thread."""
    return {"name": what, "ph": "M", "ts": 0, "pid": rank, "tid": thread, "args": {"name": name}}


def _span_event(span: Span, *, process: int) -> dict[str, Any]:
    """Return the complete event of a span."""
    return {
        "name": span.name,
        "cat": span.category,
        "ph": "X",
        "pid": process,
        "tid": _STREAMS.index(span.stream),
        "ts": span.start_s * _MICROSECONDS,
        "dur": (span.end_s - span.start_s) * _MICROSECONDS,
        "args": {
            "stream": span.stream,
            "kind": span.kind,
            "category": span.category,
            "start_s": span.start_s,
            "end_s": span.end_s,
            "stage": span.stage,
            "microbatch": span.microbatch,
            "num_bytes": span.num_bytes,
        },
    }
