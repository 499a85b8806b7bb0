"""FLOPs: products of role sizes, torch's own counter on real autograd, and closed forms."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from planner.graph_math import label_sizes, num_flops, term_elements, total_flops
from planner.models.resolve import resolve_model
from planner.tracing.session import trace_source
from tests.planner.tracing.user_modules import GROUPED, RECURRENT, SOURCES

SMALL = (
    "gpt2?scale_down=8",
    "llama3-8b?scale_down=16",
    "bert-large?scale_down=8",
    "t5-large?scale_down=16",
    "vit-large?scale_down=8",
    "resnet50?scale_down=8",
    "vgg16?scale_down=8",
    "alexnet?scale_down=4",
    "dlrm?scale_down=64",
    "mlp?scale_down=4",
)
MATH_ATTENTION_BACKWARD = 2.0
BATCH = 2


def traced(model, *, sequence_length=None, fold=True):
    source = resolve_model(model) if isinstance(model, str) else model
    length = sequence_length or source.default_sequence_length
    return trace_source(source, sequence_length=length, content_key="", fold=fold)


def counted_by_torch(model):
    """FLOPs of a real training step of the model, attention decomposed so that torch sees it."""
    source = resolve_model(model) if isinstance(model, str) else model
    module = source.build().train()
    batch = source.make_batch(BATCH, source.default_sequence_length, 0)
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        loss = source.loss(module(*batch.inputs, **batch.keywords), batch.targets)
        forward = counter.get_total_flops()
        loss.backward()
        return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("text", SMALL)
def test_totals_equal_torch_counter_on_real_autograd(text):
    check_totals(text)


@pytest.mark.parametrize("name", SOURCES)
def test_totals_of_user_modules_equal_torch_counter(name):
    check_totals(SOURCES[name])


def check_totals(model):
    graph = traced(model)
    forward, backward = counted_by_torch(model)
    sizes = label_sizes(graph, microbatch_size=BATCH)
    recomputed = sum(
        unit.count
        * (
            num_flops(operator, sizes=sizes, phase="backward")
            - MATH_ATTENTION_BACKWARD * num_flops(operator, sizes=sizes, phase="forward")
        )
        for unit in graph.units
        for operator in map(graph.operator, unit.operators)
        if operator.kind == "attention"
    )
    assert total_flops(graph, batch_size=BATCH, phase="forward") == forward
    assert total_flops(graph, batch_size=BATCH, phase="backward") - recomputed == backward


@pytest.mark.parametrize("model", ["lstm?scale_down=32", RECURRENT])
def test_recurrence_equals_torch_counter_where_it_sees_the_cells(model):
    """The first step has no gradient for its state, which is constant."""
    with torch.backends.mkldnn.flags(enabled=False):
        forward, backward = counted_by_torch(model)
    graph = traced(model)
    sizes = label_sizes(graph, microbatch_size=BATCH)
    first_steps = sum(
        unit.count
        * operator.flops_forward[1].coefficient
        * term_elements(operator.flops_forward[1].labels, sizes=sizes)
        / operator.sequential_steps
        for unit in graph.units
        for operator in map(graph.operator, unit.operators)
        if operator.kind == "recurrent"
    )
    assert total_flops(graph, batch_size=BATCH, phase="forward") == forward
    assert total_flops(graph, batch_size=BATCH, phase="backward") - first_steps == backward


def test_grouped_convolutions_have_two_backward_products_each():
    """torch counts the backward of grouped convolutions as if they had one group; we do not."""
    graph = traced(GROUPED)
    forward, _ = counted_by_torch(GROUPED)
    sizes = label_sizes(graph, microbatch_size=BATCH)
    first = num_flops(graph.operator("layers.0:convolution"), sizes=sizes, phase="forward")
    assert total_flops(graph, batch_size=BATCH, phase="forward") == forward
    assert total_flops(graph, batch_size=BATCH, phase="backward") == 2 * forward - first


@pytest.mark.parametrize("text", ["gpt2", "resnet50", "llama3-8b", "mixtral-8x7b", "lstm"])
def test_flops_are_products_of_role_sizes(text):
    graph = traced(text)
    sizes = label_sizes(graph, microbatch_size=3)
    seen = 0
    for name in graph.graph:
        operator = graph.operator(name)
        labels = {index.label for index in operator.indices}
        assert len(labels) == len(operator.indices)
        for term in operator.flops_forward:
            assert set(term.labels) <= labels
            assert len(set(term.labels)) == len(term.labels)
        if operator.kind == "matmul":
            product = [label for part in operator.roles_mn_k for label in part]
            assert len(set(product)) == len(product)
            experts = math.prod(
                sizes[index.label] for index in operator.indices if index.role == "expert"
            )
            expected = 2 * term_elements(product, sizes=sizes) / experts
            assert num_flops(operator, sizes=sizes, phase="forward") == pytest.approx(expected)
            seen += 1
    assert seen


@pytest.mark.parametrize(
    ("text", "relative"),
    [("gpt3-175b", 0.04), ("llama3-405b", 0.06), ("gpt2-xl", 0.12)],
)
def test_dense_training_is_six_times_parameters_times_tokens(text, relative):
    """6 N per token (Kaplan et al., 2020), attention on top: within a few percent."""
    graph = traced(text, sequence_length=1024)
    expected = 6 * graph.num_parameters * 1024
    assert total_flops(graph, batch_size=1) == pytest.approx(expected, rel=relative)
    assert total_flops(graph, batch_size=1) > 0.99 * expected


@pytest.mark.parametrize("text", ["mixtral-8x7b", "deepseek-v3"])
def test_experts_cost_what_active_parameters_do(text):
    graph = traced(text, sequence_length=256)
    tokens = 256
    forward = total_flops(graph, batch_size=1, phase="forward")
    assert forward == pytest.approx(2 * graph.active_parameters * tokens, rel=0.06)


def test_gpt3_forward_is_the_published_formula():
    """Narayanan et al., 2021, eq. 2: 24 B s l h^2 (1 + s / 6h + V / 12 l h) forward."""
    graph = traced("gpt3-175b")
    hidden, layers, length = 12288, 96, 2048
    vocab_size = graph.indices["vocab"].size
    forward = (
        24
        * length
        * layers
        * hidden**2
        * (1 + length / (6 * hidden) + vocab_size / (12 * layers * hidden))
    )
    assert total_flops(graph, batch_size=1, phase="forward") == pytest.approx(forward, rel=1e-12)
