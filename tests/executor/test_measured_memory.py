"""Predicted peak memory beside what torch's allocator reports for the executor's own runs."""

import pytest

from benchmarks.memory_check import GPT, UNTIED, Case, check

pytestmark = pytest.mark.distributed
CASES = (
    Case(model=GPT, strategy="microbatch=8", global_batch=8, seq_len=128),
    Case(model=GPT, strategy="microbatch=2", global_batch=8, seq_len=128),
    Case(model=UNTIED, strategy="dp=2,microbatch=2", global_batch=8, seq_len=128),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.strategy)
def test_predicted_peak_is_what_torch_allocates(case: Case) -> None:
    assert check(case).ratio == pytest.approx(1.0, abs=0.01)


def test_full_recomputation_is_never_told_low() -> None:
    found = check(Case(model=GPT, strategy="microbatch=8,recompute=full", global_batch=8,
                       seq_len=128))  # fmt: skip
    assert 0.98 <= found.ratio <= 1.05
