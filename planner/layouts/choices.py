"""Which indices of an operator may be split over the tensor axis."""

from collections.abc import Mapping
from functools import lru_cache

from planner.graph import ModelGraph, Operator, OperatorIndex
from planner.layouts.flows import expert_operators
from planner.layouts.sizes import num_elements, permuted_labels, position_labels

LIGHT_KINDS = frozenset({"normalization", "softmax", "elementwise", "reduction", "pooling"})
"""Operators between products: they follow, sequence parallelism is about them."""
WEIGHTED_KINDS = frozenset({"matmul", "convolution", "recurrent", "embedding"})
"""Operators whose weights tensor parallelism is about."""
_NARROWEST = 16
"""Width below which a cut is no longer a product, the side of a matrix instruction [elements]."""
STATISTICS: dict[str, tuple[float, float]] = {"loss": (3.0, 0.0), "softmax": (2.0, 1.0)}
"""All-reduces of one number per row, forward and backward, when the coupled index of a loss over
classes or of a softmax is split: maximum, sum and (loss) the target's logit; the loss keeps its
softmax, a softmax alone sums gradient times output again.
Shoeybi et al. 2019, arXiv:1909.08053, section 3 (fused cross entropy)."""


def candidate_labels(
    graph: ModelGraph,
    operator: Operator,
    *,
    axis_size: int,
    sizes: Mapping[str, float],
    allow_batch: bool = True,
    sequence_parallel: bool | None = None,
) -> tuple[str | None, ...]:
    """Return the labels that the operator may split on this axis; None (replicated) comes last.

    Parameters
    ----------
    graph : ModelGraph
        The model.
    operator : Operator
        One of its operators.
    axis_size : int
        Ranks of the axis; a label is offered where its local size is divisible [1].
    sizes : Mapping
        Local sizes that the other axes leave, see :func:`planner.layouts.sizes.divided_sizes`.
    allow_batch : bool
        Whether samples may be split on this axis.
    sequence_parallel : bool, optional
        ``False`` never splits positions; ``True`` splits them in every operator between products
        that can (and only there); None leaves it to the costs. Where it is given and samples stay
        whole, this is Megatron's tensor parallelism: no weight stays whole that can be cut both
        by rows and by columns.

    Returns
    -------
    tuple of (str or None)
        In one fixed order, which breaks ties: as the operator lists its indices.
    """
    if axis_size == 1:
        return (None,)
    if all(index.label != graph.batch_label for index in operator.indices):
        return _without_samples(
            graph, operator, axis_size=axis_size, sizes=sizes, allow_batch=allow_batch,
            allow_sequence=sequence_parallel is not False,
        )  # fmt: skip
    labels: list[str | None] = []
    follows = operator.kind in (*LIGHT_KINDS, "permutation") or _is_narrow(
        operator, sizes, axis_size
    )
    hidden = _head_widths(graph)
    if operator.kind in (*LIGHT_KINDS, "permutation"):
        hidden |= _normalized_labels(graph)
    for index in operator.indices:
        if index.label in labels or not _splits_evenly(graph, index, axis_size, sizes):
            continue
        if index.label == graph.batch_label:
            offered = allow_batch and _batch_is_offered(operator, index)
        elif index.label in position_labels(graph):
            is_allowed = sequence_parallel is None or (
                sequence_parallel and (follows or operator.kind == "loss")
            )
            offered = is_allowed and _kind_is_offered(operator, index)
        else:
            offered = index.label not in hidden and _kind_is_offered(operator, index)
        if offered:
            labels.append(index.label)
    labels.extend(_expert_pass_through(graph, operator, axis_size=axis_size, sizes=sizes))
    follows_sequence = (
        bool(sequence_parallel) and follows and bool(set(labels) & position_labels(graph))
    )
    is_megatron = sequence_parallel is not None and not allow_batch
    is_forced = follows_sequence or (
        is_megatron and _can_cut_every_dim(operator, labels, sizes, axis_size)
    )
    return tuple(labels) if is_forced else (*labels, None)


def _without_samples(
    graph: ModelGraph,
    operator: Operator,
    *,
    axis_size: int,
    sizes: Mapping[str, float],
    allow_batch: bool,
    allow_sequence: bool,
) -> tuple[str | None, ...]:
    """Return the choices of an operator that is the same for all samples (a position table).

    It may follow a split of positions or heads around it. Otherwise every rank runs it whole; where
    the samples are split around it, its gradient may stay a partial sum down to its parameters,
    which is what the batch label says here.
    """
    labels: list[str | None] = []
    is_even = sizes[graph.batch_label] % axis_size == 0 and not permuted_labels(operator)
    if allow_batch and is_even:
        labels.append(graph.batch_label)
    excluded = _head_widths(graph) | _normalized_labels(graph)
    if not allow_sequence:
        excluded |= position_labels(graph)
    labels.extend(
        index.label
        for index in operator.indices
        if index.kind == "free"
        and index.label not in excluded
        and _splits_evenly(graph, index, axis_size, sizes)
    )
    return (*labels, None)


def _can_cut_every_dim(
    operator: Operator, labels: list[str | None], sizes: Mapping[str, float], axis_size: int
) -> bool:
    """Whether each dim of each weight can be cut (rows as well as columns), and is wide enough."""
    return (
        operator.kind in WEIGHTED_KINDS
        and bool(operator.parameters)
        and not _is_narrow(operator, sizes, axis_size)
        and all(
            any(label in labels for label in dim)
            for operand in operator.parameters
            for dim in operand.dims
            if dim
        )
    )


def _is_narrow(operator: Operator, sizes: Mapping[str, float], axis_size: int) -> bool:
    """Whether a weight has a dim that is too narrow to be cut (the router of experts)."""
    return operator.kind == "matmul" and any(
        num_elements(dim, sizes) < _NARROWEST * axis_size
        for operand in operator.parameters
        for dim in operand.dims[-2:]
        if dim
    )


def _expert_pass_through(
    graph: ModelGraph, operator: Operator, *, axis_size: int, sizes: Mapping[str, float]
) -> list[str]:
    """Return the experts' labels for an element-wise operator between two expert products."""
    if operator.kind != "elementwise" or operator.name not in expert_operators(graph):
        return []
    own = {index.label for index in operator.indices}
    near = (*graph.graph.predecessors(operator.name), *graph.graph.successors(operator.name))
    return [
        index.label
        for name in dict.fromkeys(near)
        for index in graph.operator(name).indices
        if index.role == "expert"
        and index.label not in own
        and _splits_evenly(graph, index, axis_size, sizes)
    ][:1]


def _splits_evenly(
    graph: ModelGraph, index: OperatorIndex, axis_size: int, sizes: Mapping[str, float]
) -> bool:
    size = sizes.get(index.label, 1.0)
    known = graph.indices.get(index.label)
    return known is not None and known.splittable and size >= axis_size and size % axis_size == 0


def _kind_is_offered(operator: Operator, index: OperatorIndex) -> bool:
    """Whether the rule of the kind lets this index be split.

    Attention normalises over its keys and needs whole scores, so that only its free indices
    qualify. A partial maximum is not a partial sum.
    """
    if operator.kind == "other":
        return False
    if operator.kind == "permutation":
        return index.kind in ("free", "permuted")
    match index.kind:
        case "free":
            return True
        case "permuted":
            return operator.kind != "attention"
        case "reduced":
            return operator.kind != "attention" and index.reduction in ("sum", "mean")
        case "lookup":
            return operator.kind in ("embedding", "loss")
        case "coupled":
            return operator.kind in STATISTICS
        case "halo" | "sequential":
            return False


def _batch_is_offered(operator: Operator, index: OperatorIndex) -> bool:
    """Whether samples may be split.

    Batch statistics stay local to a rank, as torch's data parallelism does it.
    """
    if operator.kind == "normalization":
        return True
    if operator.kind in ("other", "permutation"):
        return index.kind in ("free", "reduced", "permuted")
    return _kind_is_offered(operator, index)


@lru_cache(maxsize=64)
def _head_widths(graph: ModelGraph) -> frozenset[str]:
    """Return labels inside one attention head; splitting them would tear scores apart."""
    return frozenset(
        index.label
        for _, operator in graph.graph.nodes(data="operator")
        if operator.kind == "attention"
        for index in operator.indices
        if index.role in ("head_dim", "value_dim")
    )


@lru_cache(maxsize=64)
def _normalized_labels(graph: ModelGraph) -> frozenset[str]:
    """Return labels that some norm couples, the width of the residual stream.

    Splitting them in element-wise operators only moves a gather from the product to the norm.
    """
    return frozenset(
        index.label
        for _, operator in graph.graph.nodes(data="operator")
        if operator.kind == "normalization"
        for index in operator.indices
        if index.kind == "coupled" and index.label != graph.batch_label
    )
