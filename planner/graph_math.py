"""Sizes, FLOPs and elements of a model graph: plain arithmetic over its index table."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from planner.graph import DType, ModelGraph, Operator, Tensor, TensorTerm

Phase = Literal["forward", "backward"]
COMPUTE_BYTES = 2
ITEM_BYTES: dict[DType, int] = {
    "compute": COMPUTE_BYTES, "fp32": 4, "int64": 8, "int32": 4, "uint8": 1, "bool": 1,
}  # fmt: skip


def label_sizes(graph: ModelGraph, *, microbatch_size: int) -> dict[str, int]:
    """Return the size of every label for a microbatch of so many samples [1]."""
    sizes = {label: index.size for label, index in graph.indices.items()}
    sizes[graph.batch_label] = microbatch_size
    return sizes


def term_elements(labels: Iterable[str], *, sizes: Mapping[str, float]) -> float:
    """Return the product of the sizes of labels [1].

    Examples
    --------
    >>> term_elements(("b", "s"), sizes={"b": 4, "s": 1024})
    4096
    """
    return math.prod(sizes[label] for label in labels)


def term_bytes(
    terms: Iterable[TensorTerm], *, sizes: Mapping[str, float], compute_bytes: float = COMPUTE_BYTES
) -> float:
    """Return the bytes of tensor terms; ``compute_bytes`` is the item size of ``compute`` [B].

    Examples
    --------
    >>> term = TensorTerm(labels=("b",), dtype="compute", times=3.0)
    >>> term_bytes([term], sizes={"b": 5}, compute_bytes=4)
    60.0
    """
    total = 0.0
    for term in terms:
        item = compute_bytes if term.dtype == "compute" else ITEM_BYTES[term.dtype]
        total += term.times * item * term_elements(term.labels, sizes=sizes)
    return total


def num_flops(operator: Operator, *, sizes: Mapping[str, float], phase: Phase) -> float:
    """Return the FLOPs of one operator in one phase, once [FLOP]."""
    terms = operator.flops_forward if phase == "forward" else operator.flops_backward
    return sum(term.coefficient * term_elements(term.labels, sizes=sizes) for term in terms)


def tensor_elements(tensor: Tensor, *, sizes: Mapping[str, float]) -> float:
    """Return the number of elements of a tensor [1]."""
    return term_elements((label for dim in tensor.dims for label in dim), sizes=sizes)


MODEL_ATTENTION_BACKWARD = 2.0
"""Backward over forward of attention as model FLOPs count it; what a fused kernel computes again is
no model work (PaLM, arXiv:2204.02311, appendix B) [1]."""


def model_flops(graph: ModelGraph, *, batch_size: int, training: bool) -> float:
    """Return the FLOPs that the model asks for, without any recomputation [FLOP].

    This is what MFU counts; :func:`total_flops` counts what the kernels execute.
    """
    sizes = label_sizes(graph, microbatch_size=batch_size)
    total = 0.0
    for unit in graph.units:
        for name in unit.operators:
            operator = graph.operator(name)
            forward = num_flops(operator, sizes=sizes, phase="forward")
            backward = num_flops(operator, sizes=sizes, phase="backward") if training else 0.0
            if operator.kind == "attention":
                backward = min(backward, MODEL_ATTENTION_BACKWARD * forward)
            total += unit.count * (forward + backward)
    return total


def total_flops(graph: ModelGraph, *, batch_size: int, phase: Phase | None = None) -> float:
    """Return the FLOPs of all units and repetitions for a batch; both phases if none given [FLOP].

    Counted are products, convolutions, attention and recurrence, causal attention in full, as
    model FLOPs are by custom (Narayanan et al., 2021, arXiv:2104.04473, appendix).
    """
    sizes = label_sizes(graph, microbatch_size=batch_size)
    phases: tuple[Phase, ...] = ("forward", "backward") if phase is None else (phase,)
    return sum(
        unit.count * num_flops(graph.operator(name), sizes=sizes, phase=one)
        for unit in graph.units
        for name in unit.operators
        for one in phases
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitSummary:
    """One line of ``paraplan trace``: a unit, all its repetitions together."""

    name: str
    count: int
    num_operators: int
    """Of one repetition [1]."""
    num_parameters: int
    """Parameters first used here, tied ones once [1]."""
    forward_flops: float
    """[FLOP]."""
    backward_flops: float
    """[FLOP]."""
    saved_bytes: float
    """Kept for backward, each kernel alone [B]."""
    saved_fused_bytes: float
    """The same with element-wise chains and norms fused [B]."""
    traffic_forward_bytes: float
    """[B]."""
    traffic_backward_bytes: float
    """[B]."""


def trace_summary(
    graph: ModelGraph, *, batch_size: int = 1, compute_bytes: float = COMPUTE_BYTES
) -> tuple[UnitSummary, ...]:
    """Return what each unit holds and costs for a batch of so many samples."""
    sizes = label_sizes(graph, microbatch_size=batch_size)
    seen: set[str] = set()
    rows = []
    for unit in graph.units:
        operators = [graph.operator(name) for name in unit.operators]
        parameters = {operand.tensor for op in operators for operand in op.parameters} - seen
        seen |= parameters

        def total(
            field: str, operators: list[Operator] = operators, unit_count: int = unit.count
        ) -> float:
            return unit_count * sum(
                term_bytes(getattr(op, field), sizes=sizes, compute_bytes=compute_bytes)
                for op in operators
            )

        held = sum(tensor_elements(graph.tensors[name], sizes=sizes) for name in parameters)
        rows.append(
            UnitSummary(
                name=unit.name,
                count=unit.count,
                num_operators=len(operators),
                num_parameters=round(held) * unit.count,
                forward_flops=unit.count
                * sum(num_flops(op, sizes=sizes, phase="forward") for op in operators),
                backward_flops=unit.count
                * sum(num_flops(op, sizes=sizes, phase="backward") for op in operators),
                saved_bytes=total("saved"),
                saved_fused_bytes=total("saved_fused"),
                traffic_forward_bytes=total("traffic_forward"),
                traffic_backward_bytes=total("traffic_backward"),
            )
        )
    return tuple(rows)
