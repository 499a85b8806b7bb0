"""Which optimizer runs for the plan's, and Adafactor's state before its first step."""

import pytest
import torch
from jobs import TIMEOUT_S, train
from plans import plan_of
from torch import nn

from executor.errors import RunError
from executor.optimizer import ShardOptimizer
from executor.optimizer_choice import optimizer_that_runs
from executor.shape import shape_of_run


def shape(strategy, optimizer):
    plan = plan_of(strategy, optimizer=optimizer)
    return shape_of_run(plan, num_processes=8, sequence_length=16)


@pytest.mark.parametrize(
    ("strategy", "optimizer", "runs"),
    [("dp=2,microbatch=2", "adafactor", "adafactor"),
     ("pp=2,microbatch=2", "adafactor", "adafactor"),
     ("tp=2,microbatch=2", "adafactor", "adam"),
     ("dp=2,microbatch=2,sharding=optimizer", "adafactor", "adam"),
     ("dp=2,microbatch=2", "adam8bit", "adam"),
     ("dp=2,microbatch=2,sharding=optimizer", "momentum", "momentum")],
)  # fmt: skip
def test_the_plan_s_optimizer_runs_where_it_can(strategy, optimizer, runs):
    assert optimizer_that_runs(shape(strategy, optimizer)) == runs


@pytest.mark.parametrize(
    ("strategy", "optimizer", "words"),
    [("dp=2,microbatch=2", "adam8bit", "optimizer adam8bit: torch has none"),
     ("tp=2,microbatch=4", "adafactor", "this plan splits them over ranks")],
)  # fmt: skip
def test_a_job_does_not_train_with_another_optimizer(tmp_path, strategy, optimizer, words):
    plan = plan_of(strategy, optimizer=optimizer)
    with pytest.raises(RunError, match=f"{words}; make the plan with --optimizer adamw"):
        train("", tmp_path, plan=plan, timeout_s=TIMEOUT_S)
    assert list(tmp_path.iterdir()) == []


def test_adafactor_s_first_state_is_the_one_its_first_step_makes():
    shapes = [(6, 4), (5,), (3, 2, 2, 2)]
    updated = []
    for made_before in (False, True):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(size)) for size in shapes]
        optimizer = ShardOptimizer("adafactor", parameters, learning_rate=1e-2)
        before = [{k: v.shape for k, v in s.items()} for s in optimizer.state_tensors()]
        if not made_before:
            optimizer._inner.state.clear()
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        assert [{k: v.shape for k, v in s.items()} for s in optimizer.state_tensors()] == before
        updated.append([parameter.detach().clone() for parameter in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*updated, strict=True))
