"""What the engine eats: tasks in stream order, with dependencies and links."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

TaskKind = Literal["compute", "collective", "send", "host"]
Stream = Literal["compute", "tensor", "data", "pipeline", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One thing that occupies one stream of one rank.

    A stream runs its tasks in the order in which they stand in the program, as a CUDA stream does.
    A task starts when its stream is free and all of ``depends_on`` have ended. It lasts
    ``duration_s``; where ``links`` is not empty it also moves ``num_bytes`` over all those shared
    links (max-min fair) after ``duration_s`` of latency.
    """

    name: str
    rank: int
    stream: Stream
    kind: TaskKind
    duration_s: float
    depends_on: tuple[int, ...] = ()
    """Positions of other tasks in :attr:`Program.tasks`."""
    num_bytes: float = 0.0
    links: tuple[str, ...] = ()
    memory_at_start_bytes: float = 0.0
    """Change of the rank's memory when the task starts [B]."""
    memory_at_end_bytes: float = 0.0
    """Change of the rank's memory when the task ends [B]."""
    category: str = "compute"
    """What the time is for: compute, tensor, data, pipeline, context, expert, optimizer, input."""
    stage: int | None = None
    microbatch: int | None = None
    num_flops: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """An ordered program of tasks over ranks."""

    tasks: tuple[Task, ...]
    num_ranks: int
    link_bandwidth_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    resting_memory_bytes: tuple[float, ...] = ()
    """Memory of each rank before the first task: parameters, gradients, optimizer state [B]."""
