"""``paraplan export``: to standard output, to a file, as JSON, and its mistakes in one line."""

import json
from pathlib import Path

import pytest

from paraplan.cli import run_command_line
from planner.handover import TRAINERS, hand_over
from planner.plan import plan_to_json
from tests.planner.handover.plans import plan_of, with_changes

SHARDED = "dp=8,microbatch=4,sharding=parameters"


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan_of(SHARDED)), encoding="utf-8")
    return path


@pytest.mark.parametrize("trainer", TRAINERS)
def test_printed_written_and_json_are_one_text(
    trainer: str, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = hand_over(plan_of(SHARDED), trainer=trainer)
    assert run_command_line(["export", str(plan_file), "--to", trainer]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected.text
    assert all(f"note: {note}" in printed.err for note in expected.notes)
    out = tmp_path / "new" / "file"
    assert run_command_line(["export", str(plan_file), "--to", trainer, "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == expected.text
    assert [path.name for path in out.parent.iterdir()] == ["file"]
    capsys.readouterr()
    assert run_command_line(["export", str(plan_file), "--to", trainer, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["text"], told["trainer"], told["file"]) == (expected.text, trainer, None)
    assert told["version"] == TRAINERS[trainer].version


def test_mistakes_end_with_status_2_and_one_line(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = tmp_path / "sgd.json"
    plan = with_changes(plan_of(SHARDED), "workload", optimizer="sgd")
    refused.write_text(plan_to_json(plan), encoding="utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    out = tmp_path / "never"
    for arguments, hint in (
        (["export", str(plan_file), "--to", "megatorn"], "did you mean megatron"),
        (["export", str(tmp_path / "none.json"), "--to", "megatron"], "no such file"),
        (["export", str(refused), "--to", "torchtitan", "--out", str(out)], "optimizer=sgd"),
        (["export", str(plan_file), "--to", "deepspeed", "--out", str(folder)], "written"),
        (["export", str(plan_file)], "--to"),
    ):
        assert run_command_line(arguments) == 2
        message = capsys.readouterr().err
        assert hint in message
        assert len(message.strip().splitlines()) == 1
    assert not out.exists()
