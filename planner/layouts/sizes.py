"""Local sizes of labels, elements and bytes of tensors, before the split of the axis at hand."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import prod

from planner.graph import Dims, DType, ModelGraph, Operand, Operator
from planner.workload import Workload

_ITEM_BYTES: dict[str, int] = {"fp32": 4, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}


def item_bytes(dtype: DType, workload: Workload) -> int:
    """Return the size of one element [B].

    Examples
    --------
    >>> half = Workload(global_batch_size=8, sequence_length=4, precision="bf16")
    >>> item_bytes("compute", half), item_bytes("fp32", half)
    (2, 4)
    """
    return workload.compute_bytes if dtype == "compute" else _ITEM_BYTES[dtype]


def flat_labels(dims: Dims) -> tuple[str, ...]:
    """Return all labels of a tensor in order."""
    return tuple(label for dim in dims for label in dim)


def key_labels(graph: ModelGraph) -> frozenset[str]:
    """Return the labels under which some operator reads a sequence label beside itself (keys)."""
    sequence = set(graph.sequence_labels)
    return frozenset(
        new
        for _, operator in graph.graph.nodes(data="operator")
        for operand in operator.inputs
        for old, new in operand.relabel
        if old in sequence
    )


@lru_cache(maxsize=64)
def position_labels(graph: ModelGraph) -> frozenset[str]:
    """Return labels of positions: the sequence, and those of whatever else attends (a decoder)."""
    return frozenset(graph.sequence_labels) | {
        index.label
        for _, operator in graph.graph.nodes(data="operator")
        if operator.kind == "attention"
        for index in operator.indices
        if index.role == "query"
    }


def local_sizes(
    graph: ModelGraph, *, microbatch_size: int, context_parallel_size: int
) -> dict[str, float]:
    """Return the size of every label on one rank of the axes that split the same way everywhere.

    The batch label has the size of the microbatch; sequence labels are divided by the context
    axis, except where an operator reads them as keys (every query meets every key).

    Parameters
    ----------
    graph : ModelGraph
        Model at one sequence length.
    microbatch_size : int
        Samples per microbatch [1].
    context_parallel_size : int
        Ranks among which positions are split [1].

    Returns
    -------
    dict of str to float
        Label -> size [1].
    """
    sizes = {label: float(index.size) for label, index in graph.indices.items()}
    sizes[graph.batch_label] = float(microbatch_size)
    if context_parallel_size > 1:
        for label in set(graph.sequence_labels) - key_labels(graph):
            sizes[label] /= context_parallel_size
    return sizes


def divided_sizes(
    graph: ModelGraph, sizes: Mapping[str, float], *, expert_parallel_size: int
) -> dict[str, float]:
    """Return what is left to divide of every label once experts are spread over their axis."""
    divided = dict(sizes)
    if expert_parallel_size > 1:
        experts = {
            label
            for _, operator in graph.graph.nodes(data="operator")
            for label in expert_labels(operator)
        }
        for label in experts:
            divided[label] /= expert_parallel_size
    return divided


def num_elements(labels: Iterable[str], sizes: Mapping[str, float]) -> float:
    """Return the product of sizes [1]; labels without a size count as 1."""
    return prod(sizes.get(label, 1.0) for label in labels)


def expert_labels(operator: Operator) -> tuple[str, ...]:
    """Return the labels in the role of experts (none for most operators)."""
    return tuple(index.label for index in operator.indices if index.role == "expert")


def permuted_labels(operator: Operator) -> frozenset[str]:
    """Return the labels whose elements stand in a data-dependent order."""
    return frozenset(index.label for index in operator.indices if index.kind == "permuted")


def carries(operator: Operator, labels: Iterable[str], choice: str | None) -> bool:
    """Whether a tensor with these labels is cut when the operator splits ``choice``.

    Tokens sorted by expert are cut by a split of the experts although they do not name them: the
    rows of one expert are one piece of the sorted rows. That holds as well for element-wise
    operators between expert products, which do not have the experts' label at all. An operator
    without samples that is given the label of samples runs whole.
    """
    if choice is None:
        return False
    present = set(labels)
    if choice in present:
        return True
    if choice in expert_labels(operator):
        return bool(present & permuted_labels(operator))
    if any(index.label == choice for index in operator.indices):
        return False
    return any(index.role == "batch" and index.label in present for index in operator.indices)


def inverse_relabel(operand: Operand, label: str) -> str:
    """Return the name that the tensor itself gives to a label of its reader."""
    return next((old for old, new in operand.relabel if new == label), label)


@lru_cache(maxsize=65536)
def held_labels(graph: ModelGraph, operand: Operand) -> tuple[str, ...]:
    """Return the reader's labels of an operand that the tensor itself has.

    A tensor that is broadcast (a class token over the samples) is read with labels it does not
    hold: it cannot arrive cut along them, and its gradient is a sum over them.
    """
    own = set(flat_labels(graph.tensors[operand.tensor].dims))
    return tuple(
        label for label in flat_labels(operand.dims) if inverse_relabel(operand, label) in own
    )


@lru_cache(maxsize=65536)
def read_labels(graph: ModelGraph, operand: Operand) -> tuple[str, ...]:
    """Return labels that span what is read of a tensor: a slice of it, but never a broadcast."""
    labels = flat_labels(operand.dims)
    sizes = {label: float(index.size) for label, index in graph.indices.items()}
    whole = num_elements(flat_labels(graph.tensors[operand.tensor].dims), sizes)
    is_broadcast = num_elements(labels, sizes) > whole
    return held_labels(graph, operand) if is_broadcast else labels
