"""From recorded regions and collectives to the simulator's spans and a breakdown."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from executor.recording import Collective, Recorder, Region
from simulator.program import Stream
from simulator.timeline import Span

AXIS_CATEGORY = {
    "tp": "tensor", "cp": "context", "ep": "expert", "dp": "data", "pp": "pipeline",
}  # fmt: skip
_AXIS_STREAM: dict[str, Stream] = {
    "tp": "tensor", "cp": "tensor", "ep": "tensor", "dp": "data", "pp": "pipeline",
}  # fmt: skip
BREAKDOWN_KEYS = (
    "compute", "tensor", "context", "expert", "data", "pipeline", "optimizer", "idle",
)  # fmt: skip
_WAIT = "pipeline"


def spans_of(recorder: Recorder, *, rank: int, start_s: float) -> tuple[Span, ...]:
    """Return the spans of one rank, times from ``start_s`` [s].

    A compute region is cut where the main thread stood waiting for a collective, so that compute
    spans hold compute alone, as the simulator's do.
    """
    blocked = sorted((c.blocked_from_s, c.blocked_until_s) for c in recorder.collectives)
    spans: list[Span] = []
    for region in recorder.regions:
        if region.category == _WAIT:
            continue
        for begin, end in _outside(region.start_s, region.end_s, blocked):
            spans.append(_compute_span(region, rank, begin - start_s, end - start_s))
    spans.extend(_collective_span(entry, rank, start_s) for entry in recorder.collectives)
    spans.extend(_pipeline_waits(recorder, spans, rank=rank, start_s=start_s))
    return tuple(sorted(spans, key=lambda span: (span.start_s, span.end_s)))


def _outside(
    start: float, end: float, blocked: Sequence[tuple[float, float]]
) -> Iterable[tuple[float, float]]:
    """Yield the parts of an interval that no blocked interval covers."""
    at = start
    for low, high in blocked:
        if high <= at or low >= end:
            continue
        if low > at:
            yield at, low
        at = max(at, high)
    if at < end:
        yield at, end


def _compute_span(region: Region, rank: int, start_s: float, end_s: float) -> Span:
    return Span(
        name=region.name, rank=rank, stream="compute", kind="compute", category=region.category,
        start_s=start_s, end_s=end_s, stage=region.stage, microbatch=region.microbatch,
    )  # fmt: skip


def _collective_span(entry: Collective, rank: int, start_s: float) -> Span:
    return Span(
        name=entry.kind, rank=rank, stream=_AXIS_STREAM.get(entry.axis, "data"), kind="collective",
        category=AXIS_CATEGORY.get(entry.axis, "data"), start_s=entry.start_s - start_s,
        end_s=entry.end_s - start_s, num_bytes=entry.num_bytes,
    )  # fmt: skip


def _pipeline_waits(
    recorder: Recorder, spans: Sequence[Span], *, rank: int, start_s: float
) -> list[Span]:
    """Return the parts of pipeline regions in which the main thread did nothing else."""
    busy = sorted((span.start_s + start_s, span.end_s + start_s) for span in spans)
    return [
        Span(name="wait for peer", rank=rank, stream="pipeline", kind="send", category=_WAIT,
             start_s=low - start_s, end_s=high - start_s)
        for region in recorder.regions
        if region.category == _WAIT
        for low, high in _outside(region.start_s, region.end_s, busy)
    ]  # fmt: skip


def breakdown_of(recorder: Recorder, spans: Sequence[Span], *, step_s: float) -> dict[str, float]:
    """Return where one rank's main thread spent a step [s]; the parts add up to ``step_s``."""
    parts = dict.fromkeys(BREAKDOWN_KEYS, 0.0)
    for span in spans:
        if span.stream == "compute" or span.kind == "send":
            parts[span.category] = parts.get(span.category, 0.0) + span.end_s - span.start_s
    for entry in recorder.collectives:
        category = AXIS_CATEGORY.get(entry.axis, "data")
        parts[category] += entry.blocked_until_s - entry.blocked_from_s
    parts["idle"] = max(0.0, step_s - sum(parts.values()))
    return parts


def collective_counts(recorder: Recorder) -> dict[str, dict[str, dict[str, float]]]:
    """Return mesh axis -> kind -> count and bytes."""
    counts: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
    for entry in recorder.collectives:
        found = counts[entry.axis].setdefault(entry.kind, {"count": 0, "bytes": 0.0})
        found["count"] += 1
        found["bytes"] += entry.num_bytes
    return {axis: dict(kinds) for axis, kinds in counts.items()}
