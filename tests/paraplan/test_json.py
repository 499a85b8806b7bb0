"""--json: one object on standard output with the promised names, everything else elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from planner.step_time import BREAKDOWN_TERMS
from tests.paraplan.answers import MACHINE, SMALL, Call

SIMULATE_NAMES = {
    "step_time_s", "step_time_interval_s", "tokens_per_s", "samples_per_s",
    "model_flops_per_step", "model_flops_per_s_per_device", "hardware_flops_per_s_per_device",
    "mfu", "hfu", "peak_memory_bytes", "peak_memory_bytes_per_stage", "memory_breakdown_bytes",
    "fits", "breakdown_s", "bubble_fraction", "num_devices", "cost_usd_per_hour",
    "num_parameters",
}  # fmt: skip
"""DESIGN section 7: names that other programs rely on."""
PLAN_NAMES = {
    "best", "candidates", "baselines", "num_candidates", "num_rejected", "search_time_s",
}  # fmt: skip


def object_of(call: Call, *arguments: str | Path, status: int = 0) -> dict[str, Any]:
    answer = call(*arguments, "--json")
    assert answer.status == status, answer.err
    assert answer.err == ""
    value = json.loads(answer.out)
    assert isinstance(value, dict)
    assert answer.out == json.dumps(value, indent=2, sort_keys=True) + "\n"
    return value


def test_simulate(call: Call) -> None:
    made = object_of(call, "simulate", *SMALL, "--strategy", "dp=2,tp=2,pp=2,microbatch=8")
    assert set(made) >= SIMULATE_NAMES
    assert set(made["breakdown_s"]) == set(BREAKDOWN_TERMS)
    assert made["strategy"] == "dp=2,tp=2,pp=2,microbatch=8,schedule=1f1b"
    assert made["num_devices"] == 8
    assert len(made["peak_memory_bytes_per_stage"]) == 2
    assert made["peak_memory_bytes"] == max(made["peak_memory_bytes_per_stage"])
    low, high = made["step_time_interval_s"]
    assert low < made["step_time_s"] < high
    assert made["samples_per_s"] == pytest.approx(64 / made["step_time_s"])
    rate = made["model_flops_per_step"] / made["step_time_s"] / 8
    assert made["model_flops_per_s_per_device"] == pytest.approx(rate)
    assert made["mfu"] == pytest.approx(rate / 312e12, rel=1e-3)  # A100 dense bf16, datasheet
    assert made["fits"] is True


def test_a_part_of_the_cluster_costs_its_part(call: Call) -> None:
    whole = object_of(call, "simulate", *SMALL, "--strategy", "dp=8")
    part = object_of(call, "simulate", *SMALL, "--strategy", "dp=2")
    assert part["num_devices"] == 2
    assert part["cost_usd_per_hour"] == pytest.approx(whole["cost_usd_per_hour"] / 4)


def test_a_cluster_without_a_price_has_no_cost(call: Call) -> None:
    made = object_of(call, "simulate", "mlp", "--cluster", "pcie-k20-8", "-b", "8")
    assert made["cost_usd_per_hour"] is None


def test_recomputation_raises_hardware_flops_only(call: Call) -> None:
    arguments = ("simulate", "gpt2", "--cluster", MACHINE, "-b", "64", "--seq-len", "128")
    plain = object_of(call, *arguments, "--strategy", "microbatch=64")
    full = object_of(call, *arguments, "--strategy", "microbatch=64,recompute=full")
    assert plain["hfu"] == plain["mfu"]
    assert full["hfu"] > full["mfu"]
    assert full["hfu"] / full["mfu"] <= 4 / 3 * (1 + 1e-9)
    assert full["model_flops_per_step"] == plain["model_flops_per_step"]
    assert full["step_time_s"] > plain["step_time_s"]
    saved = [made["memory_breakdown_bytes"]["activations"] for made in (full, plain)]
    assert saved[0] < saved[1]


def test_plan(call: Call, tmp_path: Path) -> None:
    made = object_of(call, "plan", *SMALL, "--out", tmp_path)
    assert set(made) >= PLAN_NAMES
    assert set(made["best"]) >= SIMULATE_NAMES | {"strategy"}
    names = {"data parallel", "FSDP", "tensor parallel", "Megatron-style"}
    assert {row["name"] for row in made["baselines"]} == names
    assert made["candidates"][0]["strategy"] == made["best"]["strategy"]
    assert made["candidates"][0]["step_time_s"] == made["best"]["step_time_s"]
    assert all(isinstance(count, int) for count in made["num_rejected"].values())
    assert made["num_candidates"] > sum(made["num_rejected"].values())
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "report.html", "trace.json"}
    assert json.loads((tmp_path / "plan.json").read_text())["prediction"] == made["best"]
    assert json.loads((tmp_path / "trace.json").read_text())


def test_trace_and_profiles(call: Call) -> None:
    traced = object_of(call, "trace", "gpt2", "--seq-len", "128")
    assert traced["num_parameters"] == 124_439_808  # GPT-2 small with tied embeddings
    assert traced["sequence_length"] == 128
    listed = object_of(call, "profiles")
    assert "dgx-a100-80g" in listed["cluster"]
    assert "megatron-core" in listed["software"]
    shown = object_of(call, "profiles", "k20")
    assert "name" in shown or "title" in shown


@pytest.mark.parametrize("verb", ["plan", "simulate"])
def test_text_for_people_has_no_escapes_in_a_pipe(call: Call, tmp_path: Path, verb: str) -> None:
    answer = call(verb, *SMALL, "--strategy", "dp=8", "--out", tmp_path)
    assert answer.status == 0
    assert "\x1b" not in answer.out
    assert "Step time" in answer.out
