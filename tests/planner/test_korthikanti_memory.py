"""Activation memory as Korthikanti et al. derive it (arXiv:2205.05198, sections 4 and 5)."""

import numpy as np
import pytest

from planner.evaluation import evaluate_memory
from planner.problem import PriceBook, Problem
from planner.strategy import Recompute, parse_strategy
from simulator.closed_form import in_flight_per_chunk
from tests.planner.problems import evaluated, problem_of

S, B, H, A, LAYERS, V, T = 256, 2, 512, 8, 8, 16_384, 4
MODEL = (
    f"gpt2?num_layers={LAYERS}&hidden_size={H}&num_heads={A}&vocab_size={V}"
    f"&max_positions={S}&dropout=0.1&tied=false"
)
SBH = S * B * H
SCORES = 5 * A * S / H
STATISTICS = 2 * 2 * 4 * S * B
"""Mean and deviation of two norms in fp32, which the paper leaves out [B]."""


def problem() -> Problem:
    return problem_of(MODEL, seq_len=S, precision="fp16", software="megatron-2021")


def block_bytes(strategy: str, *, recompute: Recompute = "none") -> float:
    """Return what one block keeps; items are embedding, blocks, head [B]."""
    items = evaluated(problem(), f"{strategy},microbatch={B},recompute={recompute}").stages.items
    assert items is not None
    return float(items.saved[recompute][2])


def test_without_tensor_parallelism_a_layer_keeps_equation_1() -> None:
    assert block_bytes("dp=1") == SBH * (34 + SCORES) + STATISTICS


def test_tensor_parallelism_divides_all_but_ten_sbh() -> None:
    assert block_bytes(f"tp={T}") == SBH * (10 + 24 / T + SCORES / T) + STATISTICS


def test_sequence_parallelism_divides_everything() -> None:
    found = block_bytes(f"tp={T},sequence_parallel=on")
    assert found == (SBH * (34 + SCORES) + STATISTICS) / T


def test_selective_recomputation_drops_the_scores() -> None:
    assert block_bytes("dp=1", recompute="selective") == SBH * 34 + STATISTICS
    found = block_bytes(f"tp={T},sequence_parallel=on", recompute="selective")
    assert found == (SBH * 34 + STATISTICS) / T
    assert block_bytes(f"tp={T}", recompute="selective") == SBH * (10 + 24 / T) + STATISTICS


def test_full_recomputation_keeps_the_entry() -> None:
    assert block_bytes("dp=1", recompute="full") == 2 * SBH
    assert block_bytes(f"tp={T}", recompute="full") == 2 * SBH
    assert block_bytes(f"tp={T},sequence_parallel=on", recompute="full") == 2 * SBH / T


def test_embedding_keeps_its_dropout_mask_and_the_head_fp32_logits() -> None:
    items = evaluated(problem(), f"tp={T},microbatch={B},sequence_parallel=on").stages.items
    assert items is not None
    tokens_and_positions = 8 * S * B + 8 * S
    mask_and_output = SBH / T + 2 * SBH / T
    assert items.saved["none"][0] == pytest.approx(mask_and_output, abs=tokens_and_positions)
    # norm's output for the projection, its statistics, softmax in fp32 over the rank's vocabulary
    head = 2 * SBH / T + 8 * S * B / T + 4 * S * B * V / T
    assert items.saved["none"][-1] == pytest.approx(head, abs=16 * S * B)


@pytest.mark.parametrize(("p", "v"), [(2, 1), (4, 1), (8, 1), (4, 3), (8, 2)])
def test_first_stage_holds_p_microbatches_and_interleaved_more(p: int, v: int) -> None:
    schedule = "1f1b" if v == 1 else "interleaved"
    count = in_flight_per_chunk(
        schedule, num_stages=p, num_microbatches=4 * p, virtual_stages=v
    )  # fmt: skip
    layers = count[:, 0].sum() * LAYERS / (p * v)
    factor = 1.0 if v == 1 else 1 + (p - 1) / (p * v)
    assert layers == pytest.approx(LAYERS * factor)


def test_the_last_virtual_stage_holds_the_logits_of_one_microbatch() -> None:
    strategy = f"pp=2,microbatch={B},schedule=interleaved,virtual_stages=2"
    evaluation = evaluated(problem(), strategy)
    items = evaluation.stages.items
    assert items is not None
    per_stage = np.add.reduceat(items.saved["none"], items.starts)
    held = evaluation.memory.terms["activations"][1]
    entry = evaluation.stages.entry_bytes
    assert held == pytest.approx(2 * (per_stage[1]) + per_stage[3] + entry[3], rel=0.01)


def test_gradients_are_whole_and_state_is_sharded_under_a_distributed_optimizer() -> None:
    found = problem()
    book = PriceBook(problem=found)
    strategy = parse_strategy(f"dp=4,microbatch={B},sharding=optimizer")
    memory, _ = evaluate_memory(book, strategy, book.layouts(strategy)[0])
    count = found.graph.num_parameters
    assert memory.terms["parameters"].sum() == 2 * count
    assert memory.terms["gradients"].sum() == 4 * count
    assert memory.terms["optimizer"].sum() == 12 * count / 4
