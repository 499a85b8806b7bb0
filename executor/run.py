"""Run a plan: as local processes that we start, or as one rank under torchrun."""

import json
import os
from contextlib import nullcontext
from math import prod
from pathlib import Path

from executor.checks import check_hardware, check_model_splits, check_plan_runs_here
from executor.errors import RunError
from executor.launch import Progress, launch
from executor.result import RunResult, load_run, result_to_json, write_atomically
from executor.run_folder import run_folder
from executor.settings import (
    SETTINGS_FILE,
    RunPrecision,
    RunSettings,
    progress_total,
    settings_to_json,
)
from executor.shape import MAX_LOCAL_PROCESSES, RunShape, fitted_to_chain, shape_of_run
from planner.models.resolve import resolve_model
from planner.models.source import ModelSource
from planner.plan import Plan, plan_to_json

DEFAULT_TIMEOUT_S = 300.0
_RESULT_FILE = "run.json"
_PLAN_FILE = "plan.json"


def run_plan(
    plan: Plan,
    *,
    scale_down: int = 1,
    steps: int = 3,
    num_processes: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    global_batch_size: int | None = None,
    sequence_length: int | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
    check: bool = True,
    precision: RunPrecision = "fp32",
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> RunResult | None:
    """Execute a plan, measure it, and compare it with one process.

    Starts the plan's processes on this machine (gloo on the CPU, NCCL with enough GPUs). Under
    torchrun each process runs its own rank instead.

    Parameters
    ----------
    plan : Plan
        What to run.
    scale_down : int
        Divisor of the model's sizes; 1 runs it as it is [1].
    steps : int
        Timed training steps; one more is instrumented [1].
    num_processes : int, optional
        Ranks to use. Mesh axes of a larger plan shrink one by one until they fit; at most
        :data:`executor.shape.MAX_LOCAL_PROCESSES` where left out [1].
    timeout_s : float
        Longest silence of a rank before the run is given up [s].
    global_batch_size, sequence_length : int, optional
        In place of the plan's (or of the scaled model's) [1].
    learning_rate : float
        Step size [1].
    seed : int
        Of weights and batches.
    check : bool
        Also train in one process, and compare losses and first gradients.
    precision : str
        ``fp32``, ``tf32`` or ``bf16``; in fp32 a wrong split stands out most.
    output : str or Path, optional
        File for the result, written at once when all is done.
    progress : callable, optional
        Told ``(what, done, total)`` after each step.

    Returns
    -------
    RunResult or None
        None on all ranks but the first of a torchrun run.

    Raises
    ------
    RunError
        If the plan cannot run here, or a rank failed: which one and why.
    """
    if steps < 1 or scale_down < 1:
        raise RunError(f"steps={steps}, scale_down={scale_down}: expected at least 1 of each")
    world = torchrun_world()
    with nullcontext() if world is not None else run_folder() as run_dir:
        settings = settings_of_run(
            plan, run_dir=run_dir, world=world, scale_down=scale_down, steps=steps,
            num_processes=num_processes, timeout_s=timeout_s, learning_rate=learning_rate,
            global_batch_size=global_batch_size, sequence_length=sequence_length, seed=seed,
            check=check, precision=precision,
        )  # fmt: skip
        if world is not None:
            result = _join_torchrun(plan, settings, world)
        elif run_dir is None:
            raise RuntimeError("processes of this host need a folder to share")
        else:
            result = _run_locally(settings, run_dir, progress or _silent)
    if result is not None and output is not None:
        write_atomically(output, json.dumps(result_to_json(result), indent=1) + "\n")
    return result


def settings_of_run(
    plan: Plan,
    *,
    run_dir: Path | None,
    world: int | None,
    scale_down: int,
    steps: int,
    num_processes: int | None,
    timeout_s: float,
    learning_rate: float,
    seed: int,
    check: bool,
    precision: RunPrecision = "fp32",
    global_batch_size: int | None = None,
    sequence_length: int | None = None,
) -> RunSettings:
    """Check that a plan runs here; write it into the run's folder, if any; return what ranks need.

    ``world`` is what :func:`torchrun_world` found; the other parameters are those of
    :func:`run_plan`.

    Raises
    ------
    RunError
        If the plan cannot run here.
    """
    if world is not None and scale_down == 1 and num_processes is None:
        check_hardware(plan)
    source = _scaled_source(plan, scale_down)
    length = sequence_length or min(
        plan.workload.sequence_length,
        source.default_sequence_length if scale_down > 1 else plan.workload.sequence_length,
    )
    shape = shape_of_run(
        plan,
        num_processes=num_processes or (MAX_LOCAL_PROCESSES if world is None else _planned(plan)),
        scale_down=scale_down,
        sequence_length=length,
        global_batch_size=global_batch_size,
        tensor_limits=[limit for _, limit in source.tensor_parallel_limits],
    )
    shape = _fitted(shape, source)
    check_plan_runs_here(plan, sharded_axes=tuple(axis for axis, _ in shape.axes))
    check_model_splits(source, shape)
    settings = RunSettings(
        plan_path=str(run_dir / _PLAN_FILE) if run_dir else "", model=source.source,
        scale_down=scale_down, shape=shape,
        stage_items=tuple(
            sum(units.last - units.first for units in stage.units) for stage in plan.stages
        ),
        stage_paths=tuple(
            stage.module_paths[0] if stage.module_paths else "" for stage in plan.stages
        ),
        steps=steps, learning_rate=learning_rate, seed=seed, check=check, timeout_s=timeout_s,
        threads_per_process=max(1, (os.cpu_count() or 1) // shape.num_processes),
        result_path=str(run_dir / _RESULT_FILE) if run_dir else "", local=world is None,
        precision=precision,
    )  # fmt: skip
    if run_dir is not None:
        (run_dir / _PLAN_FILE).write_text(plan_to_json(plan), encoding="utf-8")
    return settings


def _fitted(shape: RunShape, source: ModelSource) -> RunShape:
    """Return the shape with its virtual stages fitted to the chain, where stages are virtual."""
    if shape.virtual_stages == 1:
        return shape
    import torch

    with torch.device("meta"):
        chain = source.chain(source.build())
    return shape if chain is None else fitted_to_chain(shape, num_items=len(chain))


def _scaled_source(plan: Plan, scale_down: int) -> ModelSource:
    source = resolve_model(plan.model.source)
    if scale_down == 1:
        return source
    if source.scale_down is None:
        raise RunError(f"{source.source}: has no sizes to scale down; leave out --scale-down")
    return source.scale_down(scale_down)


def _run_locally(settings: RunSettings, run_dir: Path, progress: Progress) -> RunResult:
    processes = settings.shape.num_processes
    progress(f"starting {processes} processes", 0, progress_total(settings))
    (run_dir / SETTINGS_FILE).write_text(settings_to_json(settings), encoding="utf-8")
    launch(
        "executor.worker:run_local_rank", run_dir, num_processes=processes,
        threads_per_process=settings.threads_per_process, progress=progress,
    )  # fmt: skip
    return load_run(run_dir / _RESULT_FILE)


def _planned(plan: Plan) -> int:
    return prod(size for _, size in plan.mesh.axes)


def _silent(what: str, done: int, total: int) -> None:
    """Drop a message."""


def torchrun_world() -> int | None:
    """Return the number of processes torchrun started, None outside torchrun."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["WORLD_SIZE"])


def check_torchrun_world(settings: RunSettings, world: int) -> None:
    """Refuse a number of processes that is not the plan's."""
    wanted = settings.shape.num_processes
    if wanted != world:
        raise RunError(
            f"plan wants {wanted} processes, torchrun started {world}; "
            f"use torchrun --nproc-per-node {wanted}, or --processes {world} to shrink the plan"
        )


def _join_torchrun(plan: Plan, settings: RunSettings, world: int) -> RunResult | None:
    check_torchrun_world(settings, world)
    from executor.worker import run_rank

    return run_rank(plan, settings, run_dir=None)
