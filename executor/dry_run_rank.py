"""What one probed rank of a dry run does: build its part, play a step, count collectives."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from executor.assemble import assemble
from executor.dry_run_counts import Count, IssuedCollectives, Key, counts_from_json, counts_to_json
from executor.dry_run_facts import Facts, facts_of
from executor.dry_run_fake import join_fake_world, pretended_peers
from executor.dry_run_model import entering_activations
from executor.model_parts import all_stages
from executor.optimizer import ShardOptimizer
from executor.optimizer_choice import optimizer_that_runs
from executor.precision import numerics_of
from executor.rank_mesh import make_mesh
from executor.recording import Recorder
from executor.settings import SETTINGS_FILE, RunSettings, load_settings
from executor.training import Trainer
from planner.models.resolve import resolve_model
from planner.plan import load_plan

PROBES_FILE = "probes.json"
_WARM_STEPS, _WARM_STEPS_OF_DDP = 1, 2
"""Steps before the one that counts: pipeline stages learn shapes in the first, DDP orders its
buckets anew at the start of the second [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Issued:
    """What one rank issued in a step."""

    rank: int
    counts: dict[Key, Count]
    facts: Facts


def run_probe(run_dir: Path) -> None:
    """Play the probe that the host's rank number points to; entry of :mod:`executor.host`."""
    number = int(os.environ["RANK"])
    rank = json.loads((run_dir / PROBES_FILE).read_text(encoding="utf-8"))[number]
    issued = issued_by(rank, load_settings(run_dir / SETTINGS_FILE))
    data = {"rank": rank, "counts": counts_to_json(issued.counts), "facts": asdict(issued.facts)}
    (run_dir / _issued_file(number)).write_text(json.dumps(data), encoding="utf-8")


def load_issued(run_dir: Path, number: int) -> Issued:
    """Return what a probe left in the folder."""
    data = json.loads((run_dir / _issued_file(number)).read_text(encoding="utf-8"))
    return Issued(
        rank=data["rank"], counts=counts_from_json(data["counts"]), facts=Facts(**data["facts"])
    )


def _issued_file(number: int) -> str:
    return f"issued-{number}.json"


def issued_by(rank: int, settings: RunSettings) -> Issued:
    """Return what one rank of the plan's world issues in one training step.

    One call per process: torch keeps meshes of a group that is gone.
    """
    torch.set_num_threads(1)
    shape = settings.shape
    plan, source = load_plan(settings.plan_path), resolve_model(settings.model)
    join_fake_world(rank=rank, world_size=shape.num_processes)
    device = torch.device("cpu")
    ranks = make_mesh(shape, device_type=device.type)
    recorder = Recorder(axis_of_group=ranks.groups())
    entering: dict[int, torch.Tensor] = {}
    if shape.size("pp") > 1:
        with torch.device("meta"):
            stages = all_stages(source.chain(source.build()), settings)
        entering = entering_activations(
            source, shape=shape, stage_paths=stages,
            numerics=numerics_of(settings.precision, software=plan.software),
        )  # fmt: skip
    with pretended_peers(entering):
        assembly = assemble(
            plan, settings, source=source, ranks=ranks, device=device, recorder=recorder
        )
        optimizer = None
        if shape.mode == "train":
            optimizer = ShardOptimizer(
                optimizer_that_runs(shape), list(assembly.parameters().values()),
                learning_rate=settings.learning_rate,
            )  # fmt: skip
        trainer = Trainer(assembly=assembly, ranks=ranks, source=source, optimizer=optimizer,
                          recorder=recorder, device=device)  # fmt: skip
        batch = source.make_batch(shape.global_batch_size, shape.sequence_length, settings.seed)
        has_ddp = isinstance(assembly.module, DistributedDataParallel)
        for _ in range(_WARM_STEPS_OF_DDP if has_ddp else _WARM_STEPS):
            trainer.forward_backward(batch)
            trainer.update()
        axes = ranks.groups() | {str(group.group_name): "pp" for group in assembly.tied.values()}
        issued = IssuedCollectives(axes)
        with issued:
            trainer.forward_backward(batch)
            trainer.update()
    return Issued(rank=rank, counts=issued.counts, facts=facts_of(assembly))
