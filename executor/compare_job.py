"""A plan's prediction beside a training job of it."""

import json
from pathlib import Path
from typing import Any

from executor.compare import comparison_row
from executor.errors import RunError
from executor.job_result import JOB_SCHEMA_VERSION, JobResult, job_result_from_json
from planner.plan import Plan


def load_job_if_one(path: str | Path) -> JobResult | None:
    """Return the job of a file, None where the file is something else (a run, say).

    Raises
    ------
    RunError
        If it is a job that this version cannot read.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or data.get("kind") != "job":
        return None
    version = data.get("job_schema_version")
    if version != JOB_SCHEMA_VERSION:
        raise RunError(
            f"{path}: job_schema_version is {version!r}; expected {JOB_SCHEMA_VERSION}; "
            "run the job anew"
        )
    try:
        return job_result_from_json(data)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: not a complete job ({error}); run the job anew") from None


def compare_job(plan: Plan, job: JobResult) -> tuple[dict[str, Any], ...]:
    """Set a plan's prediction beside a job: time of a step, tokens per second, memory.

    Parameters
    ----------
    plan : Plan
        The plan with its prediction.
    job : JobResult
        A job of this plan at its own size and precision.

    Returns
    -------
    tuple of dict
        Rows as of :func:`executor.compare.compare`.

    Raises
    ------
    RunError
        If the job is of another plan, size, precision or kind of device, or did no step.
    """
    _check_same(plan, job)
    if job.step_time_s is None or job.tokens_per_s is None or job.peak_memory_bytes is None:
        raise RunError(
            f"the job had done its {job.steps} steps before it went on, so nothing was measured; "
            "ask for more --steps"
        )
    step_time_s = plan.prediction.get("step_time_s")
    tokens = plan.workload.global_batch_size * plan.workload.sequence_length
    per_second = tokens / step_time_s if step_time_s else None
    return (
        comparison_row("step time", "s", step_time_s, job.step_time_s),
        comparison_row("throughput", "tokens/s", per_second, job.tokens_per_s),
        comparison_row(
            "peak memory", "B", plan.prediction.get("peak_memory_bytes"), job.peak_memory_bytes
        ),
    )


def _check_same(plan: Plan, job: JobResult) -> None:
    workload = plan.workload
    axes = tuple((axis, size) for axis, size in plan.mesh.axes if size > 1)
    pairs = (
        ("strategy", job.strategy, plan.strategy, "give the job of this plan"),
        ("model", job.model, plan.model.source, "run it without --scale-down"),
        ("mesh", _shown(job.axes), _shown(axes), "run it on all its ranks"),
        ("global batch", job.global_batch_size, workload.global_batch_size, "run the plan anew"),
        ("sequence", job.sequence_length, workload.sequence_length, "run the plan anew"),
        ("precision", job.precision, workload.precision, "run it with --precision plan"),
    )
    for what, found, wanted, way_out in pairs:
        if found != wanted:
            raise RunError(
                f"the job does not compare with the plan: its {what} is {found}, "
                f"the plan's {wanted}; {way_out}"
            )
    if plan.cluster.device_kind == "gpu" and job.device == "cpu":
        raise RunError(
            f"the plan is for {plan.cluster.device}, the job was on this machine's CPU: times do "
            "not compare; plan with --cluster local"
        )


def _shown(axes: tuple[tuple[str, int], ...]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in axes) or "one process"
