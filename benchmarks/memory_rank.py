"""One rank of a memory check: a few training steps, the last under torch's memory profiler."""

import gc
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function

from executor.assemble import assemble
from executor.optimizer import ShardOptimizer
from executor.rank_mesh import make_mesh
from executor.recording import Recorder
from executor.settings import SETTINGS_FILE, RunSettings, load_settings
from executor.training import Trainer
from planner.models.resolve import resolve_model
from planner.plan import load_plan

NUM_STEPS = 3
"""Two before the measured one: DDP lays out its buckets anew in the second."""
STEP_MARK = "paraplan: measured step"


def measure_rank(run_dir: Path) -> None:
    """Train some steps and write the peak of live tensor bytes during the last one.

    torch's CPU allocator tells the profiler every allocation and release, those inside kernels
    included; their running sum is exact where no other thread releases tensors. It starts before
    the model is built, so that parameters, optimizer state and buckets of the first step are in it.
    """
    settings = load_settings(run_dir / SETTINGS_FILE)
    torch.set_num_threads(1)
    store = dist.FileStore(str(run_dir / "store"), settings.shape.num_processes)  # type: ignore[attr-defined]
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=settings.shape.num_processes)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer = _trainer(settings)
            for step in range(NUM_STEPS):
                batch = trainer.source.make_batch(
                    settings.shape.global_batch_size, settings.shape.sequence_length, step
                )
                if step < NUM_STEPS - 1:
                    trainer.forward_backward(batch)
                    trainer.update()
                    continue
                gc.collect()
                with record_function(STEP_MARK):
                    trainer.forward_backward(batch)
                    trainer.update()
        dist.barrier()
    finally:
        dist.destroy_process_group()
    found = _peak(profiler.profiler.kineto_results.events())
    (run_dir / f"memory-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def _trainer(settings: RunSettings) -> Trainer:
    plan = load_plan(settings.plan_path)
    source = resolve_model(settings.model)
    device = torch.device("cpu")
    ranks = make_mesh(settings.shape, device_type="cpu")
    recorder = Recorder(axis_of_group=ranks.groups(), held_bytes=lambda: 0.0)
    assembly = assemble(
        plan, settings, source=source, ranks=ranks, device=device, recorder=recorder
    )
    optimizer = ShardOptimizer(
        settings.shape.optimizer, list(assembly.parameters().values()),
        learning_rate=settings.learning_rate,
    )  # fmt: skip
    return Trainer(
        assembly=assembly, ranks=ranks, source=source, optimizer=optimizer, recorder=recorder,
        device=device,
    )  # fmt: skip


def _peak(events: list[Any]) -> dict[str, float]:
    """Return what was held before the measured step and the most during it [B]."""
    ordered = sorted(events, key=lambda event: event.start_ns())
    mark = next(event for event in ordered if event.name() == STEP_MARK)
    held = before = peak = 0.0
    for event in ordered:
        if event.name() != "[memory]":
            continue
        held += event.nbytes()
        if event.start_ns() < mark.start_ns():
            before = peak = held
        elif event.start_ns() <= mark.start_ns() + mark.duration_ns():
            peak = max(peak, held)
    return {"held_bytes": before, "peak_bytes": peak}
