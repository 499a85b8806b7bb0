"""Runs in bf16: what travels in it, equality with one process, and errors that still stand out."""

import pytest
import torch
from plans import TINY_GPT, plan_of
from torch import nn

from executor.precision import Numerics, lower_weights
from executor.reference import Reference, compare_with_reference
from executor.run import run_plan
from executor.settings import run_precision

TIMEOUT_S = 30.0
PARAMETERS = 53_440
"""Of the tiny GPT."""


def planned_in_bf16(strategy, *, software="eager", **options):
    plan = plan_of(strategy, **options)
    workload = plan.workload.model_copy(update={"precision": "bf16"})
    return plan.model_copy(update={"workload": workload, "software": software})


def run(plan, precision="bf16"):
    return run_plan(plan, timeout_s=TIMEOUT_S, steps=1, precision=precision)


@pytest.mark.distributed
def test_sharded_weights_are_gathered_in_bf16_and_gradients_reduced_in_fp32():
    result = run(planned_in_bf16("dp=2,microbatch=4,sharding=parameters"))
    assert result.passed
    assert result.precision == "bf16"
    assert not any("in place of" in note for note in result.notes)
    moved = result.collectives_issued["dp"]
    assert moved["all_gather"]["bytes"] == 2 * 2 * PARAMETERS
    assert moved["reduce_scatter"]["bytes"] == 4 * PARAMETERS


@pytest.mark.distributed
def test_a_stack_that_reduces_in_bf16_has_ddp_do_so():
    result = run(planned_in_bf16("dp=2,microbatch=4", software="deepspeed"))
    assert result.passed
    assert result.collectives_issued["dp"]["all_reduce"]["bytes"] == 2 * PARAMETERS
    assert any("deepspeed keeps bf16 weights beside the fp32 ones" in n for n in result.notes)


@pytest.mark.distributed
def test_activations_of_tensor_ranks_travel_in_bf16():
    result = run(planned_in_bf16("tp=2,microbatch=8,sequence_parallel=on"))
    assert result.passed
    assert result.predicted_step_time_s == 1.0
    activation_elements = 8 * 16 * 32
    assert result.collectives_issued["tp"]["reduce_scatter"] == {
        "count": 18, "bytes": 18 * 2 * activation_elements,  # as in test_equality
    }  # fmt: skip


@pytest.mark.distributed
def test_what_runs_in_another_precision_has_no_prediction():
    result = run(planned_in_bf16("dp=1,microbatch=8"), "fp32")
    assert result.passed
    assert result.predicted_step_time_s is None
    assert "computed in fp32 in place of bf16" in result.notes


@pytest.mark.distributed
def test_a_missing_gradient_sum_is_caught_in_bf16_too(tmp_path):
    saboteur = tmp_path / "saboteur.py"
    saboteur.write_text(
        "import os, sys\n"
        "from planner.models.resolve import resolve_model\n"
        f"source = resolve_model({TINY_GPT!r})\n"
        "def model():\n"
        "    training = sys.modules.get('executor.training')\n"
        "    if training is not None and 'RANK' in os.environ:\n"
        "        training.reduce_partial_gradients = lambda *args, **kwargs: None\n"
        "    return source.build()\n"
        "def inputs(batch_size, sequence_length):\n"
        "    return source.make_batch(batch_size, sequence_length, 7).inputs\n"
        "def loss(output, targets):\n"
        "    return output.float().square().mean() * 1e3\n"
    )
    plan = planned_in_bf16("tp=2,microbatch=8,sequence_parallel=on", model=f"{saboteur}:model")
    assert run(plan).passed is False


def compared(change):
    """Judge a gradient against one process whose bf16 rounding is 1 %."""
    torch.manual_seed(0)
    exact = torch.randn(64)
    rounded = exact * (1 + 0.01 * torch.randn(64))
    found = change(exact * (1 + 0.01 * torch.randn(64)))
    one, fp32 = (Reference(losses=(1.0,), gradients={"w": g}) for g in (rounded, exact))
    return compare_with_reference((1.0,), {"w": found}, one, exact=fp32)


def test_in_bf16_rounding_passes_and_more_than_rounding_does_not():
    assert compared(lambda gradient: gradient).passed
    for wrong in (lambda g: 0.5 * g, lambda g: 1.1 * g, lambda g: g.roll(1), torch.zeros_like,
                  lambda g: g * torch.nan):  # fmt: skip
        assert not compared(wrong).passed


def test_weights_are_read_in_bf16_and_gradients_add_up_in_fp32():
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    numerics = Numerics(compute=torch.bfloat16)
    lower_weights(model.modules(), numerics, is_training=True, is_sharded=False)
    output, _ = model(torch.randn(2, 4, 8, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert isinstance(model[0], nn.Linear)


def test_the_plans_precision_is_asked_for_by_name():
    assert run_precision("bf16", "plan") == "bf16"
    assert run_precision("tf32", None) == "tf32"
