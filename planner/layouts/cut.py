"""One operator under one split: local sizes, and bytes of its operands and results."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hardware_profiles.software import SoftwareProfile
from planner.graph import ModelGraph, Operator, TensorTerm
from planner.layouts.sizes import (
    carries,
    expert_labels,
    flat_labels,
    held_labels,
    item_bytes,
    num_elements,
    read_labels,
)
from planner.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """How one operator is cut, beside microbatch and context."""

    graph: ModelGraph
    sizes: Mapping[str, float]
    """Label -> size that the other axes leave [1]."""
    choice: str | None
    size: int
    """Ranks of the tensor axis [1]."""
    expert_size: int
    """Ranks among which experts are split [1]."""
    workload: Workload
    software: SoftwareProfile


def local_elements(
    operator: Operator, labels: Iterable[str], cut: Cut, *, is_parameter: bool = False
) -> float:
    """Return the elements of a tensor over ``labels`` that one rank holds for the operator [1].

    A split of experts over ``ep`` leaves each rank fewer experts and as many tokens as before,
    since it receives those of the other ranks (costed as balanced).
    """
    labels = tuple(labels)
    elements = num_elements(labels, cut.sizes)
    if carries(operator, labels, cut.choice):
        elements /= cut.size
    if is_parameter and set(labels) & set(expert_labels(operator)):
        elements /= cut.expert_size
    return elements


def is_fused(operator: Operator, software: SoftwareProfile) -> bool:
    """Whether the operator's kernels run as one, and keep only what one kernel keeps."""
    if operator.kind == "elementwise":
        return software.fuses_elementwise
    return operator.kind == "normalization" and software.fuses_normalization


def term_bytes(operator: Operator, term: TensorTerm, cut: Cut) -> float:
    """Return the local bytes of one term [B]."""
    is_parameter = any(
        set(term.labels) == set(held_labels(cut.graph, operand)) for operand in operator.parameters
    )
    elements = local_elements(operator, term.labels, cut, is_parameter=is_parameter)
    return elements * term.times * item_bytes(term.dtype, cut.workload)


def endpoint_bytes(operator: Operator, cut: Cut) -> tuple[float, float, float]:
    """Return local bytes of activation inputs, of outputs, and of parameters [B]."""
    tensors = cut.graph.tensors

    def size(name: str, labels: tuple[str, ...], *, is_parameter: bool = False) -> float:
        elements = local_elements(operator, labels, cut, is_parameter=is_parameter)
        return elements * item_bytes(tensors[name].dtype, cut.workload)

    inputs = sum(
        size(operand.tensor, read_labels(cut.graph, operand)) for operand in operator.inputs
    )
    outputs = sum(size(name, flat_labels(tensors[name].dims)) for name in operator.outputs)
    parameters = sum(
        size(operand.tensor, held_labels(cut.graph, operand), is_parameter=True)
        for operand in operator.parameters
    )
    return inputs, outputs, parameters
