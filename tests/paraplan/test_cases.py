"""simulate --cases: JSON lines in, JSON lines out, in order, an error beside its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.paraplan.answers import MACHINE, Call

GOOD: dict[str, Any] = {"model": "mlp", "cluster": MACHINE, "global_batch": 64, "strategy": "dp=8"}


def outcomes(call: Call, path: Path, lines: list[str]) -> list[dict[str, Any]]:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    answer = call("simulate", "--cases", path)
    assert answer.status == 0, answer.err
    assert answer.err == ""
    return [json.loads(line) for line in answer.out.splitlines()]


def test_order_and_identity_are_kept(call: Call, tmp_path: Path) -> None:
    lines = [
        json.dumps(GOOD | {"id": "first"}),
        json.dumps(GOOD | {"id": 2, "strategy": "dp=4"}),
        "",
        json.dumps(GOOD | {"strategy": "dp=2"}),
    ]
    first, second, third = outcomes(call, tmp_path / "cases.jsonl", lines)
    assert (first["id"], second["id"]) == ("first", 2)
    assert "id" not in third
    assert [row["num_devices"] for row in (first, second, third)] == [8, 4, 2]


def test_a_case_is_what_simulate_says(call: Call, tmp_path: Path) -> None:
    (row,) = outcomes(call, tmp_path / "cases.jsonl", [json.dumps(GOOD)])
    alone = call("simulate", "mlp", "--cluster", MACHINE, "-b", "64", "-s", "dp=8", "--json")
    assert row == json.loads(alone.out)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ("3", "expected an object"),
        ("null", "expected an object"),
        (json.dumps(GOOD | {"colour": "red"}), "unknown key 'colour'"),
        (json.dumps(GOOD | {"model": "gpt22"}), "gpt2"),
        (json.dumps(GOOD | {"model": 3}), "model"),
        (json.dumps(GOOD | {"cluster": 3}), "cluster"),
        (json.dumps(GOOD | {"global_batch": "64"}), "global_batch"),
        (json.dumps(GOOD | {"global_batch": 64.5}), "global_batch"),
        (json.dumps(GOOD | {"global_batch": True}), "global_batch"),
        (json.dumps(GOOD | {"global_batch": 0}), "at least 1"),
        (json.dumps(GOOD | {"seq_len": "long"}), "seq_len"),
        (json.dumps(GOOD | {"strategy": {"dp": 8}}), "strategy"),
        (json.dumps(GOOD | {"strategy": "dp=3"}), "not a multiple"),
        (json.dumps(GOOD | {"software": 1}), "software"),
        (json.dumps(GOOD | {"optimizer": ["adam"]}), "optimizer"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "cluster"}), "--cluster is missing"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "model"}), "MODEL is missing"),
    ],
)
def test_a_bad_line_does_not_stop_the_others(
    call: Call, tmp_path: Path, line: str, expected: str
) -> None:
    before, bad, after = outcomes(
        call, tmp_path / "cases.jsonl", [json.dumps(GOOD), line, json.dumps(GOOD)]
    )
    assert before == after
    assert "error" not in before
    assert expected in bad["error"]
    assert "\n" not in bad["error"]


def test_the_identity_of_a_refused_case_is_kept(call: Call, tmp_path: Path) -> None:
    line = json.dumps(GOOD | {"id": "x", "strategy": "dp=3"})
    (row,) = outcomes(call, tmp_path / "cases.jsonl", [line])
    assert set(row) == {"id", "error"}
    assert row["id"] == "x"
