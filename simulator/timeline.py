"""What the engine returns: spans per rank and stream, and what follows from them."""

from dataclasses import dataclass

from simulator.program import Stream, TaskKind


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One task as it ran."""

    name: str
    rank: int
    stream: Stream
    kind: TaskKind
    category: str
    start_s: float
    end_s: float
    stage: int | None = None
    microbatch: int | None = None
    num_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """Spans of a simulated or measured step; both kinds are compared like with like."""

    spans: tuple[Span, ...]
    num_ranks: int
    memory: tuple[tuple[tuple[float, float], ...], ...] = ()
    """Per rank, (time [s], bytes [B]) after each change."""
    origin: str = "simulated"
    """``simulated`` or ``measured``."""
