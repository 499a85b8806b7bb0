"""Bytes that the kernels of one operator move on one rank, and how many there are."""

from planner.graph import Operator
from planner.layouts.autocast import widened
from planner.layouts.cut import Cut, endpoint_bytes, is_fused, local_elements, term_bytes
from planner.layouts.kernel_traffic import unseen_bytes
from planner.layouts.norm_traffic import batch_norm_bytes, is_batch_norm, norm_before
from planner.layouts.sizes import item_bytes, read_labels


def operator_traffic(operator: Operator, cut: Cut, *, backward: bool) -> tuple[float, float]:
    """Return bytes moved and kernels launched, in the precision the stack runs them in."""
    num_bytes, num_kernels = _traffic(operator, cut, backward=backward)
    return num_bytes * widened(operator, cut), num_kernels


def _traffic(operator: Operator, cut: Cut, *, backward: bool) -> tuple[float, float]:
    """Return bytes moved and kernels launched.

    A fused chain reads what enters and writes what leaves; backward it reads both kinds again and
    writes the gradients of what enters. A bias in the epilogue of a product costs nothing forward
    and one reduction of the gradient backward.
    """
    if is_batch_norm(operator):
        return _batch_norm(operator, cut, backward=backward)
    inputs, outputs, _ = endpoint_bytes(operator, cut)
    if operator.target == "aten._to_copy" and inputs == outputs:
        return 0.0, 0.0  # torch gives back a tensor that has the wanted type already
    fused = norm_before(cut.graph, operator, cut.software)
    if fused is not None:
        return _other_inputs(operator, cut, fused), 0.0
    terms = operator.traffic_backward if backward else operator.traffic_forward
    kernels = operator.num_kernels_backward if backward else operator.num_kernels_forward
    is_fused_here = is_fused(operator, cut.software)
    extra = _unseen(operator, cut, backward=backward)
    in_epilogue = operator.num_kernels_forward == 0
    if terms and (not is_fused_here or (in_epilogue and not backward)):
        return sum(term_bytes(operator, term, cut) for term in terms) + extra, kernels
    inputs, outputs, parameters = endpoint_bytes(operator, cut)
    if not backward:
        return inputs + outputs + parameters + extra, 1.0
    if not _needs_gradient(operator, cut):
        return 0.0, 0.0
    if in_epilogue:
        return outputs + parameters, 1.0
    return 2 * inputs + outputs + 2 * parameters + extra, 1.0


def _unseen(operator: Operator, cut: Cut, *, backward: bool) -> float:
    """Return what kernels move beside operands and results [B]."""
    kept = {
        dtype: sum(term_bytes(operator, t, cut) for t in operator.saved if t.dtype == dtype)
        for dtype in ("bool", "fp32")
    }
    return unseen_bytes(
        operator, endpoints=endpoint_bytes(operator, cut), mask_bytes=kept["bool"],
        kept_fp32_bytes=kept["fp32"], backward=backward,
        is_fused=(
            cut.software.fuses_cross_entropy
            if operator.kind == "loss"
            else cut.software.fuses_elementwise
        ),
    )  # fmt: skip


def _needs_gradient(operator: Operator, cut: Cut) -> bool:
    return any(cut.graph.tensors[name].requires_grad for name in operator.outputs)


def _batch_norm(operator: Operator, cut: Cut, *, backward: bool) -> tuple[float, float]:
    """Return bytes moved and kernels launched by a batch norm."""
    inputs, outputs, parameters = endpoint_bytes(operator, cut)
    if backward and not _needs_gradient(operator, cut):
        return 0.0, 0.0
    num_bytes = batch_norm_bytes(
        inputs=inputs, outputs=outputs, parameters=parameters,
        is_training=cut.workload.is_training, backward=backward,
    )  # fmt: skip
    return num_bytes, 1.0


def _other_inputs(operator: Operator, cut: Cut, fused: str) -> float:
    """Return bytes of what a chain inside a norm's kernel reads beside the norm's output.

    Backward writes as much: the gradients of these inputs.
    """
    tensors = cut.graph.tensors
    return sum(
        local_elements(operator, read_labels(cut.graph, operand), cut)
        * item_bytes(tensors[operand.tensor].dtype, cut.workload)
        for operand in operator.inputs
        if operand.tensor != fused
    )
