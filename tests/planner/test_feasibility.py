"""Why a strategy is impossible, before anything is priced."""

import re

import pytest

from planner.feasibility import find_rejection, num_experts
from planner.space import cores, microbatch_sizes, strategies_of
from planner.strategy import parse_strategy
from tests.planner.problems import MACHINE, problem_of


@pytest.mark.parametrize(
    ("strategy", "reason", "message"),
    [
        ("dp=9", "devices", "use smaller sizes or more nodes"),
        ("dp=3", "divisibility", "dp\\*microbatch = 3\\*1"),
        ("dp=8,microbatch=8", "divisibility", "= 64"),
        ("tp=5", "divisibility", "num_attention_heads=12"),
        ("tp=2,pp=4,microbatch=32,schedule=interleaved,virtual_stages=2", "divisibility",
         "microbatches \\(1\\)"),
        ("pp=8,virtual_stages=2,schedule=interleaved", "stages", "at most"),
        ("pp=8,schedule=zbv", "stages", "at most"),
        ("dp=2,pp=2,schedule=zero_bubble,sharding=parameters", "sharding", "frees weights between"),
        ("dp=2,pp=2,schedule=zbv,sharding=optimizer", "tied weights", "one rank"),
        ("cp=3", "divisibility", "2\\*cp = 6"),
        ("dp=8,ep=2", "no experts", "use ep=1"),
    ],
)  # fmt: skip
def test_reasons(strategy: str, reason: str, message: str) -> None:
    rejection = find_rejection(problem_of(), parse_strategy(strategy))
    assert rejection is not None
    assert rejection.reason == reason
    assert re.search(message, rejection.message)
    assert "\n" not in rejection.message


def test_sequence_parallelism_needs_a_length_that_divides() -> None:
    problem = problem_of(seq_len=127)
    strategy = parse_strategy("tp=2,sequence_parallel=on")
    rejection = find_rejection(problem, strategy)
    assert rejection is not None
    assert "127" in rejection.message
    assert find_rejection(problem, parse_strategy("tp=2")) is None


def test_a_mix_needs_no_heads_that_divide() -> None:
    problem = problem_of()
    assert find_rejection(problem, parse_strategy("tp=8")) is not None
    assert find_rejection(problem, parse_strategy("tp=8,layout=mixed,microbatch=8")) is None


def test_dense_models_have_no_experts() -> None:
    assert num_experts(problem_of()) is None


@pytest.mark.parametrize("num_devices", [1, 6, 8])
def test_the_space_uses_the_devices_it_is_given(num_devices: int) -> None:
    problem = problem_of("mlp", MACHINE, global_batch=48)
    seen = set()
    for core in cores(problem, num_devices=num_devices, fixed={}):
        for size in microbatch_sizes(problem, fixed={}):
            for strategy in strategies_of(
                problem, core, microbatch_size=size, num_devices=num_devices, fixed={}
            ):
                assert strategy.num_devices == num_devices
                assert strategy not in seen
                seen.add(strategy)
    assert seen


def test_fixed_fields_are_kept_by_the_whole_space() -> None:
    problem = problem_of()
    fixed = {"tensor_parallel_size": 2, "sharding": "optimizer", "microbatch_size": 4}
    for core in cores(problem, num_devices=8, fixed=fixed):
        for strategy in strategies_of(problem, core, microbatch_size=4, num_devices=8, fixed=fixed):
            assert all(getattr(strategy, name) == value for name, value in fixed.items())


def test_sequence_parallelism_needs_a_sequence() -> None:
    problem = problem_of("alexnet", seq_len=None, global_batch=64)
    rejection = find_rejection(problem, parse_strategy("tp=2,sequence_parallel=on"))
    assert rejection is not None
    assert rejection.reason == "no sequence"


@pytest.mark.parametrize("length", [127, 128])
def test_fixed_sequence_parallelism_is_kept_or_refused(length: int) -> None:
    problem = problem_of(seq_len=length)
    found = list(cores(problem, num_devices=8, fixed={"sequence_parallel": True}))
    assert found
    assert all(core.sequence_parallel for core in found)
