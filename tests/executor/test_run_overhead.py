"""The two sides of benchmarks/run_overhead.py do the same: equal losses, equal collectives."""

import math

import pytest

from benchmarks.run_overhead import GPT, LOSS_TOLERANCE, Case, measure
from benchmarks.run_overhead_ratios import ratio_of

TINY = f"{GPT}&num_layers=2&hidden_size=32"


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["fsdp2", "tp+sp"])
def test_run_and_script_by_hand_send_the_same_and_learn_the_same(kind):
    found = measure(Case(kind=kind, size="tiny"), rounds=1, model=TINY)
    assert found.max_loss_difference < LOSS_TOLERANCE
    by_hand, run = found.collectives["by hand"], found.collectives["run"]
    assert by_hand
    assert run == by_hand
    assert min(found.step_times_s.values()) > 0


def test_ratio_is_that_of_steps_beside_each_other():
    drifting = [1.0, 2.0, 4.0, 8.0, 16.0]
    found = ratio_of([1.1 * time for time in drifting], baseline_s=drifting)
    assert (found.low, found.median, found.high) == pytest.approx((1.1, 1.1, 1.1))


def test_interval_holds_the_median_and_grows_with_the_noise():
    calm = ratio_of([1.0, 1.01, 1.02, 1.03, 1.04], baseline_s=[1.0] * 5)
    noisy = ratio_of([0.8, 0.9, 1.02, 1.2, 1.4], baseline_s=[1.0] * 5)
    assert calm.low <= calm.median <= calm.high
    assert noisy.median == calm.median
    assert noisy.high - noisy.low > calm.high - calm.low
    assert math.isclose(noisy.low, 0.8)
