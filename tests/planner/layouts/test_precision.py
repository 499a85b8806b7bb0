"""Recipes in fp8: what runs in it, what is cast; traffic of kernels beside operands."""

from dataclasses import replace

import pytest

from planner.layouts.kernel_traffic import unseen_bytes
from planner.layouts.precision import precision_of, runs_in_fp8
from planner.layouts.sizes import local_sizes
from planner.layouts.work import Cut, backward_work, forward_work
from planner.models.resolve import resolve_model
from planner.tracing import trace_model

BATCH = 2


@pytest.fixture(scope="module")
def gpt():
    return trace_model(resolve_model("gpt2"), sequence_length=64)


@pytest.fixture
def cut_of(gpt, training, software):
    def make(precision="fp8", **changes):
        return Cut(
            graph=gpt, sizes=local_sizes(gpt, microbatch_size=BATCH, context_parallel_size=1),
            choice=None, size=1, expert_size=1, workload=replace(training, precision=precision),
            software=replace(software, **changes),
        )  # fmt: skip

    return make


def named(graph, word):
    return next(
        operator for _, operator in graph.graph.nodes(data="operator") if word in operator.name
    )


def test_only_linear_layers_run_in_fp8(gpt):
    operators = [operator for _, operator in gpt.graph.nodes(data="operator")]
    in_fp8 = {o.name for o in operators if runs_in_fp8(o)}
    products = {o.name for o in operators if o.kind == "matmul"}
    assert products - in_fp8 == {o.name for o in operators if "head.projection" in o.name}
    assert {precision_of(o, "fp8") for o in operators if o.name not in in_fp8} == {"bf16"}
    assert {precision_of(o, "fp16") for o in operators} == {"fp16"}


@pytest.mark.parametrize("fuses_elementwise", [True, False])
def test_linear_layer_casts_input_and_unless_kept_weight(gpt, cut_of, fuses_elementwise):
    up = named(gpt, "ffn.up:linear")
    cut = cut_of(fuses_elementwise=fuses_elementwise)
    cast, product = forward_work(up, cut)
    tokens, hidden, ffn = BATCH * 64, 768, 3072
    weights = 0 if fuses_elementwise else hidden * ffn
    assert cast.memory_bytes == 4 * (tokens * hidden + weights)  # 2 read, twice 1 written
    assert (cast.kind, product.precision) == ("memory", "fp8")
    cast, *products = backward_work(up, cut)
    assert cast.memory_bytes == 4 * tokens * ffn
    assert [work.precision for work in products] == ["fp8", "fp8"]


def test_no_casts_in_bf16(gpt, cut_of):
    assert len(forward_work(named(gpt, "ffn.up:linear"), cut_of("bf16"))) == 1


def test_vocabulary_of_50257_is_not_aligned(gpt, cut_of):
    (head,) = forward_work(named(gpt, "head.projection"), cut_of("bf16"))
    (up,) = forward_work(named(gpt, "ffn.up:linear"), cut_of("bf16"))
    assert (head.n % 8 == 0, head.aligned, up.aligned) == (False, False, True)


@pytest.mark.parametrize(
    ("word", "backward", "expected"),
    [
        ("cross_entropy", False, 4.0),  # log-probabilities written
        ("cross_entropy", True, 8.0),  # gradient filled, and read again
        ("attention_norm", True, 3.0),  # input and gradient once more
        ("attention_norm", False, 0.0),
        ("token:embedding", True, 7.0),  # the table's gradient filled with zeros
        ("attention.output:add", False, 5.0),  # the mask
        ("attention.output:add", True, 0.0),
    ],
)
def test_unseen_traffic(gpt, word, backward, expected):
    def found(*, is_fused):
        return unseen_bytes(
            named(gpt, word), endpoints=(1.0, 2.0, 7.0), mask_bytes=5.0, kept_fp32_bytes=4.0,
            is_fused=is_fused, backward=backward,
        )  # fmt: skip

    assert found(is_fused=False) == expected
    assert found(is_fused=True) == (expected if "add" in word else 0.0)
