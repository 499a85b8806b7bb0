"""The traced graph: units, labels, parameters, saved tensors, warnings."""

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planner.errors import ModelError
from planner.graph_math import label_sizes, term_bytes, total_flops, trace_summary
from planner.models.resolve import resolve_model
from planner.models.source import Batch, ModelSource
from planner.tracing import graph_to_json, trace_model
from planner.tracing.session import trace_source
from tests.planner.tracing.user_modules import SOURCES, UNTRACEABLE


def traced(text, **options):
    source = resolve_model(text)
    options.setdefault("sequence_length", source.default_sequence_length)
    return trace_source(source, content_key="", **options)


def vector_source(build, *, size=8, name="custom"):
    return ModelSource(
        source=name,
        name=name,
        default_sequence_length=1,
        build=build,
        make_batch=lambda samples, _length, _seed: Batch(
            inputs=(torch.randn(samples, size),), keywords={}, targets=None
        ),
        loss=lambda out, _targets: out.float().mean(),
        chain=lambda _module: None,
    )


@pytest.fixture(scope="module")
def gpt2():
    return traced("gpt2")


EVERY_MODEL = (
    "gpt2", "gpt3-175b", "llama3-8b", "llama3-405b", "bert-large", "t5-large", "vit-large",
    "resnet50", "vgg16", "alexnet", "lstm", "dlrm", "mixtral-8x7b", "deepseek-v3",
    "hf:gpt2", "hf:llama", "hf:bert", "hf:mixtral",
)  # fmt: skip
PUBLISHED_PARAMETERS = {
    "gpt2": 124_439_808,
    "llama3-8b": 8_030_261_248,
    "llama3-405b": 405_853_388_800,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "alexnet": 61_100_840,
    "mixtral-8x7b": 46_702_792_704,
    "hf:gpt2": 124_439_808,
}


@pytest.mark.parametrize("text", EVERY_MODEL)
def test_every_model_is_traced_whole(text):
    graph = traced(text, **({} if ":" not in text else {"sequence_length": 64}))
    assert nx.is_directed_acyclic_graph(graph.graph)
    assert [n for unit in graph.units for n in unit.operators] == list(graph.graph)
    assert not [n for n in graph.graph if graph.operator(n).kind == "other"]
    assert any(graph.operator(n).kind == "loss" for n in graph.units[-1].operators)
    assert sum(row.num_parameters for row in trace_summary(graph)) == graph.num_parameters
    if text in PUBLISHED_PARAMETERS:
        assert graph.num_parameters == PUBLISHED_PARAMETERS[text]
    for tensor in graph.tensors.values():
        labels = [label for dim in tensor.dims for label in dim]
        assert len(labels) == len(set(labels)), tensor
    for name in graph.graph:
        check_labels(graph, graph.operator(name))


def check_labels(graph, operator):
    """Relabelling maps a tensor's labels to the reader's, and every label has a size."""
    for operand in (*operator.inputs, *operator.parameters):
        held = {label for dim in graph.tensors[operand.tensor].dims for label in dim}
        assert {before for before, _ in operand.relabel} <= held
        after = {label for dim in operand.dims for label in dim}
        assert {new for _, new in operand.relabel} <= after
        assert after <= set(graph.indices)
    for output in operator.outputs:
        labels = {label for dim in graph.tensors[output].dims for label in dim}
        assert labels <= {index.label for index in operator.indices} or operator.kind == "pooling"


@pytest.mark.parametrize("text", ["gpt2", "llama3-8b", "resnet50", "mixtral-8x7b", "lstm", "dlrm"])
def test_every_activation_has_the_samples(text):
    graph = traced(text)
    without = [
        tensor.name
        for tensor in graph.tensors.values()
        if tensor.kind == "activation"
        and graph.batch_label not in {label for dim in tensor.dims for label in dim}
        and tensor.dims
    ]
    assert without == (["embedding.position:embedding>0"] if text == "gpt2" else [])


def test_gpt2_labels_are_the_readable_ones(gpt2):
    weights = {name: gpt2.tensors[name].dims for name in gpt2.tensors if name.endswith("weight")}
    core = "blocks.0.attention.core"
    assert weights["embedding.token.weight"] == (("vocab",), ("hidden",))
    assert weights["blocks.0.attention.query.weight"] == (
        (f"heads@{core}", f"head_dim@{core}"), ("hidden",),
    )  # fmt: skip
    assert weights["blocks.0.attention.output.weight"][1][0] == f"heads@{core}"
    assert weights["blocks.0.ffn.up.weight"] == (("ffn@blocks.0.ffn",), ("hidden",))
    assert (gpt2.batch_label, gpt2.sequence_labels) == ("b", ("s",))
    attention = next(gpt2.operator(n) for n in gpt2.graph if gpt2.operator(n).kind == "attention")
    assert [operand.relabel for operand in attention.inputs] == [
        (), (("s", "s_key"),), (("s", "s_key"),),
    ]  # fmt: skip


def test_fused_qkv_is_three_times_heads_times_head_dim():
    graph = traced("hf:gpt2?n_layer=2", sequence_length=32)
    qkv = graph.tensors["transformer.h.0.attn.c_attn.weight"].dims[1]
    output = graph.tensors["transformer.h.0.attn.c_proj.weight"].dims[0]
    assert [graph.indices[label].size for label in qkv] == [3, 12, 64]
    assert qkv[1:] == output
    assert not graph.indices[qkv[0]].splittable


def test_units_follow_the_model(gpt2):
    assert [(unit.name, unit.count) for unit in gpt2.units] == [
        ("embedding", 1), ("blocks.0..11", 12), ("head", 1),
    ]  # fmt: skip
    block = gpt2.units[1]
    assert block.module_paths == tuple(f"blocks.{n}" for n in range(12))
    ((entry, exit_),) = block.carried
    assert gpt2.tensors[entry].dims == gpt2.tensors[exit_].dims
    assert gpt2.tensors[exit_].producer in block.operators
    names = gpt2.parameter_names["blocks.0.ffn.up.weight"]
    assert names[11] == "blocks.11.ffn.up.weight"
    assert len(gpt2.parameter_names["embedding.token.weight"]) == 2


def test_encoder_decoder_has_two_block_units():
    graph = traced("t5-large")
    repeated = [unit for unit in graph.units if unit.count > 1]
    assert [unit.count for unit in repeated] == [23, 23]
    cross = next(n for n in graph.graph if n.endswith("EncDecAttention:attention"))
    keys = graph.operator(cross).inputs[1].dims
    queries = graph.operator(cross).inputs[0].dims
    assert (queries[2], keys[2]) == (("s_decoder",), ("s",))


@pytest.mark.parametrize("text", ["alexnet", "vgg16", "resnet50"])
def test_chains_can_be_cut_at_every_element(text):
    source = resolve_model(text)
    graph = traced(text)
    paths = [path for unit in graph.units for path in unit.module_paths]
    with torch.device("meta"):
        chain = source.chain(source.build())
    with_operators = {path for path in paths if path}
    assert with_operators <= set(chain)
    assert len(with_operators) >= len(chain) - 3


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("gpt2?num_layers=3", 64),
        ("hf:llama?num_hidden_layers=3", 64),
        ("hf:mixtral?num_hidden_layers=3", 64),
        ("resnet50", 1),
        ("lstm", 16),
        ("t5-large", 32),
    ],
)
def test_folded_blocks_cost_what_unfolded_ones_do(text, length):
    folded = traced(text, sequence_length=length)
    unfolded = traced(text, sequence_length=length, fold=False)
    assert len(folded.graph) < len(unfolded.graph)
    assert total_flops(folded, batch_size=2) == total_flops(unfolded, batch_size=2)
    for field in ("traffic_forward", "traffic_backward", "saved", "saved_fused"):
        assert summed(folded, field) == pytest.approx(summed(unfolded, field), rel=1e-12), field
    for field in ("num_kernels_forward", "num_kernels_backward"):
        assert counted(folded, field) == counted(unfolded, field)


def summed(graph, field):
    sizes = label_sizes(graph, microbatch_size=2)
    return sum(
        unit.count * term_bytes(getattr(graph.operator(n), field), sizes=sizes)
        for unit in graph.units
        for n in unit.operators
    )


def counted(graph, field):
    return sum(
        unit.count * getattr(graph.operator(n), field)
        for unit in graph.units
        for n in unit.operators
    )


def test_saved_bytes_of_a_fused_layer_match_korthikanti():
    """arXiv:2205.05198, section 4.1: 34 s b h bytes per layer beside the attention scores.

    Their 34 hold two dropout masks outside attention and 8 s b h of the attention block for
    which a fused kernel keeps its output (2) and row sums instead; equal to a byte otherwise.
    """
    graph = traced("gpt2")
    sizes = label_sizes(graph, microbatch_size=4)
    block = graph.units[1]
    saved = sum(term_bytes(graph.operator(n).saved_fused, sizes=sizes) for n in block.operators)
    elements = 4 * sizes["s"] * sizes["hidden"]
    row_sums = 4 * sizes["s"] * (12 * 4 + 2 * 2 * 4)
    assert (saved - row_sums) / elements == pytest.approx(34.0, rel=1e-9)


def test_the_same_model_gives_the_same_graph():
    assert graph_to_json(traced("mixtral-8x7b")) == graph_to_json(traced("mixtral-8x7b"))


class Scaled(nn.Module):
    def __init__(self, scale=1, activation=F.relu, layer_idx=0):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale, self.activation, self.layer_idx = scale, activation, layer_idx

    def forward(self, x):
        return x + self.scale * self.activation(self.linear(x))


class Stack(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ([{}, {}, {}], [3]),
        ([{"layer_idx": n} for n in range(3)], [3]),
        ([{}, {"scale": 2}, {"scale": 2}], [1, 2]),
        ([{}, {}, {"activation": F.gelu}], [2, 1]),
    ],
)
def test_only_blocks_with_equal_hyperparameters_are_folded(settings, counts):
    graph = trace_source(
        vector_source(lambda: Stack([Scaled(**setting) for setting in settings])),
        sequence_length=1,
        content_key="",
    )
    assert [unit.count for unit in graph.units if unit.name.startswith("blocks")] == counts


def test_parallel_branches_of_equal_modules_are_not_folded():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

        def forward(self, x):
            return torch.cat([branch(x) for branch in self.branches], dim=-1)

    graph = trace_source(vector_source(Branches), sequence_length=1, content_key="")
    assert all(unit.count == 1 for unit in graph.units)
    assert sum(row.num_parameters for row in trace_summary(graph)) == 3 * 36


def test_square_weights_keep_two_roles():
    graph = trace_source(
        vector_source(lambda: nn.Sequential(Residual(8), Residual(8))),
        sequence_length=1,
        content_key="",
    )
    for tensor in graph.tensors.values():
        labels = [label for dim in tensor.dims for label in dim]
        assert len(labels) == len(set(labels))
    add = next(graph.operator(n) for n in graph.graph if "add" in graph.operator(n).target)
    assert any(operand.relabel for operand in add.inputs)


class Residual(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(size, size, bias=False)

    def forward(self, x):
        return x + self.linear(x)


def test_unknown_operator_is_kept_and_named():
    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.points = nn.Parameter(torch.zeros(5, 8))

        def forward(self, x):
            return torch.cdist(x, self.points)

    graph = trace_source(vector_source(Distances), sequence_length=1, content_key="")
    (operator,) = (graph.operator(n) for n in graph.graph if graph.operator(n).kind == "other")
    assert [i.label for i in operator.indices if i.kind == "free"] == ["b"]
    assert operator.traffic_forward
    assert [w.subject for w in graph.warnings if w.subject == operator.target]


def test_a_branch_on_a_value_is_reported():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x) if x.sum() > 0 else x

    graph = trace_source(vector_source(Branch), sequence_length=1, content_key="")
    assert any("branch" in warning.subject for warning in graph.warnings)


def test_expert_load_is_reported_and_balanced():
    graph = traced("mixtral-8x7b")
    assert any("balanced" in warning.message for warning in graph.warnings)
    products = [graph.operator(n) for n in graph.graph if "grouped_mm" in graph.operator(n).target]
    labels = {i.label for op in products for i in op.indices if i.role == "expert"}
    assert len(products) == 2
    assert [graph.indices[label].size for label in labels] == [8]
    assert all(
        index.kind == "permuted"
        for op in products
        for index in op.indices
        if index.role in ("batch", "token")
    )


def test_a_model_that_raises_is_one_line(tmp_path):
    def broken():
        raise ValueError("hidden size 10\nis not divisible")

    with pytest.raises(ModelError) as caught:
        trace_model(vector_source(broken), cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert "hidden size 10 is not divisible" in str(caught.value)


def test_layers_that_do_not_fit_are_one_line_without_torch_logs(tmp_path, capfd):
    source = vector_source(lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(9, 8)))
    with pytest.raises(ModelError, match="same reduction dim") as caught:
        trace_model(source, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_shapes_that_depend_on_values_are_refused(tmp_path):
    with pytest.raises(ModelError, match="shapes do not depend on values"):
        trace_model(UNTRACEABLE, cache_dir=tmp_path)


def test_keys_of_written_out_attention_have_their_own_name():
    graph = trace_source(SOURCES["eager_attention"], sequence_length=16, content_key="")
    softmax = next(graph.operator(n) for n in graph.graph if graph.operator(n).kind == "softmax")
    assert [(i.label, i.kind) for i in softmax.indices][-2:] == [
        ("s", "free"), ("s_key", "coupled"),
    ]  # fmt: skip
    assert not graph.warnings


def test_torch_attention_is_one_fused_operator():
    graph = trace_source(SOURCES["torch_attention"], sequence_length=16, content_key="")
    kinds = [graph.operator(n).kind for n in graph.graph]
    assert kinds.count("attention") == 1
    assert "other" not in kinds


def test_tracing_the_largest_model_takes_seconds():
    import time

    start = time.process_time()
    traced("llama3-405b")
    assert time.process_time() - start < 20
