"""Predicted peak memory beside torch's own, on this machine: ``python benchmarks/memory_check.py``.

Every case is planned, then run by the executor on the CPU (gloo between processes), and the peak of
live tensor bytes that torch's allocator reports is held against the prediction. Nothing is timed.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from executor.launch import launch
from executor.settings import SETTINGS_FILE, RunSettings, settings_to_json
from executor.shape import shape_of_run
from paraplan.planning import Options, make_problem, rank_strategy
from paraplan.validation import counted_bytes
from planner.make_plan import plan_of_strategy
from planner.models.resolve import resolve_model
from planner.plan import plan_to_json

MIB = 2.0**20
MEAN_ERROR = 0.03
"""Largest mean error of a check that passes [1]."""
LOW = 0.02
"""How far a prediction may be below what is measured, as too little memory is the costly error [1].
"""
MACHINE = "dgx-a100-80g:1"
"""Only prices of layouts depend on the machine; memory does not."""
GPT = "gpt2?num_layers=6&hidden_size=128&num_heads=4&vocab_size=1024&max_positions=128&dropout=0"
UNTIED = f"{GPT}&tied=false"
LLAMA = "llama3-8b?scale_down=32"
BERT = "bert-large?scale_down=8"
RESNET = "resnet50?scale_down=8"
MLP = "mlp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One run: a model under a strategy."""

    model: str
    strategy: str
    global_batch: int
    seq_len: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Predicted and measured peak of the fullest rank [B]."""

    case: Case
    predicted_bytes: float
    measured_bytes: float
    held_bytes: float
    """Measured between steps on the fullest rank [B]."""
    terms: dict[str, float]

    @property
    def ratio(self) -> float:
        """Predicted over measured [1]."""
        return self.predicted_bytes / self.measured_bytes


def cases() -> tuple[Case, ...]:
    """Return the cases: each model under each recomputation, then the strategies."""
    found = []
    for model, batch, length in ((GPT, 8, 128), (LLAMA, 4, 128), (BERT, 4, 64)):
        found += [
            Case(model=model, strategy=f"microbatch={batch},recompute={recompute}",
                 global_batch=batch, seq_len=length)
            for recompute in ("none", "selective", "full")
        ]  # fmt: skip
    found += [
        Case(model=RESNET, strategy="microbatch=8", global_batch=8),
        Case(model=MLP, strategy="microbatch=32", global_batch=32),
        Case(model=GPT, strategy="microbatch=2", global_batch=8, seq_len=128),
    ]
    for model in (UNTIED, LLAMA):
        found += [
            Case(model=model, strategy=strategy, global_batch=8, seq_len=128)
            for strategy in (
                "dp=2,microbatch=4", "dp=2,microbatch=2", "dp=2,microbatch=4,sharding=parameters",
                "dp=2,microbatch=4,sharding=optimizer",
                "dp=2,microbatch=2,sharding=gradients",
                "dp=2,microbatch=4,sharding=parameters,recompute=full",
                "tp=2,microbatch=4", "tp=2,microbatch=4,sequence_parallel=on",
                "pp=2,microbatch=2,schedule=1f1b",
                "pp=2,microbatch=1,schedule=interleaved,virtual_stages=2",
            )
        ]  # fmt: skip
    return tuple(found)


def check(case: Case) -> Result:
    """Predict a case, run it, and return both peaks."""
    options = Options(
        model=case.model, cluster=MACHINE, global_batch=case.global_batch, seq_len=case.seq_len,
        precision="fp32", optimizer="adam", attention="flash", software="local",
        strategy=case.strategy,
    )  # fmt: skip
    book, ranked = rank_strategy(make_problem(options), options.strategy)
    memory = ranked.evaluation.memory
    plan = plan_of_strategy(book, ranked)
    source = resolve_model(case.model)
    with tempfile.TemporaryDirectory(prefix="paraplan-memory-") as folder:
        run_dir = Path(folder)
        (run_dir / "plan.json").write_text(plan_to_json(plan), encoding="utf-8")
        shape = shape_of_run(
            plan, num_processes=8, scale_down=1, sequence_length=plan.workload.sequence_length,
            global_batch_size=None, tensor_limits=[n for _, n in source.tensor_parallel_limits],
        )  # fmt: skip
        settings = RunSettings(
            plan_path=str(run_dir / "plan.json"), model=source.source, scale_down=1, shape=shape,
            stage_items=tuple(sum(u.last - u.first for u in s.units) for s in plan.stages),
            stage_paths=tuple(s.module_paths[0] if s.module_paths else "" for s in plan.stages),
            steps=1, learning_rate=1e-3, seed=0, check=False, timeout_s=120.0,
            threads_per_process=1, result_path=str(run_dir / "run.json"), local=True,
        )  # fmt: skip
        (run_dir / SETTINGS_FILE).write_text(settings_to_json(settings), encoding="utf-8")
        launch(
            "benchmarks.memory_rank:measure_rank", run_dir, num_processes=shape.num_processes,
            threads_per_process=1, progress=lambda *_: None,
        )  # fmt: skip
        ranks = [
            json.loads((run_dir / f"memory-{rank}.json").read_text(encoding="utf-8"))
            for rank in range(shape.num_processes)
        ]
    return Result(
        case=case,
        predicted_bytes=counted_bytes(memory, kind="allocated"),
        measured_bytes=max(rank["peak_bytes"] for rank in ranks),
        held_bytes=max(rank["held_bytes"] for rank in ranks),
        terms=memory.breakdown_of_largest(),
    )


def kind_of(case: Case) -> str:
    """Return the family of a case, for the summary."""
    if "tp=" in case.strategy:
        return "tensor parallel"
    if "pp=" in case.strategy:
        return "pipeline"
    if "sharding=" in case.strategy:
        return "fully sharded"
    return "data parallel" if "dp=" in case.strategy else "one process"


def main() -> int:
    """Print the table; 1 if a prediction is more than 2 % low or the mean error is above 3 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="run cases whose model and strategy hold this")
    parser.add_argument("--terms", action="store_true", help="print predicted terms")
    arguments = parser.parse_args()
    chosen = [c for c in cases() if arguments.only in f"{c.model} {c.strategy}"]
    if not chosen:
        parser.error(f"--only {arguments.only!r} matches no case; expected a part of one")
    print(f"{'predicted':>10} {'measured':>10} {'ratio':>6}   [MiB]  model, strategy")
    ratios: dict[str, list[float]] = {}
    for case in chosen:
        result = check(case)
        ratios.setdefault(kind_of(case), []).append(result.ratio)
        print(
            f"{result.predicted_bytes / MIB:10.3f} {result.measured_bytes / MIB:10.3f} "
            f"{result.ratio:6.3f}  {case.model} gbs={case.global_batch} {case.strategy}",
            flush=True,
        )
        if arguments.terms:
            terms = ", ".join(f"{k} {v / MIB:.3f}" for k, v in result.terms.items() if v)
            print(f"{'':24}held {result.held_bytes / MIB:.3f}; {terms}")
    return _summary(ratios)


def _summary(ratios: dict[str, list[float]]) -> int:
    """Print mean error and lowest ratio per kind and of all; return the exit status."""
    everything = [ratio for found in ratios.values() for ratio in found]
    for kind, found in (*ratios.items(), ("all", everything)):
        print(f"{kind:16} {len(found):3} cases: mean error {_mean_error(found):5.1%}, "
              f"lowest {min(found):.3f}")  # fmt: skip
    return int(_mean_error(everything) > MEAN_ERROR or min(everything) < 1.0 - LOW)


def _mean_error(ratios: list[float]) -> float:
    return sum(abs(ratio - 1.0) for ratio in ratios) / len(ratios)


if __name__ == "__main__":
    sys.exit(main())
