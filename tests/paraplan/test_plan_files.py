"""Plans as files: read again, changed, refused."""

import json
from pathlib import Path

import pytest

from tests.paraplan.answers import SMALL, Call

HOME = Path(__file__).parents[2]
MODEL = """
from torch import nn
import torch

def build():
    return nn.Sequential(nn.Linear(16, {width}), nn.ReLU(), nn.Linear({width}, 4))

def inputs(batch_size, sequence_length):
    return torch.randn(batch_size, 16)
"""


@pytest.fixture
def plan_file(call: Call, tmp_path: Path) -> Path:
    strategy = "dp=2,tp=2,pp=2,microbatch=8"
    assert call("simulate", *SMALL, "--strategy", strategy, "--out", tmp_path).status == 0
    return tmp_path / "plan.json"


def test_simulate_gives_the_own_prediction_of_a_plan(call: Call, plan_file: Path) -> None:
    answer = call("simulate", plan_file, "--json")
    assert json.loads(answer.out) == json.loads(plan_file.read_text())["prediction"]


def test_the_same_input_gives_the_same_bytes(call: Call, plan_file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert call("simulate", plan_file, "--out", again).status == 0
    assert (again / "plan.json").read_bytes() == plan_file.read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "key", "expected"),
    [
        ("--strategy", "dp=8", "strategy", "dp=8,microbatch=1"),
        ("--strategy", "dp=4", "num_devices", 4),
    ],
)
def test_options_beside_a_plan_change_it(
    call: Call, plan_file: Path, option: str, value: str, key: str, expected: object
) -> None:
    assert json.loads(call("simulate", plan_file, option, value, "--json").out)[key] == expected


def test_another_batch_and_another_cluster_beside_a_plan(call: Call, plan_file: Path) -> None:
    own = json.loads(call("simulate", plan_file, "--json").out)
    more = json.loads(call("simulate", plan_file, "--global-batch", "128", "--json").out)
    assert more["model_flops_per_step"] == 2 * own["model_flops_per_step"]
    old = json.loads(call("simulate", plan_file, "--cluster", "dgx-1v-32g:1", "--precision",
                          "fp16", "--json").out)  # fmt: skip
    assert old["step_time_s"] > own["step_time_s"]


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_a_report_from_a_plan(call: Call, plan_file: Path, suffix: str) -> None:
    target = plan_file.with_name(f"again.{suffix}")
    assert call("report", plan_file, "--out", target).status == 0
    assert "mlp" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schema_version": 99}, "schema_version is 99"),
        ({"schema_version": None}, "schema_version is None"),
        ({"colour": "red"}, "colour"),
        ({"mesh": 3}, "mesh"),
        ({"strategy": "dp=16"}, "mesh: "),
        ({"strategy": "dp="}, "dp="),
        ({"software": "eeger"}, "eager"),
    ],
)
def test_altered_plans(
    refused: Call, plan_file: Path, change: dict[str, object], expected: str
) -> None:
    data = json.loads(plan_file.read_text()) | change
    plan_file.write_text(json.dumps(data))
    assert expected in refused("simulate", plan_file).err


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}', "\x00"])
def test_what_is_no_plan(refused: Call, tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    assert "broken.json" in refused("simulate", path).err
    assert "broken.json" in refused("report", path).err
    assert "broken.json" in refused("run", path).err


def test_a_missing_key(refused: Call, plan_file: Path) -> None:
    data = json.loads(plan_file.read_text())
    del data["workload"]["precision"]
    plan_file.write_text(json.dumps(data))
    assert "workload.precision" in refused("simulate", plan_file).err


def test_a_model_that_has_changed(refused: Call, call: Call, tmp_path: Path) -> None:
    model = tmp_path / "mine.py"
    model.write_text(MODEL.format(width=32), encoding="utf-8")
    options = ("--cluster", "dgx-h100:1", "--global-batch", "8", "--strategy", "dp=2")
    assert call("simulate", f"{model}:build", *options, "--out", tmp_path).status == 0
    plan = tmp_path / "plan.json"
    assert call("simulate", plan).status == 0
    model.write_text(MODEL.format(width=64), encoding="utf-8")
    assert "make the plan anew" in refused("simulate", plan).err


def test_a_cluster_from_a_file_must_be_given_again(
    refused: Call, call: Call, tmp_path: Path
) -> None:
    text = (HOME / "hardware_profiles/catalog/clusters/pcie-k20-8.toml").read_text()
    machine = tmp_path / "mine.toml"
    machine.write_text(text.replace('name = "pcie-k20-8"', 'name = "mine"'), encoding="utf-8")
    out = ("--out", tmp_path)
    assert call("simulate", "mlp", "--cluster", machine, "-b", "8", *out).status == 0
    plan = tmp_path / "plan.json"
    assert str(tmp_path) not in plan.read_text()
    assert "--cluster" in refused("simulate", plan).err
    assert "--cluster" in refused("report", plan).err
    made = json.loads(call("simulate", plan, "--cluster", machine, "--json").out)
    assert made == json.loads(plan.read_text())["prediction"]
    assert call("report", plan, "--cluster", machine).status == 0
