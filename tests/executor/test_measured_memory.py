"""Predicted peak memory beside the live tensors that torch's allocator counts in our own runs."""

import threading

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory_check import GPT, LLAMA, UNTIED, Case, check
from executor.live_tensors import _counting, _of_events

pytestmark = pytest.mark.distributed
EXACT = (
    Case(model=GPT, strategy="microbatch=2", global_batch=8, seq_len=128),
    Case(model=UNTIED, strategy="dp=2,microbatch=2", global_batch=8, seq_len=128),
)
NEAR = (
    Case(model=UNTIED, strategy="tp=2,microbatch=4", global_batch=8, seq_len=128),
    Case(model=GPT, strategy="dp=2,microbatch=4,sharding=parameters", global_batch=8, seq_len=128),
    Case(model=LLAMA, strategy="dp=2,microbatch=4,sharding=parameters", global_batch=8,
         seq_len=128),
)  # fmt: skip


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.strategy)
def test_predicted_peak_is_what_torch_allocates(case: Case) -> None:
    found = check(case)
    assert found.ratio == pytest.approx(1.0, abs=0.01)
    kept = found.terms["parameters"] + found.terms["optimizer"]
    buckets = found.terms["gradients"] if "dp=2,microbatch=2" in case.strategy else 0.0
    # beside them: the batch, and a step count of 4 B per tensor
    assert 0 <= found.held_bytes - kept - buckets < 0.001 * found.held_bytes + 16384


@pytest.mark.parametrize("case", NEAR, ids=lambda case: case.strategy)
def test_predicted_peak_under_collectives_is_near_and_never_low(case: Case) -> None:
    assert 0.98 <= check(case).ratio <= 1.05


def test_releases_by_other_threads_are_counted() -> None:
    with _counting() as is_counted:
        assert is_counted
        held = [torch.zeros(250_000), torch.zeros(500_000)]
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            first = torch.zeros(1000)
            thread = threading.Thread(target=held.clear)
            thread.start()
            thread.join()
            second = torch.zeros(2000)
    found = _of_events(profiler.profiler.kineto_results.experimental_event_tree())
    assert found.peak_bytes - found.held_bytes == first.nbytes
    assert found.held_bytes >= 3_000_000
    assert second.nbytes == 8000
