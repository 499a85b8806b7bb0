"""The trainers' own packages read what was handed over, wherever they are installed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from planner.handover import hand_over
from planner.handover.torchtitan import FLAVORS
from planner.plan import Plan
from planner.strategy import parse_strategy
from tests.planner.handover.plans import plan_of
from tests.planner.handover.reading import read_shell, settings_of

PROGRAM = Path(__file__).with_name("real_parsers.py")
PIPED = (
    "dp=4,tp=2,pp=4,microbatch=2,schedule=interleaved,virtual_stages=2,sharding=parameters,"
    "recompute=full,sequence_parallel=on"
)
UNEVEN = "dp=2,tp=2,pp=6,microbatch=2,sharding=optimizer,sequence_parallel=on"
SHARDED = "dp=8,microbatch=4,sharding=parameters"


def needs(module: str) -> pytest.MarkDecorator:
    """Skip where a package is missing; each is installed by hand, see docs/handover.md."""
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed")


def understood(reader: str, text: str, folder: Path, *, num_devices: int) -> dict[str, Any]:
    """Return what the package makes of a text."""
    file = folder / "handed"
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), reader, str(file), str(num_devices)],
        capture_output=True, text=True, check=False, cwd=folder, timeout=200,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def devices(plan: Plan) -> int:
    return parse_strategy(plan.strategy).num_devices


@needs("torchtitan")
@pytest.mark.parametrize("strategy", [PIPED, UNEVEN, SHARDED, f"{SHARDED},cp=2,replicas=4", "dp=8"])
def test_torchtitan(strategy: str, tmp_path: Path) -> None:
    plan = plan_of(strategy)
    text = hand_over(plan, trainer="torchtitan").text
    found = understood("torchtitan", text, tmp_path, num_devices=devices(plan))
    parsed = parse_strategy(strategy)
    batch = 64 // parsed.data_parallel_size
    expected = batch if parsed.pipeline_parallel_size > 1 else parsed.microbatch_size
    assert found == {"flavor": "8B", "local_batch_size": expected}


@needs("torchtitan")
def test_torchtitan_refuses_what_was_planted(tmp_path: Path) -> None:
    text = hand_over(plan_of(SHARDED), trainer="torchtitan").text
    for wrong in (
        text.replace("data_parallel_shard_degree = 8", "data_parallel_shard_degree = 7"),
        text.replace("tensor_parallel_degree", "tensor_parallel_size"),
    ):
        with pytest.raises(AssertionError):
            understood("torchtitan", wrong, tmp_path, num_devices=8)


@needs("torchtitan")
@needs("torchdata")
@needs("tensorboard")
def test_our_table_of_flavors_is_torchtitans(tmp_path: Path) -> None:
    found = understood("torchtitan_flavors", "", tmp_path, num_devices=1)
    for flavor in FLAVORS:
        assert found[f"{flavor.model} {flavor.name}"] == [*flavor.sizes, flavor.tied]


@needs("accelerate")
@pytest.mark.parametrize(
    ("strategy", "model", "expected"),
    [
        ("dp=16,microbatch=4", "bert-large", {"num_processes": 16}),
        (
            SHARDED,
            "llama3-8b",
            {"num_processes": 8, "version": 2, "reshard": True, "classes": ["LlamaBlock"],
             "recompute": False},
        ),
        (
            "dp=4,cp=2,microbatch=16,sharding=gradients,recompute=full",
            "llama3-8b",
            {"num_processes": 8, "version": 2, "reshard": False, "classes": ["LlamaBlock"],
             "recompute": True, "mesh": 8},
        ),
        (
            f"{SHARDED},replicas=2",
            "hf:llama?num_hidden_layers=2",
            {"num_processes": 8, "version": 2, "reshard": True, "classes": ["LlamaDecoderLayer"],
             "recompute": False, "mesh": 8},
        ),
    ],
)  # fmt: skip
def test_accelerate(strategy: str, model: str, expected: dict[str, Any], tmp_path: Path) -> None:
    text = hand_over(plan_of(strategy, model), trainer="accelerate").text
    assert understood("accelerate", text, tmp_path, num_devices=1) == expected


@needs("deepspeed")
@pytest.mark.parametrize(
    ("sharding", "stage"), [("none", 0), ("optimizer", 1), ("gradients", 2), ("parameters", 3)]
)
def test_deepspeed(sharding: str, stage: int, tmp_path: Path) -> None:
    plan = plan_of(f"dp=16,microbatch=2,sharding={sharding}")
    text = hand_over(plan, trainer="deepspeed").text
    found = understood("deepspeed", text, tmp_path, num_devices=16)
    assert found == {"stage": stage, "accumulation": 2, "bf16": True, "optimizer": "adamw"}


@needs("deepspeed")
def test_deepspeed_refuses_a_wrong_batch(tmp_path: Path) -> None:
    text = hand_over(plan_of("dp=16,microbatch=2"), trainer="deepspeed").text
    wrong = text.replace('"gradient_accumulation_steps": 2', '"gradient_accumulation_steps": 3')
    with pytest.raises(AssertionError):
        understood("deepspeed", wrong, tmp_path, num_devices=16)


@needs("megatron")
@pytest.mark.parametrize(
    ("strategy", "num_stages"), [(PIPED.replace("parameters", "optimizer"), 0), (UNEVEN, 6)]
)
def test_megatron(strategy: str, num_stages: int, tmp_path: Path) -> None:
    plan = plan_of(strategy)
    given = settings_of(read_shell(hand_over(plan, trainer="megatron").text, tmp_path))
    found = understood("megatron", json.dumps(given), tmp_path, num_devices=devices(plan))
    assert found == {"layers": 32, "stages": num_stages}
