"""What a run returns, and its file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from executor.errors import RunError
from planner.whole_file import write_whole
from simulator.timeline import Span, Timeline

RUN_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A run as it was measured and checked."""

    strategy: str
    model: str
    axes: tuple[tuple[str, int], ...]
    num_processes: int
    backend: str
    device: str
    global_batch_size: int
    sequence_length: int
    num_microbatches: int
    steps: int
    losses: tuple[float, ...]
    """Loss of each step, mean over the global batch."""
    reference_losses: tuple[float, ...]
    """The same in one process; empty without a check."""
    max_loss_difference: float | None
    max_gradient_difference: float | None
    """Largest absolute difference over all gradients of the first step."""
    worst_gradient: str | None
    """The parameter whose gradient differs most beside its tolerance."""
    loss_tolerance: float
    """Largest accepted difference of losses, relative to the loss [1]."""
    gradient_tolerance: float
    """Largest accepted difference, relative to the largest entry of that gradient [1]; in bf16 of
    the norm, relative to what rounding changes in one process."""
    passed: bool | None
    """Whether losses and gradients equal one process; None without a check."""
    measured_step_time_s: float
    """Median over steps of the slowest rank [s]."""
    step_times_s: tuple[float, ...]
    predicted_step_time_s: float | None
    """The plan's own prediction where the run has the plan's sizes, else None [s]."""
    peak_memory_bytes: float
    """Largest rank, above what the process held before the model was built [B]."""
    peak_memory_bytes_per_rank: tuple[float, ...]
    breakdown_s: dict[str, float]
    """Mean over ranks of one instrumented step: compute, tensor, data, pipeline, optimizer, idle
    [s]."""
    collectives_issued: dict[str, dict[str, dict[str, float]]]
    """Mesh axis -> kind -> count and bytes of one step of rank 0."""
    foreign_load_cores: float
    """Mean cores that other programs used during the timed steps [1]."""
    notes: tuple[str, ...]
    timeline: Timeline
    precision: str = "fp32"


def result_to_json(result: RunResult) -> dict[str, Any]:
    """Return the object that ``run --json`` prints and run.json holds."""
    data = asdict(result)
    data["schema_version"] = RUN_SCHEMA_VERSION
    data["axes"] = [list(pair) for pair in result.axes]
    return data


def result_from_json(data: dict[str, Any]) -> RunResult:
    """Return the result that :func:`result_to_json` wrote."""
    data = {key: value for key, value in data.items() if key != "schema_version"}
    timeline = data["timeline"]
    data["timeline"] = Timeline(
        spans=tuple(Span(**span) for span in timeline["spans"]),
        num_ranks=timeline["num_ranks"],
        memory=tuple(tuple((at, held) for at, held in rank) for rank in timeline["memory"]),
        origin=timeline["origin"],
    )
    data["axes"] = tuple((axis, size) for axis, size in data["axes"])
    for key in (
        "losses",
        "reference_losses",
        "step_times_s",
        "peak_memory_bytes_per_rank",
        "notes",
    ):
        data[key] = tuple(data[key])
    return RunResult(**data)


def load_run(path: str | Path) -> RunResult:
    """Read a run file.

    Raises
    ------
    RunError
        If the file is missing, no JSON or not written by this version.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; make one with 'paraplan run PLAN.json'") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path}: cannot be read as a run ({error}); run the plan anew") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != RUN_SCHEMA_VERSION:
        raise RunError(
            f"{path}: schema_version is {version!r}; expected {RUN_SCHEMA_VERSION}; "
            "give the run.json that 'paraplan run' wrote"
        )
    try:
        return result_from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a complete run ({error}); run the plan anew") from None


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file so that readers see all of it or none.

    Raises
    ------
    RunError
        If the place cannot be written.
    """
    write_whole(path, text, error=RunError, makes_folders=True)
