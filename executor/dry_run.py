"""Play a plan's whole world on one machine and compare torch's collectives with the simulator's."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from executor.checks import check_model_splits, check_plan_runs_here
from executor.dry_run_counts import NOTHING, Counts, added
from executor.dry_run_fake import check_torch_can_fake
from executor.dry_run_known import known_differences
from executor.dry_run_model import TinyModel, tiny_model
from executor.dry_run_position import KnownDifference
from executor.dry_run_rank import PROBES_FILE, Issued, load_issued
from executor.dry_run_simulated import SimulatedStep, simulated_on, simulated_step
from executor.launch import Progress, launch
from executor.settings import SETTINGS_FILE, RunPrecision, RunSettings, settings_to_json
from executor.shape import RunShape, shape_of_run
from planner.plan import Plan, plan_to_json
from planner.strategy import Strategy, parse_strategy
from planner.tracing import trace_model

_ROUNDING = 1e-9
"""Share by which sums of bytes may differ [1]."""
_AT_ONCE = 4
"""Ranks that are played at the same time [1]."""
_FEWEST_MICROBATCHES = 2
_PLAN_FILE = "plan.json"
_NOTES = ("dropout is off, as in a checked run",)
_PLAYED_AS: dict[str, RunPrecision] = {
    "fp32": "fp32",
    "tf32": "tf32",
    "bf16": "bf16",
    "fp16": "bf16",
    "fp8": "bf16",
}
"""Precision of a plan -> one that torch runs here and that sends as many bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankComparison:
    """One rank: what the simulator lists, known differences, what torch issued."""

    rank: int
    pipeline_rank: int
    simulated: Counts
    known: tuple[KnownDifference, ...]
    issued: Counts

    @property
    def unexplained(self) -> tuple[str, ...]:
        """One line per collective that differs."""
        expected = added(
            [*self.simulated.items(), *(((k.axis, k.kind), k.change) for k in self.known)]
        )
        lines = []
        for key in sorted({*expected, *self.issued}):
            here, there = self.issued.get(key, NOTHING), expected.get(key, NOTHING)
            slack = _ROUNDING * max(here.num_bytes, there.num_bytes)
            same_bytes = abs(here.num_bytes - there.num_bytes) <= slack
            if here.count != there.count or not same_bytes:
                lines.append(
                    f"rank {self.rank}: axis {key[0]}, {key[1]}: torch issued {here.count:g} with "
                    f"{here.num_bytes:,.0f} B, the simulator says {there.count:g} with "
                    f"{there.num_bytes:,.0f} B (known differences included)"
                )
        return tuple(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """A dry run as it ended."""

    strategy: str
    model: str
    """The narrow model that was played."""
    num_processes: int
    """Ranks of the world, all but the probed ones pretended [1]."""
    num_microbatches: int
    ranks: tuple[RankComparison, ...]
    notes: tuple[str, ...]

    @property
    def differences(self) -> tuple[str, ...]:
        """What neither the simulator nor a known difference explains."""
        return tuple(line for rank in self.ranks for line in rank.unexplained)

    @property
    def matches(self) -> bool:
        """Whether torch issues what the simulator says."""
        return not self.differences


Player = Callable[[tuple[int, ...], Path, Progress], list[Issued]]
"""Plays ranks with the settings of a folder."""


def play_in_processes(probes: tuple[int, ...], run_dir: Path, progress: Progress) -> list[Issued]:
    """Play each rank in a process of its own, a few at a time."""
    issued: list[Issued] = []
    for start in range(0, len(probes), _AT_ONCE):
        batch = probes[start : start + _AT_ONCE]
        progress(f"playing ranks {', '.join(map(str, batch))}", start, len(probes))
        (run_dir / PROBES_FILE).write_text(json.dumps(batch), encoding="utf-8")
        launch(
            "executor.dry_run_rank:run_probe", run_dir, num_processes=len(batch),
            threads_per_process=1, progress=progress,
        )  # fmt: skip
        issued += [load_issued(run_dir, number) for number in range(len(batch))]
    return issued


def dry_run(
    plan: Plan,
    *,
    timeout_s: float = 120.0,
    progress: Progress | None = None,
    play: Player = play_in_processes,
) -> DryRun:
    """Play one step of a plan at its real world size, one rank of every kind.

    The model keeps all its modules and gets tiny widths; no peer exists, nothing is sent.

    Parameters
    ----------
    plan : Plan
        Of any size; no device of it is needed.
    timeout_s : float
        As in a run [s].
    progress : callable, optional
        Told ``(what, done, total)``.
    play : callable
        Plays ranks; in processes of their own if left out.

    Raises
    ------
    RunError
        If the plan cannot be run, or this torch cannot pretend a world.
    """
    check_torch_can_fake()
    strategy = parse_strategy(plan.strategy)
    tiny = tiny_model(
        plan.model.source, sequence_length=plan.workload.sequence_length,
        tensor_size=strategy.tensor_parallel_size, context_size=strategy.context_parallel_size,
    )  # fmt: skip
    shape = _shape(plan, strategy, tiny)
    check_plan_runs_here(plan, sharded_axes=tuple(axis for axis, _ in shape.axes))
    check_model_splits(tiny.source, shape)
    tell = progress or _silent
    with tempfile.TemporaryDirectory(prefix="paraplan-dry-run-") as folder:
        run_dir = Path(folder)
        settings = _settings(plan, shape, tiny, run_dir=run_dir, timeout_s=timeout_s)
        (run_dir / _PLAN_FILE).write_text(plan_to_json(plan), encoding="utf-8")
        (run_dir / SETTINGS_FILE).write_text(settings_to_json(settings), encoding="utf-8")
        tell("tracing the narrow model", 0, 1)
        graph = trace_model(tiny.source, sequence_length=shape.sequence_length)
        step = simulated_step(plan, settings, graph=graph)
        probes = probed_ranks(step)
        issued = play(probes, run_dir, tell)
    return DryRun(
        strategy=plan.strategy, model=tiny.source.source, num_processes=shape.num_processes,
        num_microbatches=shape.num_microbatches,
        notes=(*tiny.notes, *shape.notes, *_NOTES, *_precision_note(plan, settings)),
        ranks=tuple(_compared(step, found) for found in issued),
    )  # fmt: skip


def probed_ranks(step: SimulatedStep) -> tuple[int, ...]:
    """Return one rank of every kind of pipeline position, and the very last rank.

    Positions are of one kind where the simulator lists the same collectives for them.
    """
    size = step.mesh.stage_ranks
    first_of_kind: dict[tuple[object, ...], int] = {}
    for position in range(step.mesh.pp):
        kind = tuple(sorted(simulated_on(step, pipeline_rank=position).items()))
        first_of_kind.setdefault((kind, position == 0, position == step.mesh.pp - 1), position)
    found = [position * size for position in first_of_kind.values()]
    last = step.mesh.pp * size - 1
    return tuple(dict.fromkeys((*found, last)))


def _shape(plan: Plan, strategy: Strategy, tiny: TinyModel) -> RunShape:
    """Return the plan's mesh with microbatches enough to fill its pipeline once."""
    per_step = strategy.data_parallel_size * strategy.microbatch_size
    planned = max(1, plan.workload.global_batch_size // per_step)
    wanted = max(_FEWEST_MICROBATCHES, strategy.pipeline_parallel_size)
    return shape_of_run(
        plan, num_processes=strategy.num_devices, sequence_length=tiny.sequence_length,
        global_batch_size=min(planned, wanted) * per_step,
    )  # fmt: skip


def _settings(
    plan: Plan, shape: RunShape, tiny: TinyModel, *, run_dir: Path, timeout_s: float
) -> RunSettings:
    return RunSettings(
        plan_path=str(run_dir / _PLAN_FILE), model=tiny.source.source, scale_down=1, shape=shape,
        stage_items=tuple(
            sum(units.last - units.first for units in stage.units) for stage in plan.stages
        ),
        stage_paths=tuple(
            stage.module_paths[0] if stage.module_paths else "" for stage in plan.stages
        ),
        steps=1, learning_rate=1e-3, seed=0, check=True, timeout_s=timeout_s,
        threads_per_process=1, result_path="", local=True,
        precision=_PLAYED_AS.get(plan.workload.precision, "fp32"),
    )  # fmt: skip


def _precision_note(plan: Plan, settings: RunSettings) -> tuple[str, ...]:
    planned, played = plan.workload.precision, settings.precision
    return () if played == planned else (f"counted in {played} in place of {planned}",)


def _compared(step: SimulatedStep, issued: Issued) -> RankComparison:
    position = issued.rank // step.mesh.stage_ranks
    simulated = simulated_on(step, pipeline_rank=position)
    known = known_differences(step, simulated, facts=issued.facts, pipeline_rank=position)
    return RankComparison(
        rank=issued.rank, pipeline_rank=position, simulated=simulated, known=tuple(known),
        issued=issued.counts,
    )  # fmt: skip


def _silent(what: str, done: int, total: int) -> None:
    """Drop a message."""
