"""The verb that holds predictions against published results, on made-up cases."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from paraplan.planning import Options, make_problem, rank_strategy, simulate
from paraplan.validation import counted_bytes, predict_groups
from planner.problem import PriceBook
from planner.replay import replay_step_time
from planner.stage_memory import MEMORY_TERMS
from planner.validation.case_file import load_groups
from planner.validation.cases import MemoryKind
from tests.paraplan.answers import MACHINE, Call

HEAD = f"""\
schema = 2
group = "paper"
family = "gpu-transformer"
source = "A made-up paper"
tolerance = 0.1
why = "a test"
[defaults]
model = "mlp"
cluster = "{MACHINE}"
global_batch = 64
"""
CASE_NAMES = {
    "id", "source", "quantity", "published", "predicted", "error", "tolerance", "passed",
}  # fmt: skip
"""DESIGN section 7: names that other programs rely on."""


def step_time_s(strategy: str) -> float:
    options = Options(model="mlp", cluster=MACHINE, global_batch=64, strategy=strategy)
    return float(simulate(options)[0].prediction["step_time_s"])


def case(id_: str, *lines: str) -> str:
    return "\n".join(["[[case]]", f'id = "{id_}"', *lines, ""])


def write(folder: Path, *cases: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "paper.toml").write_text(HEAD + "".join(cases))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two cases that hold, one missed, one that cannot be predicted, one without a step time."""
    right = step_time_s("dp=8")
    return write(
        tmp_path / "cases",
        case("right", 'strategy = "dp=8"', f"step_time_s = {right}"),
        case("close", 'strategy = "dp=8"', f"step_time_s = {right * 1.05}", 'sweep = "s"'),
        case("missed", 'strategy = "dp=4"', "step_time_s = 10.0", 'sweep = "s"'),
        case("refused", 'strategy = "dp=16"', "step_time_s = 1.0"),
        case("small", 'strategy = "dp=8"', "fits = true"),
    )


def object_of(call: Call, *arguments: str | Path, status: int) -> dict[str, Any]:
    answer = call("validate", *arguments, "--json")
    assert answer.status == status, answer.err
    found = json.loads(answer.out)
    assert isinstance(found, dict)
    return found


def test_a_missed_tolerance_and_a_refused_case_fail(call: Call, folder: Path) -> None:
    made = object_of(call, "--cases", folder, status=1)
    assert set(made) >= {"cases", "mean_absolute_error", "bias", "groups"}
    assert all(set(row) >= CASE_NAMES for row in made["cases"])
    assert not made["covers_all_cases"], "aims are set for all cases, and these are a choice"
    passed = {row["id"]: row["passed"] for row in made["cases"]}
    assert passed == {
        "right": True, "close": True, "missed": False, "refused": False, "small": True
    }  # fmt: skip
    refused = next(row for row in made["cases"] if row["id"] == "refused")
    assert refused["predicted"] is None
    assert "needs dp*tp*pp*cp = 16 devices" in refused["failure"]
    errors = [row["error"] for row in made["cases"] if row["error"] is not None]
    assert len(errors) == 3
    assert made["bias"] == pytest.approx(sum(errors) / 3, rel=1e-5)
    assert made["mean_absolute_error"] == pytest.approx(sum(map(abs, errors)) / 3, rel=1e-5)


def test_all_within_tolerance_ends_well(call: Call, tmp_path: Path) -> None:
    held = case("right", 'strategy = "dp=8"', f"step_time_s = {step_time_s('dp=8')}")
    answer = call("validate", "--cases", write(tmp_path / "cases", held))
    assert answer.status == 0
    assert "paper:right" in answer.out
    assert "1.000  yes" in answer.out


def test_for_people(call: Call, folder: Path) -> None:
    answer = call("validate", "--cases", folder)
    assert answer.status == 1
    assert "NO: strategy 'dp=16,microbatch=1' needs" in answer.out
    assert "outside tolerance: 2" in answer.out
    assert "regret" in answer.out
    short = call("validate", "--cases", folder, "--summary").out
    assert "published    predicted" in answer.out
    assert "published    predicted" not in short
    assert "outside tolerance: 2" in short


def test_a_known_outlier_is_told_and_a_stale_mark_fails(call: Call, tmp_path: Path) -> None:
    mark = 'outlier = "the host is slow"'
    far = case("far", 'strategy = "dp=8"', "step_time_s = 10.0", mark)
    known = write(tmp_path / "known", far)
    answer = call("validate", "--cases", known)
    assert answer.status == 0
    assert "  known" in answer.out
    assert "the host is slow" in answer.out
    (row,) = object_of(call, "--cases", known, status=0)["cases"]
    assert (row["passed"], row["known_outlier"], row["failure"]) == (False, True, "")
    assert row["deviation"].startswith("step time -")
    right = f"step_time_s = {step_time_s('dp=8')}"
    stale = write(tmp_path / "stale", far, case("near", 'strategy = "dp=8"', right, mark))
    answer = call("validate", "--cases", stale)
    assert answer.status == 1
    assert "paper:near: stale outlier mark: the case keeps its tolerance, remove it" in answer.out


def test_rows_as_csv(call: Call, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    call("validate", "--cases", folder, "--csv", file)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["id"] for row in rows] == ["right", "close", "missed", "refused", "small"]
    assert float(rows[1]["error"]) == pytest.approx(1 / 1.05 - 1, rel=1e-4)


def test_predictions_are_those_of_simulate_on_any_number_of_processes(folder: Path) -> None:
    groups = load_groups(folder)
    alone, shared = (predict_groups(groups, jobs=jobs) for jobs in (1, 2))
    assert alone == shared
    by_id = {outcome.case.id: outcome.predicted for outcome in alone}
    for id_, strategy in (("right", "dp=8"), ("missed", "dp=4")):
        predicted = by_id[id_]
        assert predicted is not None
        assert predicted.step_time_s == pytest.approx(step_time_s(strategy), rel=1e-12)


def test_free_keys_are_chosen_and_the_rest_is_kept(tmp_path: Path) -> None:
    free = case("free", 'strategy = "dp=4,tp=2"', 'free = ["microbatch"]', "step_time_s = 1.0")
    stated = case("stated", 'strategy = "microbatch=2"', 'free = ["microbatch"]', "fits = true")
    none = case("none", 'strategy = "dp=16"', 'free = ["microbatch"]', "fits = true")
    found = predict_groups(load_groups(write(tmp_path / "cases", free, stated, none)), jobs=1)
    predicted = found[0].predicted
    assert predicted is not None
    assert predicted.strategy.startswith("dp=4,tp=2,microbatch=")
    times = {size: step_time_s(f"dp=4,tp=2,microbatch={size}") for size in (1, 2, 4, 8, 16)}
    assert predicted.step_time_s == pytest.approx(min(times.values()))
    assert "free keys are stated, too: microbatch_size" in found[1].refusal
    assert "no value of microbatch is possible" in found[2].refusal


def test_a_defect_fails_its_case_and_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import paraplan.planning as planning

    calls: list[int] = []

    def broken(evaluation: Any) -> float:
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("a defect")
        return replay_step_time(evaluation)

    monkeypatch.setattr(planning, "replay_step_time", broken)
    found = predict_groups(load_groups(folder), jobs=1)
    refusals = [outcome.refusal for outcome in found if outcome.predicted is None]
    assert len(refusals) == 2
    assert any(refusal.startswith("defect: KeyError") for refusal in refusals)


@pytest.mark.parametrize(
    ("kind", "unseen"),
    [("allocated", {"fixed", "allocator"}), ("reserved", {"fixed"}), ("device", set())],
)
def test_memory_is_counted_as_it_was_measured(kind: MemoryKind, unseen: set[str]) -> None:
    problem = make_problem(Options(model="mlp", cluster=MACHINE, global_batch=64))
    _, ranked = rank_strategy(problem, "dp=4,pp=2")
    memory = ranked.evaluation.memory
    per_rank = [
        sum(float(memory.terms[term][rank]) for term in MEMORY_TERMS if term not in unseen)
        for rank in range(2)
    ]
    assert counted_bytes(memory, kind=kind) == pytest.approx(max(per_rank))


def test_cases_share_prices_without_changing_them() -> None:
    options = Options(model="gpt2", cluster=MACHINE, global_batch=32, seq_len=128)
    problem = make_problem(options)
    alone = make_problem(options, graph=problem.graph)
    assert alone.workload == problem.workload
    shared = PriceBook(problem=problem)
    from paraplan.planning import rank_in_book

    texts = ("dp=8", "dp=4,tp=2", "dp=8,sharding=parameters", "dp=2,pp=4,microbatch=4")
    for text in texts:
        _, fresh = rank_strategy(problem, text)
        assert rank_in_book(shared, text).step_time_s == fresh.step_time_s


def test_documents_are_for_all_cases_in_a_checkout(refused: Call) -> None:
    for choice in (("--group", "paper"), ("--family", "tpu"), ("--cases", ".")):
        assert "--write-docs is for all" in refused("validate", "--write-docs", *choice).err
    assert "run it in the folder of a checkout" in refused("validate", "--write-docs").err


def test_wrong_choices_are_one_line(refused: Call) -> None:
    assert "--group is 'nothing'" in refused("validate", "--group", "nothing").err
    assert "--family is 'nothing'" in refused("validate", "--family", "nothing").err
    assert "no folder with case files" in refused("validate", "--cases", "none").err
