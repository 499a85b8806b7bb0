"""Local work of single operators, by hand."""

from dataclasses import replace

import pytest

from planner.graph import TensorTerm
from planner.layouts.sizes import local_sizes
from planner.layouts.work import Cut, backward_work, forward_work, score_bytes, term_bytes

B, S, H, HEADS, FFN = 2, 1024, 1024, 16, 4096
SCORES = B * HEADS * S * S


@pytest.fixture
def cut_of(training, software):
    def make(graph, choice=None, *, size=4, experts=1, context=1, **changes):
        workload = replace(training, attention=changes.pop("attention", "auto"))
        return Cut(
            graph=graph,
            sizes=local_sizes(graph, microbatch_size=B, context_parallel_size=context),
            choice=choice, size=size, expert_size=experts, workload=workload,
            software=replace(software, **changes),
        )  # fmt: skip

    return make


def test_product_and_its_two_gradients(builders, cut_of):
    graph = builders["gpt"]()
    (forward,) = forward_work(graph.operator("fc1"), cut_of(graph, "ffn"))
    assert (forward.kind, forward.m, forward.n, forward.k) == ("matmul", B * S, FFN / 4, H)
    assert forward.num_flops == 2 * B * S * FFN * H / 4
    assert forward.memory_bytes == 2 * (B * S * H + FFN * H / 4 + B * S * FFN / 4)
    data, weight = backward_work(graph.operator("fc1"), cut_of(graph, "ffn"))
    assert (data.m, data.n, data.k) == (B * S, H, FFN / 4)
    assert (weight.m, weight.n, weight.k) == (H, FFN / 4, B * S)
    assert data.num_flops == weight.num_flops == forward.num_flops


@pytest.mark.parametrize(
    ("choice", "m", "n", "k"),
    [(None, B * S, H, FFN), ("b", B * S / 2, H, FFN), ("ffn", B * S, H, FFN / 2),
     ("h", B * S, H / 2, FFN), ("s", B * S / 2, H, FFN)],
)  # fmt: skip
def test_split_shortens_one_side(builders, cut_of, choice, m, n, k):
    graph = builders["gpt"]()
    (work,) = forward_work(graph.operator("fc2"), cut_of(graph, choice, size=2))
    assert (work.m, work.n, work.k) == (m, n, k)


def test_first_product_has_no_input_gradient(builders, cut_of):
    graph = builders["experts"]()
    assert len(backward_work(graph.operator("stem"), cut_of(graph))) == 1
    assert len(backward_work(graph.operator("router"), cut_of(graph))) == 2


def test_fused_attention_skips_half_of_a_causal_mask(builders, cut_of):
    graph = builders["gpt"]()
    (work,) = forward_work(graph.operator("attention"), cut_of(graph, "heads"))
    assert (work.kind, work.batch, work.m, work.n) == ("attention", B * HEADS / 4, S, S)
    assert work.num_flops == 0.5 * 4 * SCORES * (H / HEADS) / 4
    assert score_bytes(graph.operator("attention"), cut_of(graph, "heads")) == 0


@pytest.mark.parametrize(("fused", "passes", "kernels"), [(True, 2, 1), (False, 6, 3)])
def test_unfused_attention_moves_its_scores(builders, cut_of, fused, passes, kernels):
    graph = builders["gpt"]()
    cut = cut_of(graph, attention="unfused", fuses_attention_softmax=fused)
    *products, softmax = forward_work(graph.operator("attention"), cut)
    assert [(work.m, work.n, work.k) for work in products] == [(S, S, H // HEADS),
                                                             (S, H // HEADS, S)]  # fmt: skip
    assert sum(work.num_flops for work in products) == 4 * SCORES * (H / HEADS)
    assert softmax.memory_bytes == passes * SCORES * 2
    assert softmax.num_kernels == kernels
    assert len(backward_work(graph.operator("attention"), cut)) == 5
    assert score_bytes(graph.operator("attention"), cut) == 2 * SCORES


def test_dropout_keeps_its_output_and_mask(builders, cut_of):
    graph = builders["gpt"]()
    operator = replace(graph.operator("attention"), dropout=True)
    assert score_bytes(operator, cut_of(graph, attention="unfused")) == 5 * SCORES


def test_fused_chain_moves_what_enters_and_leaves(builders, cut_of):
    graph = builders["gpt"]()
    tokens = B * S * FFN
    separate = replace(
        graph.operator("gelu"), num_kernels_forward=2,
        traffic_forward=(TensorTerm(labels=("b", "s", "ffn"), dtype="compute", times=5.0),),
    )  # fmt: skip
    (eager,) = forward_work(separate, cut_of(graph, fuses_elementwise=False))
    (fused,) = forward_work(separate, cut_of(graph))
    assert (eager.num_kernels, eager.memory_bytes) == (2, 2 * 5 * tokens)
    assert (fused.num_kernels, fused.memory_bytes) == (1, 2 * (2 * tokens + FFN))


def test_experts_share_the_tokens(builders, cut_of):
    graph = builders["experts"]()
    rows = B * S * 2
    (whole,) = forward_work(graph.operator("up"), cut_of(graph))
    (split,) = forward_work(graph.operator("up"), cut_of(graph, "e"))
    (spread,) = forward_work(graph.operator("up"), cut_of(graph, experts=4))
    assert whole.num_flops == 2 * rows * 1024 * 4096 == 4 * split.num_flops == spread.num_flops
    weights = TensorTerm(labels=("e", "h", "ffn"), dtype="compute")
    held = [term_bytes(graph.operator("up"), weights, cut) for cut in (
        cut_of(graph), cut_of(graph, "e"), cut_of(graph, experts=4))]  # fmt: skip
    assert held == [2 * 8 * 1024 * 4096, 2 * 2 * 1024 * 4096, 2 * 2 * 1024 * 4096]


def test_queries_are_split_over_context_and_keys_are_not(builders, cut_of):
    graph = builders["gpt"]()
    (work,) = forward_work(graph.operator("attention"), cut_of(graph, context=4))
    assert (work.m, work.n) == (S / 4, S)


def test_a_product_that_accumulates_moves_its_fp32_buffer(builders, cut_of):
    graph = builders["gpt"]()

    def gradient(**changes):
        return backward_work(graph.operator("fc1"), cut_of(graph, **changes))[-1]

    alone = gradient(gradient_precision="compute")
    parameters = FFN * H
    fused = gradient(gradient_precision="fp32")
    assert fused.memory_bytes - alone.memory_bytes == (4 + 4 - 2) * parameters
    copied = gradient(gradient_precision="fp32", gradient_accumulation_bytes=8.0)
    assert copied.memory_bytes == alone.memory_bytes
