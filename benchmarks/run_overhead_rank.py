"""One rank of run_overhead.py: the same training by hand, as a run and as a job, step by step."""

import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from benchmarks import run_overhead_by_hand as by_hand
from executor.job_settings import JOB_SETTINGS_FILE, load_job
from executor.job_worker import TrainedStep, prepare_work, tell, train_step
from executor.settings import SETTINGS_FILE, RunSettings, load_settings
from executor.training import rows_of
from executor.worker import join, make_trainer
from planner.models.resolve import resolve_model
from planner.models.source import ModelSource
from planner.plan import load_plan

ROUNDS_FILE = "rounds.json"
SIDES = ("by hand", "again", "run", "job")
"""``again`` is the script by hand a second time: how far two equal trainings are apart here."""
WARM_UP = 3
"""Steps of each side that are not timed: DDP lays out its buckets anew in the second [1]."""
_LIBRARY = "gloo:"
BY_HAND: dict[str, Callable[..., by_hand.TrainStep]] = {
    "ddp": by_hand.data_parallel,
    "fsdp2": by_hand.fully_sharded,
    "tp": partial(by_hand.tensor_parallel, sequence_parallel=False),
    "tp+sp": partial(by_hand.tensor_parallel, sequence_parallel=True),
    "1f1b": by_hand.pipeline,
}
Step = Callable[[int], float | None]


def measure_rank(run_dir: Path) -> None:
    """Build all sides, train them in turn, and write times, losses and collectives."""
    settings = load_settings(run_dir / SETTINGS_FILE)
    asked = json.loads((run_dir / ROUNDS_FILE).read_text(encoding="utf-8"))
    join(settings, run_dir=run_dir)
    try:
        steps = {
            "by hand": _step_by_hand(settings, kind=asked["kind"]),
            "again": _step_by_hand(settings, kind=asked["kind"]),
            "run": _step_of_run(settings),
            "job": _step_of_job(settings, run_dir),
        }
        found = _measure(steps, rounds=asked["rounds"])
        dist.barrier()
    finally:
        dist.destroy_process_group()
    path = run_dir / f"overhead-{os.environ['RANK']}.json"
    path.write_text(json.dumps(found), encoding="utf-8")


def _measure(steps: dict[str, Step], *, rounds: int) -> dict[str, Any]:
    """Train all sides alternately, in each order equally often."""
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float | None]] = {side: [] for side in SIDES}
    orders = itertools.cycle(itertools.permutations(SIDES))
    for number in range(WARM_UP + rounds):
        for side in next(orders):
            dist.barrier()
            used, start = time.process_time(), time.perf_counter()
            losses[side].append(steps[side](number))
            times[side].append(time.perf_counter() - start)
            cpu[side].append(time.process_time() - used)
    collectives = {side: _collectives(steps[side], WARM_UP + rounds) for side in SIDES}
    return {
        "times_s": {side: found[WARM_UP:] for side, found in times.items()},
        "cpu_s": {side: found[WARM_UP:] for side, found in cpu.items()},
        "losses": losses,
        "collectives": collectives,
    }


def _batch(source: ModelSource, settings: RunSettings, number: int) -> Any:
    shape = settings.shape
    return source.make_batch(shape.global_batch_size, shape.sequence_length, settings.seed + number)


def _step_by_hand(settings: RunSettings, *, kind: str) -> Step:
    source, shape = resolve_model(settings.model), settings.shape
    torch.manual_seed(settings.seed)
    train = BY_HAND[kind](
        source.build(), loss=source.loss, num_microbatches=shape.num_microbatches,
        learning_rate=settings.learning_rate,
    )  # fmt: skip
    share = dist.get_rank() if shape.size("dp") > 1 else 0

    def step(number: int) -> float | None:
        own = rows_of(_batch(source, settings, number), share, shape.size("dp"))
        return train(own.inputs[0], own.targets)

    return step


def _step_of_run(settings: RunSettings) -> Step:
    source = resolve_model(settings.model)
    trainer, _ = make_trainer(
        load_plan(settings.plan_path), settings, source=source, device=torch.device("cpu")
    )

    def step(number: int) -> float | None:
        loss = trainer.forward_backward(_batch(source, settings, number))
        trainer.update()
        return loss

    return step


def _step_of_job(settings: RunSettings, run_dir: Path) -> Step:
    """Return a job's step, which tells of the step before: its loss is this rank's own."""
    job = load_job(run_dir / JOB_SETTINGS_FILE)
    plan = load_plan(settings.plan_path)
    work = prepare_work(plan, settings, job, device=torch.device("cpu"))
    untold: list[TrainedStep] = []

    def step(number: int) -> float | None:
        untold.append(train_step(work, number))
        if len(untold) > 1:
            tell(work, untold.pop(0))
        return untold[-1].loss

    return step


def _collectives(step: Step, number: int) -> dict[str, list[float]]:
    """Return kind -> count and bytes of one more step, as the library is called: input sizes."""
    dist.barrier()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step(number)
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for event in profiler.events() or ():
        if event.name.startswith(_LIBRARY):
            entry = found[event.name.removeprefix(_LIBRARY)]
            entry[0] += 1
            entry[1] += sum(torch.Size(shape).numel() for shape in event.input_shapes)
    return dict(found)
