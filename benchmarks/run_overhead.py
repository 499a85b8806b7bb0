"""What `paraplan run` costs beside a script by hand: ``python benchmarks/run_overhead.py``.

For each strategy the same model is trained by plain torch as one writes it by hand
(run_overhead_by_hand.py), by the trainer of `paraplan run`, and by that of a job with its log. All
three live in the same processes and step in turn, in every order equally often, so that drifts of
the machine meet all alike; what is compared are the times of the same round. Losses must agree.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.run_overhead_rank import BY_HAND, ROUNDS_FILE, SIDES, measure_rank
from benchmarks.run_overhead_ratios import CONFIDENCE, Ratio, ratio_of
from executor.foreign_load import foreign_cores, mark_load
from executor.job_settings import JOB_SETTINGS_FILE, JobSettings, job_to_json
from executor.launch import launch
from executor.learning_rate import LearningRate
from executor.run import settings_of_run
from executor.settings import SETTINGS_FILE, settings_to_json
from paraplan.planning import Options, make_problem, rank_strategy
from planner.make_plan import plan_of_strategy
from planner.plan import Plan

STRATEGIES = {
    "ddp": "dp=2,microbatch=4",
    "fsdp2": "dp=2,microbatch=4,sharding=parameters",
    "tp": "tp=2,microbatch=8",
    "tp+sp": "tp=2,microbatch=8,sequence_parallel=on",
    "1f1b": "pp=2,microbatch=2,schedule=1f1b",
}
GPT = "gpt2?num_heads=8&vocab_size=4096&max_positions=128&dropout=0&tied=false"
SIZES = {
    "large": f"{GPT}&num_layers=4&hidden_size=256",
    "small": f"{GPT}&num_layers=4&hidden_size=64",
}
GLOBAL_BATCH, SEQUENCE_LENGTH = 8, 128
LEARNING_RATE = 1e-3
LOSS_TOLERANCE = 1e-4
"""Accepted difference of losses, relative; sums in another order, carried on by Adam [1]."""
MACHINE = "dgx-a100-80g:1"
"""The plan's cluster: strategies are given, so it decides nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A strategy and a size."""

    kind: str
    size: str

    @property
    def name(self) -> str:
        """As ``--only`` matches it."""
        return f"{self.kind} {self.size}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a case showed."""

    case: Case
    model: str
    strategy: str
    step_times_s: dict[str, float]
    """Median of each side, slowest rank [s]."""
    ratios: dict[str, Ratio]
    """Of step times: the other sides beside the script by hand."""
    cpu_ratios: dict[str, Ratio]
    """Of the CPU time of all ranks and their threads: less noisy, blind to waiting."""
    rounds: int
    max_loss_difference: float
    """Largest over sides and steps, relative [1]."""
    collectives: dict[str, dict[str, list[float]]]
    """Side -> operator -> count and elements of one step of the first rank."""
    foreign_load_cores: float
    """Mean cores that other programs used meanwhile [1]."""


def measure(case: Case, *, rounds: int, model: str | None = None) -> Found:
    """Run a case; ``model`` replaces that of its size."""
    model = model or SIZES[case.size]
    plan = _plan(model, STRATEGIES[case.kind])
    before = mark_load()
    ranks = _run(plan, case.kind, rounds=rounds)
    after = mark_load()
    times = _of_ranks(ranks, "times_s", max)
    cpu = _of_ranks(ranks, "cpu_s", sum)
    return Found(
        case=case, model=model, strategy=plan.strategy, rounds=rounds,
        step_times_s={side: statistics.median(found) for side, found in times.items()},
        ratios={side: ratio_of(times[side], baseline_s=times[SIDES[0]]) for side in SIDES[1:]},
        cpu_ratios={side: ratio_of(cpu[side], baseline_s=cpu[SIDES[0]]) for side in SIDES[1:]},
        max_loss_difference=_loss_difference(ranks),
        collectives=ranks[0]["collectives"],
        foreign_load_cores=foreign_cores(before, after),
    )  # fmt: skip


def _plan(model: str, strategy: str) -> Plan:
    options = Options(
        model=model, cluster=MACHINE, global_batch=GLOBAL_BATCH, seq_len=SEQUENCE_LENGTH,
        precision="fp32", optimizer="adamw", strategy=strategy,
    )  # fmt: skip
    book, ranked = rank_strategy(make_problem(options), options.strategy)
    return plan_of_strategy(book, ranked)


def _run(plan: Plan, kind: str, *, rounds: int) -> list[dict[str, Any]]:
    """Train all sides in new processes, started as `paraplan run` starts its own."""
    with tempfile.TemporaryDirectory(prefix="paraplan-overhead-") as folder:
        run_dir = Path(folder)
        settings = settings_of_run(
            plan, run_dir=run_dir, world=None, scale_down=1, steps=10**6, num_processes=2,
            timeout_s=120.0, learning_rate=LEARNING_RATE, seed=0, check=True, precision="fp32",
        )  # fmt: skip
        job = JobSettings(
            learning_rate=LearningRate(peak=LEARNING_RATE), log_path=str(run_dir / "job.jsonl")
        )
        (run_dir / SETTINGS_FILE).write_text(settings_to_json(settings), encoding="utf-8")
        (run_dir / JOB_SETTINGS_FILE).write_text(job_to_json(job), encoding="utf-8")
        asked = {"kind": kind, "rounds": rounds}
        (run_dir / ROUNDS_FILE).write_text(json.dumps(asked), encoding="utf-8")
        launch(
            f"{measure_rank.__module__}:{measure_rank.__name__}", run_dir, num_processes=2,
            threads_per_process=settings.threads_per_process, progress=lambda *_: None,
        )  # fmt: skip
        return [
            json.loads((run_dir / f"overhead-{rank}.json").read_text(encoding="utf-8"))
            for rank in range(2)
        ]


def _of_ranks(
    ranks: Sequence[dict[str, Any]], key: str, joined: Callable[[tuple[float, ...]], float]
) -> dict[str, list[float]]:
    """Return side -> what each step took, joined over ranks."""
    return {
        side: [joined(step) for step in zip(*(rank[key][side] for rank in ranks), strict=True)]
        for side in SIDES
    }


def _loss_difference(ranks: Sequence[dict[str, Any]]) -> float:
    """Return the largest difference of a step's loss from the script by hand, relative [1].

    A rank knows the loss of its own samples, a job that of the global batch: means over ranks.
    """
    means = {
        side: [
            statistics.fmean(loss for loss in step if loss is not None)
            for step in zip(*(rank["losses"][side] for rank in ranks), strict=True)
        ]
        for side in SIDES
    }
    return max(
        abs(mine - base) / abs(base)
        for side in SIDES[1:]
        for mine, base in zip(means[side], means[SIDES[0]], strict=True)
    )


def table(found: Sequence[Found]) -> list[str]:
    """Return the lines of a Markdown table, its head first."""
    lines = [
        f"| strategy | model | rounds | {' | '.join(SIDES)} |"
        + "".join(f" {side} / by hand |" for side in SIDES[1:])
        + " CPU time, run / by hand | other load |",
        "|---" * (5 + len(SIDES) + len(SIDES[1:])) + "|",
    ]
    for entry in found:
        times = " | ".join(f"{entry.step_times_s[side] * 1e3:.0f} ms" for side in SIDES)
        ratios = " | ".join(
            f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
            for ratio in (*entry.ratios.values(), entry.cpu_ratios["run"])
        )
        key = _key(entry.case)
        load = f"{entry.foreign_load_cores:.2f} cores"
        lines.append(f"{key} {entry.rounds} | {times} | {ratios} | {load} |")
    return lines


def _key(case: Case) -> str:
    return f"| {case.kind} | {case.size} |"


def write(found: Sequence[Found], path: Path) -> None:
    """Write table and provenance; rows of other cases that the file has stay."""
    lines = table(found)
    old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for case in _cases():
        of_case = [line for line in (*old, *lines) if line.startswith(_key(case))]
        rows += of_case[-1:]
    path.write_text("\n".join([*lines[:2], *rows, "", provenance(), ""]), encoding="utf-8")


def _cases() -> list[Case]:
    return [Case(kind=kind, size=size) for size in SIZES for kind in BY_HAND]


def provenance() -> str:
    """Return when, where and by which command the table was made."""
    cores = os.cpu_count() or 1
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d} by `python benchmarks/run_overhead.py` on "
        f"{_processor()}, {cores} cores, torch {torch.__version__}, gloo, 2 processes of "
        f"{max(1, cores // 2)} threads. Times are medians, ratios medians over rounds with their "
        f"{CONFIDENCE:.0%} intervals."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main() -> int:
    """Print the table; 1 if losses differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run cases whose strategy and size hold this")
    parser.add_argument("--rounds", type=int, default=60, help="timed steps of each side")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument(
        "--write", help="also write the table to this Markdown file; rows of other cases stay"
    )
    arguments = parser.parse_args()
    chosen = [case for case in _cases() if arguments.only in case.name]
    if not chosen:
        parser.error(f"--only {arguments.only!r} matches no case; expected a part of one")
    found = []
    for case in chosen:
        found.append(measure(case, rounds=arguments.rounds))
        if not arguments.json:
            print("\n".join(table(found[-1:])[0 if len(found) == 1 else 2 :]), flush=True)
        if arguments.write:
            write(found, Path(arguments.write))
    if arguments.json:
        print(json.dumps([asdict(entry) for entry in found], indent=1))
    return int(any(entry.max_loss_difference > LOSS_TOLERANCE for entry in found))


if __name__ == "__main__":
    sys.exit(main())
