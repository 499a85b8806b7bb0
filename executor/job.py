"""Train a real job on a plan: data, learning rate, log, checkpoints, restarts."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from executor.checkpoint_files import clear_unfinished, prepare_directory, saved_steps
from executor.errors import RankLostError, RunError
from executor.job_result import JobResult, job_result_from_json, job_result_to_json
from executor.job_settings import JOB_SETTINGS_FILE, JobSettings, check_job, job_to_json
from executor.launch import Progress, launch
from executor.optimizer_choice import check_optimizer_runs
from executor.result import write_atomically
from executor.run import (
    DEFAULT_TIMEOUT_S,
    check_torchrun_world,
    settings_of_run,
    torchrun_world,
)
from executor.run_folder import run_folder
from executor.settings import SETTINGS_FILE, RunSettings, settings_to_json
from planner.plan import Plan

_LOCK = ".lock"


def run_job(
    plan: Plan,
    job: JobSettings,
    *,
    steps: int,
    max_restarts: int = 0,
    scale_down: int = 1,
    num_processes: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    seed: int = 0,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> JobResult | None:
    """Train a plan for many steps, with checkpoints, and go on where a rank was lost.

    Starts the plan's processes on this machine. Under torchrun each process runs its own rank, and
    torchrun does the restarts.

    Parameters
    ----------
    plan : Plan
        What to run.
    job : JobSettings
        Data, learning rate, checkpoints, log.
    steps : int
        Steps of the whole job, those before a resume included [1].
    max_restarts : int
        How often to start again from the last whole checkpoint after a rank was lost [1].
    scale_down : int
        Divisor of the model's sizes [1].
    num_processes : int, optional
        Ranks to use; mesh axes of a larger plan shrink until they fit [1].
    timeout_s : float
        Longest silence of a rank before the attempt is given up [s].
    seed : int
        Of weights, order of samples and dropout.
    output : str or Path, optional
        File for the result.
    progress : callable, optional
        Told ``(what, done, total)`` after each step, save and restart.

    Returns
    -------
    JobResult or None
        None on all ranks but the first of a torchrun run.

    Raises
    ------
    RunError
        If the job cannot run here, or ended before its last step: where, why and what is saved.
    """
    if steps < 1 or scale_down < 1:
        raise RunError(f"steps={steps}, scale_down={scale_down}: expected at least 1 of each")
    check_job(job, steps=steps, max_restarts=max_restarts)
    world = torchrun_world()
    if world is not None and max_restarts:
        raise RunError(
            "--max-restarts under torchrun: give it to torchrun, which does the restarts"
        )
    if plan.workload.mode != "train":
        raise RunError(
            f"the plan has mode={plan.workload.mode}; a job needs a plan with mode=train"
        )
    told = progress or _silent
    with nullcontext() if world is not None else run_folder() as folder:
        settings = settings_of_run(
            plan, run_dir=folder, world=world, scale_down=scale_down, steps=steps,
            num_processes=num_processes, timeout_s=timeout_s, learning_rate=job.learning_rate.peak,
            global_batch_size=plan.workload.global_batch_size if scale_down == 1 else None,
            seed=seed, check=False, precision=job.precision,
        )  # fmt: skip
        check_optimizer_runs(settings.shape)
        if world is not None:
            return _join_torchrun(plan, settings, job, world, output)
        if folder is None:
            raise RuntimeError("processes of this host need a folder to share")
        with _locked(job):
            _check_start(job)
            result = _attempts(settings, job, folder, max_restarts, told)
    if output is not None:
        write_job_result(result, output)
    return result


def write_job_result(result: JobResult, path: str | Path) -> None:
    """Write a result as JSON, whole or not at all."""
    write_atomically(path, json.dumps(job_result_to_json(result), indent=1) + "\n")


def _attempts(
    settings: RunSettings, job: JobSettings, folder: Path, max_restarts: int, progress: Progress
) -> JobResult:
    """Run the job until it ends well, refuses, or has been restarted often enough."""
    causes: list[str] = []
    while True:
        run_dir = folder / f"attempt-{len(causes)}"
        run_dir.mkdir()
        try:
            result = _attempt(settings, replace(job, attempt=len(causes)), run_dir, progress)
            return replace(result, restarts=tuple(causes))
        except RankLostError as error:
            causes.append(str(error))
            if len(causes) > max_restarts:
                times = f" (after {max_restarts} restarts)" if max_restarts else ""
                raise RankLostError(f"{error}{times}; {_way_on(job, causes)}") from None
        progress(f"{causes[-1]}; restart {len(causes)} of {max_restarts}", 0, settings.steps)
        if job.checkpoint_dir:
            job = replace(job, start="resume_if_saved")


def _attempt(
    settings: RunSettings, job: JobSettings, run_dir: Path, progress: Progress
) -> JobResult:
    processes = settings.shape.num_processes
    progress(f"starting {processes} processes", 0, settings.steps)
    (run_dir / SETTINGS_FILE).write_text(settings_to_json(settings), encoding="utf-8")
    (run_dir / JOB_SETTINGS_FILE).write_text(job_to_json(job), encoding="utf-8")
    launch(
        "executor.job_worker:run_local_job_rank", run_dir, num_processes=processes,
        threads_per_process=settings.threads_per_process, progress=progress,
    )  # fmt: skip
    data = json.loads(Path(settings.result_path).read_text(encoding="utf-8"))
    return job_result_from_json(data)


def _way_on(job: JobSettings, causes: list[str]) -> str:
    """Return what is left and what to do, after the last attempt."""
    more = "" if len(causes) > 1 else ", or let it restart with --max-restarts"
    if not job.checkpoint_dir:
        return f"nothing is saved: add --checkpoint-dir and --save-every{more}"
    steps = saved_steps(Path(job.checkpoint_dir))
    if not steps:
        return f"no checkpoint is saved yet: begin again{more}"
    return f"step {steps[-1]} is saved: go on with --resume{more}"


def _check_start(job: JobSettings) -> None:
    """Refuse to begin where something is saved, and to go on where nothing is.

    Raises
    ------
    RunError
        With the flag to add or leave out.
    """
    if not job.checkpoint_dir:
        return
    directory = Path(job.checkpoint_dir)
    steps = saved_steps(directory)
    if job.start == "new" and steps:
        raise RunError(
            f"--checkpoint-dir {directory}: holds checkpoints up to step {steps[-1]}; "
            "go on with --resume, or choose another folder"
        )
    if job.start == "resume" and not steps:
        raise RunError(f"--resume: no checkpoint in {directory}; leave out --resume to begin")


@contextmanager
def _locked(job: JobSettings) -> Iterator[None]:
    """Keep a second job out of the folder of checkpoints while this one runs.

    Raises
    ------
    RunError
        If another job is at work there, or the folder cannot be written.
    """
    if not job.checkpoint_dir:
        yield
        return
    directory = Path(job.checkpoint_dir)
    if job.start == "resume" and not directory.is_dir():
        raise RunError(f"--resume: no folder {directory}; leave out --resume to begin")
    prepare_directory(directory)
    with (directory / _LOCK).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"--checkpoint-dir {directory}: another job is at work there; choose another folder"
            ) from None
        clear_unfinished(directory)
        yield


def _join_torchrun(
    plan: Plan, settings: RunSettings, job: JobSettings, world: int, output: str | Path | None
) -> JobResult | None:
    check_torchrun_world(settings, world)
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt and job.checkpoint_dir:
        job = replace(job, start="resume_if_saved", attempt=attempt)
    elif not attempt:
        _check_start(job)
    from executor.job_worker import run_job_rank

    result = run_job_rank(plan, settings, job, run_dir=None)
    if result is not None and output is not None:
        write_job_result(result, output)
    return result


def _silent(what: str, done: int, total: int) -> None:
    """Drop a message."""
