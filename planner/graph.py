"""The model graph: operators over iteration spaces, tensors between them, repeated units folded.

An *index* is an atom with a graph-wide ``label`` and a size. A tensor dimension is an ordered
product of labels, so that views, head splits and flattens keep their meaning. Sizes live in one
table (:attr:`ModelGraph.indices`): a cost is a function of that table, and one trace serves every
microbatch and every split.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import networkx as nx

IndexKind = Literal["free", "reduced", "coupled", "halo", "sequential", "lookup", "permuted"]
Reduction = Literal["sum", "mean", "max"]
TensorKind = Literal["activation", "parameter", "buffer", "input"]
DType = Literal["compute", "fp32", "int64", "int32", "uint8", "bool"]
OperatorKind = Literal[
    "matmul",
    "convolution",
    "attention",
    "normalization",
    "softmax",
    "elementwise",
    "embedding",
    "loss",
    "reduction",
    "pooling",
    "recurrent",
    "permutation",
    "other",
]
Dims = tuple[tuple[str, ...], ...]
"""Per tensor dimension the ordered product of labels; an empty product has size 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """An atom of the iteration spaces."""

    label: str
    size: int
    splittable: bool = True
    """False for opaque or segmented extents (a class token, a halo, a concatenation)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatorIndex:
    """One index of one operator, in its role.

    ``free``: in an output; splitting it gives shards. ``reduced``: summed away; splitting it gives
    partial results of kind ``reduction``. ``coupled``: in the output, but the rows mix (softmax,
    norm): splitting needs an extra exchange, and is not offered. ``halo``: splitting needs
    neighbours, not offered. ``sequential``: steps depend, not offered. ``lookup``: the looked-up
    extent of a table (vocabulary): splitting gives partial sums. ``permuted``: data-dependent order
    (tokens of experts): splitting costs an all-to-all.
    """

    label: str
    role: str
    """batch, m, n, k, heads, query, key, head_dim, value_dim, channels, filters, spatial, filter,
    expert, vocab, token, hidden, gate, time ..."""
    kind: IndexKind = "free"
    reduction: Reduction | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A value between operators (or a parameter, buffer, model input), stored once."""

    name: str
    dims: Dims
    """Labels as the producer names them."""
    dtype: DType
    kind: TensorKind = "activation"
    producer: str | None = None
    """Operator name; None for parameters, buffers and inputs."""
    requires_grad: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Operand:
    """A tensor as one operator reads it, after folded views and aliases.

    ``relabel`` maps labels of the tensor to other labels of the reader (keys beside queries:
    ``s`` read as ``s_key``); labels not listed keep their name. A label of the tensor that is
    absent from ``dims`` after relabelling was dropped by a slice.
    """

    tensor: str
    dims: Dims
    relabel: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FlopTerm:
    """``coefficient`` times the product of the sizes of ``labels`` [FLOP]."""

    coefficient: float
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorTerm:
    """Bytes as ``times`` x product of label sizes x item size of ``dtype``."""

    labels: tuple[str, ...]
    dtype: DType
    times: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """One node of the model graph: a kernel or a chain of element-wise kernels."""

    name: str
    kind: OperatorKind
    target: str
    """What ran, for people: ``aten.addmm`` or ``aten.add+aten.gelu``."""
    module_path: str
    unit: str
    """Name of the unit that holds this operator."""
    indices: tuple[OperatorIndex, ...]
    inputs: tuple[Operand, ...]
    """Activations, inputs and buffers."""
    parameters: tuple[Operand, ...]
    outputs: tuple[str, ...]
    """Tensor names; their dims are in this operator's labels."""
    flops_forward: tuple[FlopTerm, ...] = ()
    flops_backward: tuple[FlopTerm, ...] = ()
    traffic_forward: tuple[TensorTerm, ...] = ()
    """Everything the separate (eager) kernels read and write."""
    traffic_backward: tuple[TensorTerm, ...] = ()
    num_kernels_forward: int = 1
    num_kernels_backward: int = 2
    saved: tuple[TensorTerm, ...] = ()
    """Kept for backward when each kernel runs alone (eager), beside what other operators keep:
    storages are counted once, at their producer. For attention: what the fused kernel keeps (its
    score matrix, unfused, is added by the cost model)."""
    saved_fused: tuple[TensorTerm, ...] = ()
    """The same where element-wise chains and norms are fused and recomputed in backward."""
    roles_mn_k: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]] = (
        (),
        (),
        (),
        (),
    )
    """For products and attention: labels that make up (batch, m, n, k) of the kernel."""
    filter_area: int = 1
    causal: bool = False
    dropout: bool = False
    sequential_steps: int = 1
    data_dependent: bool = False
    """Control flow or order depends on values; costed as balanced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A contiguous part of the model, ``count`` times in a row; pipelines cut between units.

    ``operators`` are in execution order and stand in the graph once. ``module_paths`` has one entry
    per repetition (``("h.0", "h.1", ...)``; ``("",)`` where no single module covers the unit).
    ``carried`` pairs each tensor entering the first repetition with the tensor that the unit
    produces in its place for the next one (the residual stream).
    """

    name: str
    operators: tuple[str, ...]
    count: int
    module_paths: tuple[str, ...]
    carried: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceWarning:
    """Something the reader of a plan must know about the trace."""

    subject: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelGraph:
    """A traced model at one sequence length; batch is an index.

    ``graph`` has operator names as nodes (attribute ``operator``) and an edge (attribute
    ``tensors``: tuple of names) wherever one reads what another wrote. A tensor read from a unit's
    first repetition stands for the previous repetition's output in all others.
    """

    name: str
    graph: nx.DiGraph
    tensors: Mapping[str, Tensor]
    indices: Mapping[str, Index]
    units: tuple[Unit, ...]
    batch_label: str
    """Label of the sample index; its traced size is only an example."""
    sequence_length: int
    """Tokens per sample (1 where the model has no sequence) [1]."""
    num_parameters: int
    """Distinct parameters, tied ones once [1]."""
    sequence_labels: tuple[str, ...] = ()
    parameter_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parameter tensor -> names in the module, one per repetition (tied names included)."""
    active_parameters: int | None = None
    """Parameters that one token uses, for expert models [1]."""
    warnings: tuple[TraceWarning, ...] = ()
    source: str = ""
    """What was traced: preset, ``hf:...`` or ``file.py:factory``."""
    content_key: str = ""
    """Hash of source, versions and trace options; names the cache entry."""

    def operator(self, name: str) -> Operator:
        """Return the operator of a node."""
        operator: Operator = self.graph.nodes[name]["operator"]
        return operator

    def unit_of(self, operator: str) -> Unit:
        """Return the unit that holds an operator."""
        name = self.operator(operator).unit
        return next(unit for unit in self.units if unit.name == name)
