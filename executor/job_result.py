"""What a training job returns, and its file."""

from dataclasses import asdict, dataclass
from typing import Any

JOB_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """A job that reached its last step."""

    strategy: str
    model: str
    axes: tuple[tuple[str, int], ...]
    num_processes: int
    backend: str
    device: str
    precision: str
    """Of products; weights and optimizer are fp32."""
    global_batch_size: int
    sequence_length: int
    num_microbatches: int
    steps: int
    """Of the whole job [1]."""
    resumed_from_step: int
    """Steps that a checkpoint had done when the last attempt began [1]."""
    losses: tuple[float, ...]
    """Of the steps after it; all steps are in the log."""
    step_time_s: float | None
    """Median of those steps without the first, slowest rank; None if none was left to do [s]."""
    tokens_per_s: float | None
    """At that step time."""
    peak_memory_bytes: float | None
    """Largest rank, above what the process held before the model was built [B]."""
    checkpoint_dir: str | None
    log: str | None
    restarts: tuple[str, ...]
    """Why each attempt before the last one ended."""
    notes: tuple[str, ...]


def job_result_to_json(result: JobResult) -> dict[str, Any]:
    """Return the object that ``run --json`` prints for a job."""
    data = asdict(result)
    data["axes"] = [list(pair) for pair in result.axes]
    return {**data, "kind": "job", "job_schema_version": JOB_SCHEMA_VERSION}


def job_result_from_json(data: dict[str, Any]) -> JobResult:
    """Return the result that :func:`job_result_to_json` wrote."""
    known = {key: value for key, value in data.items() if key not in ("kind", "job_schema_version")}
    known["axes"] = tuple((axis, size) for axis, size in known["axes"])
    for key in ("losses", "restarts", "notes"):
        known[key] = tuple(known[key])
    return JobResult(**known)
