"""Dry runs of small models under every kind of split: ``python benchmarks/dry_run_sweep.py``.

Each cell says whether torch issues what the simulator says. ``--write-docs`` writes the table and
the reasons of what is refused into docs/run.md.
"""

import argparse
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from executor.dry_run import DryRun, dry_run
from executor.dry_run_forks import play_in_forks
from executor.dry_run_text import dry_run_to_json
from hardware_profiles.errors import ParaplanError
from paraplan.planning import Options, simulate

CLUSTER = "dgx-a100-80g:1"
GLOBAL_BATCH = 16
PAGE = Path(__file__).resolve().parents[1] / "docs" / "run.md"
BEGIN = "<!-- written by python benchmarks/dry_run_sweep.py --write-docs; do not edit -->"
END = "<!-- end of the sweep -->"

_HF_ENCODER = "num_hidden_layers=2&hidden_size=64&num_attention_heads=4&intermediate_size=128"
_HF_DECODER = f"{_HF_ENCODER}&num_key_value_heads=4&vocab_size=512"
_HF_MIXTRAL = f"{_HF_DECODER}&num_local_experts=4"
_HF_T5 = "d_model=64&d_kv=16&d_ff=128&num_layers=2&num_decoder_layers=2&num_heads=4&vocab_size=512"
_HF_RESNET = "embedding_size=16&hidden_sizes=[16,32]&depths=[1,1]"
MODELS = (
    "gpt2?num_layers=4", "gpt3-1.3b?num_layers=4&tied=false", "llama3-8b?num_layers=4",
    "bert-base?num_layers=4", "vit-large?num_layers=4", "resnet50", "alexnet", "vgg11",
    "inception-v3", "lstm", "mlp",
    "dlrm?table_rows=[1000,2000]&embedding_size=32&bottom_widths=[64]&top_widths=[64]",
    "hf:gpt2?n_layer=2&n_embd=64&n_head=4&vocab_size=512",
    f"hf:llama?{_HF_DECODER}", f"hf:bert?{_HF_ENCODER}&vocab_size=512",
    f"hf:vit?{_HF_ENCODER}&image_size=32&patch_size=8", f"hf:resnet?{_HF_RESNET}",
    f"t5-large?{_HF_T5}", f"mixtral-8x7b?{_HF_MIXTRAL}",
)  # fmt: skip
STRATEGIES = {
    "data": (
        "dp=4,microbatch=2",
        "dp=4,microbatch=2,sharding=optimizer",
        "dp=4,microbatch=2,sharding=gradients",
        "dp=4,microbatch=2,sharding=parameters",
        "dp=4,microbatch=2,sharding=gradients,replicas=2",
    ),
    "tensor": (
        "tp=2,microbatch=4",
        "tp=2,microbatch=4,layout=mixed",
        "tp=2,microbatch=4,sequence_parallel=on",
    ),
    "pipeline": (
        "pp=2,microbatch=2,schedule=gpipe",
        "pp=2,microbatch=2,schedule=1f1b",
        "pp=2,microbatch=2,schedule=interleaved,virtual_stages=2",
    ),
    "2-D": (
        "dp=2,tp=2,microbatch=4",
        "dp=2,tp=2,microbatch=4,sharding=optimizer,sequence_parallel=on",
        "dp=2,tp=2,microbatch=4,sharding=optimizer",
        "dp=2,tp=2,microbatch=4,sharding=parameters,sequence_parallel=on",
        "dp=2,pp=2,microbatch=2,schedule=1f1b,sharding=parameters",
        "tp=2,pp=2,microbatch=2,schedule=1f1b",
    ),
    "3-D": (
        "dp=2,tp=2,pp=2,microbatch=2,schedule=1f1b,sequence_parallel=on",
        "dp=2,tp=2,pp=2,microbatch=2,schedule=1f1b,sharding=parameters,sequence_parallel=on",
        "dp=2,tp=2,pp=2,microbatch=2,schedule=interleaved,virtual_stages=2",
    ),
    "recompute": (
        "dp=2,microbatch=4,recompute=full",
        "dp=2,microbatch=4,sharding=parameters,recompute=full",
        "tp=2,microbatch=4,recompute=full",
        "tp=2,microbatch=4,recompute=selective",
        "tp=2,microbatch=4,recompute=selective_op",
        "tp=2,microbatch=4,sequence_parallel=on,recompute=full",
        "tp=2,microbatch=4,sequence_parallel=on,recompute=selective",
        "tp=2,microbatch=4,sequence_parallel=on,recompute=selective_op",
        "dp=2,tp=2,pp=2,microbatch=2,schedule=1f1b,sequence_parallel=on,recompute=full",
    ),
}
MARKS = {"equal": "=", "differs": "≠", "refused": "-"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One dry run."""

    model: str
    strategy: str
    outcome: str
    """``equal``, ``differs`` or ``refused``."""
    told: tuple[str, ...]
    """Differences, or the reason."""
    known: tuple[str, ...]
    """Reasons of known differences."""


def cell_of(model: str, strategy: str) -> Cell:
    """Plan and play one case."""
    try:
        options = Options(
            model=model, cluster=CLUSTER, global_batch=GLOBAL_BATCH, strategy=strategy
        )
        result: DryRun = dry_run(simulate(options)[0], play=play_in_forks)
    except ParaplanError as error:
        return Cell(model=model, strategy=strategy, outcome="refused", told=(str(error),), known=())
    known = {
        entry["reason"]
        for rank in dry_run_to_json(result)["ranks"]
        for entry in rank["known_differences"]
    }
    return Cell(
        model=model, strategy=strategy, outcome="equal" if result.matches else "differs",
        told=result.differences, known=tuple(sorted(known)),
    )  # fmt: skip


def cells(*, models: str, strategies: str, done: Container[tuple[str, str]]) -> Iterator[Cell]:
    """Play the cells whose model and strategy hold these patterns, but for those that are done."""
    for model in MODELS:
        for strategy in (text for texts in STRATEGIES.values() for text in texts):
            is_wanted = re.search(models, model) and re.search(strategies, strategy)
            if is_wanted and (model, strategy) not in done:
                yield cell_of(model, strategy)


def table(found: Sequence[Cell]) -> str:
    """Return a table of models and strategies, and the reasons of what is refused."""
    of = {(cell.model, cell.strategy): cell for cell in found}
    strategies = [text for texts in STRATEGIES.values() for text in texts]
    models = [model for model in MODELS if any(cell.model == model for cell in found)]
    lines = ["| strategy | " + " | ".join(str(n + 1) for n in range(len(models))) + " |"]
    lines.append("|---" * (len(models) + 1) + "|")
    for strategy in strategies:
        marks = [
            MARKS[of[model, strategy].outcome] if (model, strategy) in of else ""
            for model in models
        ]
        lines.append(f"| `{strategy}` | " + " | ".join(marks) + " |")
    counts = {name: sum(cell.outcome == name for cell in found) for name in MARKS}
    summary = ", ".join(f"{name} `{MARKS[name]}` {count}" for name, count in counts.items())
    names = [f"{n + 1}. `{model}`" for n, model in enumerate(models)]
    return "\n".join([summary, "", *lines, "", "Models:", "", *names, "", *_reasons(found)])


def _reasons(found: Sequence[Cell]) -> list[str]:
    """Return why cells were refused, each reason once with how often."""
    reasons: Counter[str] = Counter()
    for cell in found:
        if cell.outcome == "refused":
            reason = cell.told[0].removeprefix("rank 0 of the dry run: ")
            reasons[reason.replace(cell.model, "MODEL").replace("|", "/")] += 1
    lines = [f"- {count} x: {reason}" for reason, count in reasons.most_common()]
    return ["Refused:", "", *lines]


def write_page(found: Sequence[Cell]) -> None:
    """Put the table between the marks of docs/run.md."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Print one line per case; 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="", help="models that hold this pattern")
    parser.add_argument("--strategies", default="", help="strategies that hold this pattern")
    parser.add_argument(
        "--results", type=Path, help="file of cells, a JSON line each, to go on with"
    )
    parser.add_argument("--write-docs", action="store_true", help="write the table of all cells")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = list(_stored(arguments.results))
    known = {(cell.model, cell.strategy) for cell in found}
    for cell in cells(models=arguments.models, strategies=arguments.strategies, done=known):
        found.append(cell)
        _print(cell)
        if arguments.results:
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
    if arguments.write_docs:
        write_page(found)
    counts = {name: sum(cell.outcome == name for cell in found) for name in MARKS}
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    return int(counts["differs"] > 0)


def _stored(path: Path | None) -> Iterator[Cell]:
    if path is not None and path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            data = json.loads(line)
            told, known = tuple(data.pop("told")), tuple(data.pop("known"))
            yield Cell(**data, told=told, known=known)


def _print(cell: Cell) -> None:
    print(f"{cell.outcome:8} {cell.model}  {cell.strategy}", flush=True)
    for line in cell.told:
        print(f"         {line}", flush=True)
    if cell.known:
        print("         known: " + "; ".join(cell.known), flush=True)


if __name__ == "__main__":
    sys.exit(main())
