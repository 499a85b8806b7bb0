"""The page on training jobs runs as shown."""

import json
import re
import shlex
from pathlib import Path

import pytest
from plans import plan_of

from paraplan.cli import run_command_line
from planner.plan import plan_to_json

PAGE = Path(__file__).parents[2] / "docs" / "training-job.md"


@pytest.mark.slow
@pytest.mark.distributed
def test_the_example_of_the_manual_runs_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARAPLAN_HOME", str(tmp_path / "home"))
    text = PAGE.read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL).group(1)
    Path("text.py").write_text(code, encoding="utf-8")
    shown = re.findall(r"^    (paraplan .*)$", text, flags=re.MULTILINE)
    assert len(shown) == 4
    for command in shown:
        assert run_command_line(shlex.split(command)[1:]) == 0, (command, capsys.readouterr())
    first, second = (json.loads(Path(f"{name}/job.json").read_text()) for name in ("dp", "tp"))
    assert second["resumed_from_step"] == 10
    assert sorted(path.name for path in Path("ckpt").glob("step-*")) == [
        "step-00000010", "step-00000015"
    ]  # fmt: skip
    assert len(first["losses"]) == 10
    assert second["losses"][-1] < first["losses"][0]


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--check"], "--check beside options of a job"),
     (["--precision", "fp16"], "--precision is fp16.*add --precision bf16 or fp32"),
     (["--log-every", "0"], "--log-every is 0; expected at least 1"),
     (["--max-restarts", "-1"], "--max-restarts is -1; expected at least 0")],
)  # fmt: skip
def test_flags_that_cannot_be_meant_end_in_one_line(tmp_path, capsys, options, words):
    plan = tmp_path / "plan.json"
    plan.write_text(plan_to_json(plan_of("dp=1,microbatch=8")))
    status = run_command_line(["run", str(plan), "--seed", "0", *options])
    printed = capsys.readouterr().err
    assert status == 2
    assert re.search(words, printed)
    assert len(printed.strip().splitlines()) == 1
