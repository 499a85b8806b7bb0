"""One rank of a memory check: a few training steps, live tensors counted in the last."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist

from executor.live_tensors import step_memory
from executor.settings import SETTINGS_FILE, load_settings
from executor.worker import join, make_trainer
from planner.models.resolve import resolve_model
from planner.plan import load_plan


def measure_rank(run_dir: Path) -> None:
    """Train some steps and write the live tensor bytes of the last one."""
    settings = load_settings(run_dir / SETTINGS_FILE)
    plan, source = load_plan(settings.plan_path), resolve_model(settings.model)
    device = join(settings, run_dir=run_dir)
    try:
        found = step_memory(
            lambda: make_trainer(plan, settings, source=source, device=device)[0],
            global_batch_size=settings.shape.global_batch_size,
            sequence_length=settings.shape.sequence_length,
        )
    finally:
        dist.destroy_process_group()
    if found is None:
        raise RuntimeError("this build of torch does not tell what its CPU allocator holds")
    path = run_dir / f"memory-{os.environ['RANK']}.json"
    path.write_text(json.dumps(asdict(found)), encoding="utf-8")
