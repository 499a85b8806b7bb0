"""``paraplan run`` as a training job: data, learning rate, log, checkpoints, restarts."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paraplan.console import print_json, print_text, progress_bar
from paraplan.run_options import RunOptions
from planner.errors import StrategyError

_LOG_EVERY = 10
"""Steps between printed lines where standard error is no terminal [1]."""


def job_verb(options: RunOptions, given: dict[str, Any]) -> None:
    """Train a plan as a job; ``given`` holds the options of a job, None where left out."""
    from executor.job import run_job
    from executor.job_result import job_result_to_json
    from executor.settings import run_precision
    from planner.plan import load_plan

    if options.check:
        raise StrategyError("--check beside options of a job; check first, by a run of 3 steps")
    plan_file = options.plan_file
    plan = load_plan(plan_file)
    target = options.out or plan_file.with_name("job.json")
    precision = run_precision(plan.workload.precision, options.precision)
    job = _settings(given, precision=precision, log=plan_file.with_name("job.jsonl"))
    with _told(job.log_every, quiet=options.as_json) as progress:
        result = run_job(
            plan, job, steps=options.steps, max_restarts=_or(given["max_restarts"], 0),
            scale_down=options.scale_down, num_processes=options.processes,
            timeout_s=options.timeout_s, seed=_or(given["seed"], 0), output=target,
            progress=progress,
        )  # fmt: skip
    if result is None:
        return
    if options.as_json:
        print_json(job_result_to_json(result))
    else:
        print_text(_summary(result, target))


def _settings(given: dict[str, Any], *, precision: Any, log: Path) -> Any:
    from executor.job_settings import JobSettings
    from executor.learning_rate import LearningRate

    rate = LearningRate(
        peak=_or(given["learning_rate"], 1e-3),
        kind=_or(given["lr_schedule"], "constant"),
        warmup_steps=_or(given["warmup_steps"], 0),
        final_fraction=_or(given["final_lr_fraction"], 0.0),
    )
    return JobSettings(
        learning_rate=rate,
        dataset=given["dataset"] or "",
        checkpoint_dir=_absolute(given["checkpoint_dir"]),
        save_every=_or(given["save_every"], 0),
        keep=_or(given["keep"], 2),
        start="resume" if given["resume"] else "new",
        clip_norm=given["clip_norm"],
        precision=precision,
        log_path=_absolute(given["log"] or log),
        log_every=_or(given["log_every"], _LOG_EVERY),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _absolute(path: Path | None) -> str:
    return "" if path is None else str(path.absolute())


@contextmanager
def _told(every: int, *, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows progress: a bar on a terminal, else a line now and then."""
    import sys

    if sys.stderr.isatty() or "RANK" in os.environ:
        with progress_bar(quiet=quiet) as progress:
            yield progress
        return

    def tell(what: str, done: int, total: int) -> None:
        is_step = what.startswith(f"step {done}/")
        if not is_step or done % every == 0:
            print_text(what, to_stderr=True)

    yield tell


def _summary(result: Any, target: Path) -> str:
    axes = " x ".join(f"{axis}={size}" for axis, size in result.axes) or "one process"
    lines = [
        f"trained {result.model} as {axes} on {result.num_processes} processes "
        f"({result.backend}, {result.precision}) to step {result.steps}"
    ]
    if result.losses:
        lines.append(
            f"loss {result.losses[0]:.4f} at step {result.resumed_from_step + 1}, "
            f"{result.losses[-1]:.4f} at step {result.steps}; step {result.step_time_s:.3f} s, "
            f"{result.tokens_per_s:,.0f} tokens/s, "
            f"peak {result.peak_memory_bytes / 1e6:.0f} MB per rank"
        )
    lines += [f"restarted: {cause}" for cause in result.restarts]
    lines += [f"note: {note}" for note in result.notes]
    if result.checkpoint_dir:
        lines.append(f"Checkpoints: {result.checkpoint_dir}")
    return "\n".join([*lines, f"Log: {result.log}", f"Written: {target}"])
