"""Model graphs made by hand, and machines with round numbers."""

from dataclasses import dataclass, field, replace

import networkx as nx
import pytest

from hardware_profiles.cluster import Cluster, NodeGroup
from hardware_profiles.device import DeviceProfile, MatmulEfficiency
from hardware_profiles.interconnect import Fabric, LinkProfile
from hardware_profiles.software import SoftwareProfile
from planner.graph import (
    FlopTerm,
    Index,
    ModelGraph,
    Operand,
    Operator,
    OperatorIndex,
    Tensor,
    TensorTerm,
    Unit,
)
from planner.workload import Workload

DEVICE = DeviceProfile(
    name="round", title="Round numbers", vendor="none", kind="gpu", year=2020,
    peak_flops_per_s={"fp32": 2e13, "bf16": 3e14}, vector_flops_per_s=2e13, memory_bytes=8e10,
    memory_bandwidth_bytes_per_s=2e12, num_compute_units=100, launch_latency_s=2e-6,
    memory_efficiency=0.9, memory_half_bytes=1e6,
    matmul=MatmulEfficiency(sustained_efficiency=0.8, tile_m=128, tile_n=128, half_k=64),
    attention_forward_efficiency=0.5, attention_backward_efficiency=0.4, convolution_gain=1.0,
)  # fmt: skip
SOFTWARE = SoftwareProfile(
    name="plain", title="Nothing hidden", fuses_elementwise=True, fuses_normalization=True,
    attention="flash", fuses_attention_softmax=True, kernel_overhead_s=0.0,
    overlap_gradient_sync=0.0, overlap_parameter_gather=0.0, overlap_tensor_parallel=0.0,
    overlap_pipeline=0.0, compute_slowdown=1.0, gradient_bucket_bytes=1e8,
    gradient_precision="compute", master_weights=True, fixed_memory_bytes=0.0,
    allocator_overhead=0.0, straggler_share=0.0,
)  # fmt: skip


def make_cluster(bandwidth, devices=8):
    link = LinkProfile(
        name="link", title="Link", kind="pcie", bandwidth_bytes_per_s=bandwidth,
        achievable_bandwidth_bytes_per_s=bandwidth, latency_s=5e-6,
    )  # fmt: skip
    fabric = Fabric(topology="switch", link=link, bandwidth_bytes_per_s=bandwidth, latency_s=5e-6)
    group = NodeGroup(device=DEVICE, devices_per_node=devices, num_nodes=1)
    return Cluster(name="toy", title="Toy", node_groups=(group,), intra=fabric, inter=None)


@dataclass
class Builder:
    """Adds operators one by one; tensors are dims over labels."""

    sizes: dict
    tensors: dict = field(default_factory=dict)
    operators: list = field(default_factory=list)
    units: list = field(default_factory=list)
    names: dict = field(default_factory=dict)

    def input(self, name, dims, dtype="compute"):
        self.tensors[name] = Tensor(
            name=name, dims=dims, dtype=dtype, kind="input", requires_grad=False
        )
        return name

    def parameter(self, name, dims):
        self.tensors[name] = Tensor(name=name, dims=dims, dtype="compute", kind="parameter")
        self.names.setdefault(name, (name,))
        return name

    def add(self, name, kind, inputs, out, *, parameters=(), kinds=(), roles=None, **more):
        """``inputs``: names or operands; ``kinds``: label -> (kind, reduction, role)."""
        operands = tuple(
            item
            if isinstance(item, Operand)
            else Operand(tensor=item, dims=self.tensors[item].dims)
            for item in inputs
        )
        weights = tuple(Operand(tensor=p, dims=self.tensors[p].dims) for p in parameters)
        dims = [out, *(o.dims for o in (*operands, *weights))]
        labels = dict.fromkeys(label for some in dims for dim in some for label in dim)
        kinds = dict(kinds)
        indices = tuple(
            OperatorIndex(
                label=label,
                role="batch" if label == "b" else kinds.get(label, ("free", None, ""))[2],
                kind=kinds.get(label, ("free", None, ""))[0],
                reduction=kinds.get(label, ("free", None, ""))[1],
            )
            for label in labels
        )  # fmt: skip
        result = f"{name}.out"
        grad = any(self.tensors[o.tensor].requires_grad for o in (*operands, *weights))
        self.tensors[result] = Tensor(
            name=result, dims=out, dtype="compute", producer=name, requires_grad=grad
        )
        flops = {}
        if roles:
            flat = tuple(label for part in roles for label in part)
            backward = 2.0 if grad and any(
                self.tensors[o.tensor].requires_grad for o in operands
            ) else 1.0  # fmt: skip
            factor = 4.0 if kind == "attention" else 2.0
            flops = {
                "flops_forward": (FlopTerm(coefficient=factor, labels=flat),),
                "flops_backward": (FlopTerm(coefficient=factor * backward, labels=flat),),
                "roles_mn_k": roles,
            }
        more.setdefault("module_path", name)
        more.setdefault(
            "saved", (TensorTerm(labels=tuple(x for d in out for x in d), dtype="compute"),)
        )
        self.operators.append(
            Operator(
                name=name, kind=kind, target=kind, unit="", indices=indices, inputs=operands,
                parameters=weights, outputs=(result,), saved_fused=more["saved"], **flops, **more,
            )
        )  # fmt: skip
        return result

    def linear(self, name, source, k, n, *, batch, parameter=None, tied=None, **more):
        weight = tied or self.parameter(f"{name}.weight", ((*n,), (*k,)))
        return self.add(
            name, "matmul", [source], (*((label,) for label in batch), n), parameters=[weight],
            kinds=dict.fromkeys(k, ("reduced", "sum", "k")),
            roles=((), tuple(batch), tuple(n), tuple(k)), **more,
        )  # fmt: skip

    def unit(self, name, count=1, carried=(), paths=None):
        placed = {op for unit in self.units for op in unit.operators}
        operators = tuple(op.name for op in self.operators if op.name not in placed)
        self.units.append(
            Unit(
                name=name, operators=operators, count=count, carried=tuple(carried),
                module_paths=paths or tuple(f"{name}.{i}" for i in range(count)),
            )
        )  # fmt: skip

    def graph(self, name, *, sequence=(), length=1):
        graph = nx.DiGraph()
        unit_of = {op: unit.name for unit in self.units for op in unit.operators}
        for operator in self.operators:
            operator = replace(operator, unit=unit_of[operator.name])
            graph.add_node(operator.name, operator=operator)
            for operand in operator.inputs:
                producer = self.tensors[operand.tensor].producer
                if producer is not None:
                    graph.add_edge(producer, operator.name, tensors=(operand.tensor,))
        counts = {op: unit.count for unit in self.units for op in unit.operators}
        parameters = {}
        for operator in self.operators:
            for operand in operator.parameters:
                elements = 1
                for dim in operand.dims:
                    for label in dim:
                        elements *= self.sizes[label]
                parameters.setdefault(operand.tensor, elements * counts[operator.name])
        return ModelGraph(
            name=name, graph=graph, tensors=self.tensors,
            indices={
                label: Index(label=label, size=size) for label, size in self.sizes.items()
            },
            units=tuple(self.units), batch_label="b", sequence_length=length,
            num_parameters=sum(parameters.values()), sequence_labels=tuple(sequence),
            parameter_names=self.names,
        )  # fmt: skip


def make_alexnet():
    """Five convolutions with pooling folded in, three wide linear layers, a loss."""
    channels = (3, 64, 192, 384, 256, 256)
    filters = (11, 5, 3, 3, 3)
    extents = (55, 27, 13, 13, 13)
    sizes = {"b": 2, "p": 36, "f6": 4096, "f7": 4096, "f8": 1000}
    sizes |= {f"c{i}": c for i, c in enumerate(channels)}
    sizes |= {f"x{i}": e * e for i, e in enumerate(extents)}
    sizes |= {f"r{i}": f * f for i, f in enumerate(filters)}
    sizes["x"] = 224 * 224
    build = Builder(sizes=sizes)
    last = build.input("image", (("b",), ("c0",), ("x",)))
    for i in range(5):
        weight = build.parameter(f"conv{i}.weight", ((f"c{i + 1}",), (f"c{i}",), (f"r{i}",)))
        last = build.add(
            f"conv{i}", "convolution", [last], (("b",), (f"c{i + 1}",), (f"x{i}",)),
            parameters=[weight], filter_area=filters[i] ** 2,
            kinds={
                f"c{i}": ("reduced", "sum", "channels"), f"r{i}": ("reduced", "sum", "filter"),
                f"x{i}": ("halo", None, "spatial"), (f"x{i - 1}" if i else "x"): ("halo", None, ""),
            },
            roles=((), ("b", f"x{i}"), (f"c{i + 1}",), (f"c{i}", f"r{i}")),
        )  # fmt: skip
    last = build.add(
        "pool", "pooling", [last], (("b",), ("c5", "p")), kinds={"x4": ("halo", None, "")}
    )
    for name, k, n in (("fc6", ("c5", "p"), ("f6",)), ("fc7", ("f6",), ("f7",)),
                       ("fc8", ("f7",), ("f8",))):  # fmt: skip
        last = build.linear(name, last, k, n, batch=("b",))
    build.add(
        "loss", "loss", [last], (),
        kinds={"b": ("reduced", "mean", "batch"), "f8": ("coupled", None, "vocab")},
    )  # fmt: skip
    build.unit("model", paths=("",))
    return build.graph("alexnet")


def make_resnet():
    """Wide early images, few parameters: sixteen equal 3x3 convolutions and a small classifier."""
    build = Builder(sizes={"b": 2, "c": 256, "d": 256, "r": 9, "x": 784, "n": 1000})
    last = build.input("image", (("b",), ("c",), ("x",)))
    weight = build.parameter("stem.weight", (("d",), ("c",), ("r",)))
    for i in range(8):
        here, there = ("c", "d") if i % 2 == 0 else ("d", "c")
        weight = build.parameter(f"conv{i}.weight", ((there,), (here,), ("r",)))
        last = build.add(
            f"conv{i}", "convolution", [last], (("b",), (there,), ("x",)), parameters=[weight],
            filter_area=9, roles=((), ("b", "x"), (there,), (here, "r")),
            kinds={here: ("reduced", "sum", "channels"), "r": ("reduced", "sum", "filter"),
                   "x": ("halo", None, "spatial")},
        )  # fmt: skip
    last = build.add("pool", "reduction", [last], (("b",), ("c",)),
                     kinds={"x": ("reduced", "mean", "spatial")})  # fmt: skip
    last = build.linear("fc", last, ("c",), ("n",), batch=("b",))
    build.add("loss", "loss", [last], (), kinds={"b": ("reduced", "mean", "batch"),
                                                 "n": ("coupled", None, "vocab")})  # fmt: skip
    build.unit("model", paths=("",))
    return build.graph("resnet")


def _norm(build, name, source, dims):
    scale = build.parameter(f"{name}.weight", (("h",),))
    return build.add(name, "normalization", [source], dims, parameters=[scale],
                     kinds={"h": ("coupled", None, "hidden")})  # fmt: skip


def _attention(build, source, name="attention"):
    hidden = (("b",), ("s",), ("h",))
    wide = ("heads", "d")
    q, k, v = (build.linear(part, source, ("h",), wide, batch=("b", "s")) for part in "qkv")
    head = (("b",), ("heads",), ("s",), ("d",))
    keys = (("b",), ("heads",), ("s_key",), ("d",))
    core = build.add(
        name, "attention",
        [Operand(tensor=q, dims=head), Operand(tensor=k, dims=keys, relabel=(("s", "s_key"),)),
         Operand(tensor=v, dims=keys, relabel=(("s", "s_key"),))],
        (("b",), ("s",), wide), causal=True,
        kinds={"s_key": ("reduced", "sum", "key"), "d": ("reduced", "sum", "head_dim"),
               "s": ("free", None, "query")},
        roles=(("b", "heads"), ("s",), ("s_key",), ("d",)),
    )  # fmt: skip
    projected = build.linear("proj", core, wide, ("h",), batch=("b", "s"), saved=())
    bias = build.parameter("proj.bias", (("h",),))
    return build.add("add1", "elementwise", [projected, source_of(build)], hidden,
                     parameters=[bias], saved=())  # fmt: skip


def source_of(build):
    return build.entry


def make_gpt(num_layers=12, *, hidden=1024, heads=16, vocab=32768, length=1024, tied=False):
    """Embedding, equal blocks, head and loss, in the shape of Megatron-LM."""
    build = Builder(
        sizes={"b": 2, "s": length, "s_key": length, "h": hidden, "heads": heads,
               "d": hidden // heads, "ffn": 4 * hidden, "v": vocab}
    )  # fmt: skip
    dims = (("b",), ("s",), ("h",))
    tokens = build.input("tokens", (("b",), ("s",)), "int64")
    targets = build.input("targets", (("b",), ("s",)), "int64")
    table = build.parameter("embedding.weight", (("v",), ("h",)))
    embedded = build.add("embedding", "embedding", [tokens], dims, parameters=[table], saved=(),
                         kinds={"v": ("lookup", None, "vocab")})  # fmt: skip
    position = build.parameter("position.weight", (("s",), ("h",)))
    last = build.add("position", "elementwise", [embedded], dims, parameters=[position], saved=())
    build.unit("embedding", paths=("embedding",))
    build.entry = entry = last
    normed = _norm(build, "norm1", last, dims)
    added = _attention(build, normed)
    normed = _norm(build, "norm2", added, dims)
    up = build.linear("fc1", normed, ("h",), ("ffn",), batch=("b", "s"))
    bias = build.parameter("fc1.bias", (("ffn",),))
    active = build.add("gelu", "elementwise", [up], (("b",), ("s",), ("ffn",)), parameters=[bias])
    down = build.linear("fc2", active, ("ffn",), ("h",), batch=("b", "s"), saved=())
    bias = build.parameter("fc2.bias", (("h",),))
    last = build.add("add2", "elementwise", [down, added], dims, parameters=[bias], saved=())
    build.unit("block", count=num_layers, carried=[(entry, last)])
    normed = _norm(build, "norm", last, dims)
    logits = build.linear("head", normed, ("h",), ("v",), batch=("b", "s"),
                          tied=table if tied else None)  # fmt: skip
    build.add("loss", "loss", [logits, targets], (), saved=(),
              kinds={"b": ("reduced", "mean", "batch"), "s": ("reduced", "mean", "token"),
                     "v": ("coupled", None, "vocab")})  # fmt: skip
    build.unit("head", paths=("head",))
    return build.graph("gpt", sequence=("s",), length=length)


def make_experts(num_layers=4, *, experts=8):
    """Blocks of router, dispatch, two expert products and combine."""
    build = Builder(
        sizes={"b": 2, "s": 1024, "h": 1024, "ffn": 4096, "e": experts, "r": experts, "top": 2,
               "n": 1024}
    )  # fmt: skip
    dims = (("b",), ("s",), ("h",))
    sorted_rows = ("b", "s", "top")
    rows = dict.fromkeys(sorted_rows, ("permuted", None, "token"))
    image = build.input("input", (("b",), ("s",), ("n",)))
    entry = build.linear("stem", image, ("n",), ("h",), batch=("b", "s"))
    build.unit("stem", paths=("stem",))
    normed = _norm(build, "norm", entry, dims)
    scores = build.linear("router", normed, ("h",), ("r",), batch=("b", "s"))
    sent = build.add("dispatch", "permutation", [normed, scores], (sorted_rows, ("h",)),
                     kinds={**rows, "r": ("coupled", None, "")}, data_dependent=True)  # fmt: skip
    up = build.parameter("up.weight", (("e",), ("h",), ("ffn",)))
    wide = build.add(
        "up", "matmul", [sent], (sorted_rows, ("ffn",)), parameters=[up],
        kinds={**rows, "e": ("free", None, "expert"), "h": ("reduced", "sum", "k")},
        roles=((), sorted_rows, ("ffn",), ("h",)),
    )  # fmt: skip
    active = build.add("gelu", "elementwise", [wide], (sorted_rows, ("ffn",)), kinds=rows)
    down = build.parameter("down.weight", (("e",), ("ffn",), ("h",)))
    narrow = build.add(
        "down", "matmul", [active], (sorted_rows, ("h",)), parameters=[down],
        kinds={**rows, "e": ("free", None, "expert"), "ffn": ("reduced", "sum", "k")},
        roles=((), sorted_rows, ("h",), ("ffn",)),
    )  # fmt: skip
    kinds = {**rows, "top": ("reduced", "sum", "")}
    last = build.add("combine", "permutation", [narrow, entry], dims, kinds=kinds,
                     data_dependent=True)  # fmt: skip
    build.unit("block", count=num_layers, carried=[(entry, last)])
    means = dict.fromkeys("bsh", ("reduced", "mean", ""))
    build.add("loss", "loss", [last], (), kinds=means)
    build.unit("head", paths=("head",))
    return build.graph("experts", sequence=("s",), length=1024)


@pytest.fixture
def builders():
    """Return the functions that make graphs and clusters."""
    return {
        "alexnet": make_alexnet, "resnet": make_resnet, "gpt": make_gpt, "experts": make_experts,
        "cluster": make_cluster,
    }  # fmt: skip


@pytest.fixture
def software():
    return SOFTWARE


@pytest.fixture
def training():
    return Workload(global_batch_size=1024, sequence_length=1024, precision="bf16")
