"""When a step peaks, and what is there at that moment, on small traced models."""

from dataclasses import replace

import numpy as np
import pytest

from tests.planner.problems import evaluated, problem_of

S, B = 128, 4


def terms_of(strategy: str, **software: object) -> dict[str, float]:
    """Return the terms of GPT-2 under a strategy, with fields of the software changed [B]."""
    problem = problem_of()
    problem = replace(problem, software=replace(problem.software, **software))  # type: ignore[arg-type]
    return evaluated(problem, strategy).memory.breakdown_of_largest()


def test_gradients_made_in_the_step_are_not_there_when_its_first_activations_peak() -> None:
    one = terms_of("dp=1,microbatch=32", gradient_buckets="none")
    two = terms_of("dp=1,microbatch=16", gradient_buckets="none")
    buffer = terms_of("dp=1,microbatch=32", frees_gradients=False)
    assert one["gradients"] == 0
    assert two["gradients"] == buffer["gradients"] == pytest.approx(4 * 124_439_808)


def test_a_step_without_activations_to_speak_of_peaks_in_the_update() -> None:
    found = terms_of("dp=1,microbatch=1,recompute=full", optimizer_temporary_bytes=4.0)
    assert found["activations"] == 0
    assert found["workspace"] == pytest.approx(4 * 124_439_808)


def test_replicas_hold_bucket_copies_beside_gradients() -> None:
    copies = terms_of("dp=8,microbatch=2", gradient_buckets="copies")
    views = terms_of("dp=8,microbatch=4", gradient_buckets="views")
    unreduced = terms_of("dp=8,microbatch=2", gradient_buckets="views")
    whole = pytest.approx(4 * 124_439_808)
    assert copies["communication"] == unreduced["communication"] == whole
    assert (views["gradients"], views["communication"]) == (whole, 0)


def test_torch_keeps_what_sequence_parallel_products_gather() -> None:
    strategy = f"tp=4,microbatch={B},sequence_parallel=on"
    kept = terms_of(strategy, keeps_gathered=True)["activations"]
    shards = terms_of(strategy, keeps_gathered=False)["activations"]
    # two inputs of each of 12 blocks, three quarters of each; 50257 words cannot be split by 4
    gathered = 2 * 12 * 2 * S * B * 768 * 3 / 4
    assert kept - shards == pytest.approx(gathered)


def test_the_held_output_is_the_logits() -> None:
    held = terms_of(f"dp=1,microbatch={B}", keeps_output=True)["activations"]
    gone = terms_of(f"dp=1,microbatch={B}", keeps_output=False)["activations"]
    assert held - gone == pytest.approx(2 * S * B * 50257)


def test_a_tied_gradient_waits_for_the_embeddings_and_is_added_into_a_third() -> None:
    items = evaluated(problem_of(), "dp=1,microbatch=1").stages.items
    assert items is not None
    table = 50257 * 768
    assert items.waiting[0] == 2 * table
    assert set(items.waiting[1:-1]) <= {0.0, table}
    assert items.waiting[5] == table
    assert items.waiting[-1] == 0


def test_dummy_gradients_are_one_block_of_16_bit_weights() -> None:
    with_dummies = terms_of("dp=1,microbatch=16", keeps_dummy_gradients=True)
    without = terms_of("dp=1,microbatch=16")
    block = 12 * 768 * 768 * 2
    assert with_dummies["workspace"] - without["workspace"] == pytest.approx(block, rel=0.01)


def test_stages_of_torch_have_a_buffer_per_microbatch() -> None:
    found = evaluated(problem_of(), "pp=4,microbatch=4").memory.terms["communication"]
    entry = 2 * 4 * S * 768
    ends, middle = 8 * entry, 2 * 8 * entry
    assert np.array_equal(found, [ends, middle, middle, ends])
