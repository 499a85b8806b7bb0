"""Local work of one operator: what a rank computes, moves and keeps under one split.

Sizes of labels come from :func:`planner.layouts.sizes.local_sizes`; this module applies the split
of the tensor axis and of the experts, and turns the operator's terms into
:class:`simulator.work.Work`.
"""

from hardware_profiles.software import SoftwareProfile
from planner.graph import FlopTerm, Operator, TensorTerm
from planner.layouts.autocast import (
    SAVED_SCORE_BYTES,
    SOFTMAX_BYTES,
    SOFTMAX_KERNELS,
    autocasts,
    cast_bytes,
)
from planner.layouts.cut import Cut, endpoint_bytes, is_fused, local_elements, term_bytes
from planner.layouts.precision import CAST_BYTES, is_aligned, precision_of, runs_in_fp8
from planner.layouts.sizes import (
    expert_labels,
    flat_labels,
    item_bytes,
    num_elements,
    read_labels,
)
from planner.layouts.traffic import operator_traffic
from simulator.work import Work, WorkKind

__all__ = [
    "Cut", "attention_kernel", "backward_work", "endpoint_bytes", "forward_work", "is_fused",
    "kept_terms", "local_elements", "own_copies_bytes", "read_bytes", "saved_terms", "score_bytes",
    "term_bytes", "total_flops",
]  # fmt: skip

_PRODUCT_KINDS: dict[str, WorkKind] = {
    "matmul": "matmul",
    "convolution": "convolution",
    "recurrent": "recurrent",
}
_TWO_PRODUCTS = 1.5
"""Ratio of backward to forward FLOPs above which there are two products backward [1]."""
_SOFTMAX_PASSES = {"fused": (2.0, 3.0), "separate": (6.0, 7.0)}
"""Passes over the score matrix between an unfused attention's products, forward and backward:
scale, mask and softmax in one kernel read and write (backward reads two and writes one), or read
and write each [1]."""
_SOFTMAX_KERNELS = {"fused": 1.0, "separate": 3.0}
_DROPOUT_PASSES = 2.0
"""Dropout on the probabilities is a kernel of its own, which keeps its mask: Korthikanti et al.
2022, arXiv:2205.05198, section 4.1 lists its input, mask and output apart [1]."""
_FP32_BYTES = 4.0
_HALF_BYTES = 2
_CAUSAL_SHARE = 0.5
"""Share of the score matrix that a fused kernel computes under a causal mask; its measured rates
count so (Dao 2023, arXiv:2307.08691, section 4.1) [1]."""


def forward_work(operator: Operator, cut: Cut) -> tuple[Work, ...]:
    """Return the kernels of the forward pass on one rank."""
    flops = _flops(operator, operator.flops_forward, cut)
    num_bytes, num_kernels = operator_traffic(operator, cut, backward=False)
    if operator.kind == "attention" and attention_kernel(cut) == "unfused":
        return _unfused_attention(operator, cut, flops, num_bytes, backward=False)
    work = _work(operator, cut, flops, num_bytes, num_kernels)
    return (*_casts(operator, cut, backward=False), work)


def backward_work(operator: Operator, cut: Cut) -> tuple[Work, ...]:
    """Return the kernels of the backward pass on one rank, without recomputation."""
    flops = _flops(operator, operator.flops_backward, cut)
    num_bytes, num_kernels = operator_traffic(operator, cut, backward=True)
    if flops <= 0 and num_bytes <= 0:
        return ()
    if operator.kind == "attention" and attention_kernel(cut) == "unfused":
        return _unfused_attention(operator, cut, flops, num_bytes, backward=True)
    if operator.kind not in _PRODUCT_KINDS:
        return (_work(operator, cut, flops, num_bytes, num_kernels, backward=True),)
    forward = _flops(operator, operator.flops_forward, cut)
    products = _backward_products(
        operator, cut, flops, num_bytes, num_kernels, two=flops > _TWO_PRODUCTS * forward
    )
    return (*_casts(operator, cut, backward=True), *products)


def attention_kernel(cut: Cut) -> str:
    """Return the attention kernel that workload and software agree on: ``flash`` or ``unfused``."""
    choice = cut.workload.attention
    return cut.software.attention if choice == "auto" else choice


def score_bytes(operator: Operator, cut: Cut) -> float:
    """Return what unfused attention keeps of its score matrix [B]; 0 for others.

    Probabilities, and under dropout its output and mask: 5 of the 2-byte ``a s^2 b`` of Korthikanti
    et al. 2022, arXiv:2205.05198, equation 1.
    """
    if operator.kind != "attention" or attention_kernel(cut) != "unfused":
        return 0.0
    item = cut.workload.compute_bytes
    per_element = 2.0 * item + 1.0 if operator.dropout else item
    if autocasts(cut) and not cut.software.fuses_attention_softmax:
        per_element = SAVED_SCORE_BYTES[operator.dropout]
    return _scores(operator, cut) * per_element


def saved_terms(operator: Operator, software: SoftwareProfile) -> tuple[TensorTerm, ...]:
    """Return what the operator keeps for backward, as the software runs it.

    Where chains are fused and recomputed, the product before a chain keeps the chain's entry, so
    that the switch is one for all operators.
    """
    return operator.saved_fused if software.fuses_elementwise else operator.saved


def kept_terms(operator: Operator, cut: Cut) -> tuple[TensorTerm, ...]:
    """Return what the operator keeps for backward, as software and attention kernel have it.

    The row sums of a fused attention kernel are no part of unfused attention, whose scores
    :func:`score_bytes` counts.
    """
    terms = saved_terms(operator, cut.software)
    if operator.kind != "attention" or attention_kernel(cut) != "unfused":
        return terms
    outputs = {frozenset(flat_labels(cut.graph.tensors[name].dims)) for name in operator.outputs}
    return tuple(term for term in terms if frozenset(term.labels) in outputs)


def total_flops(operator: Operator, terms: tuple[FlopTerm, ...], cut: Cut) -> float:
    """Return local FLOPs of some terms [FLOP]."""
    return _flops(operator, terms, cut)


def read_bytes(operator: Operator, cut: Cut) -> tuple[tuple[str, float], ...]:
    """Return the activations that the operator reads, as it reads them [B]."""
    tensors = cut.graph.tensors
    return tuple(
        (
            operand.tensor,
            local_elements(operator, read_labels(cut.graph, operand), cut)
            * item_bytes(tensors[operand.tensor].dtype, cut.workload),
        )
        for operand in operator.inputs
        if tensors[operand.tensor].kind == "activation"
    )


def own_copies_bytes(operator: Operator, cut: Cut) -> float:
    """Return what the operator holds for itself while it runs, most of it backward [B].

    A loss over classes makes the gradient of the log-probabilities before that of the logits
    (torch's ``nll_loss`` and ``log_softmax``); fused, the 16-bit logits are still there when the
    probabilities are made (Megatron-LM, ``vocab_parallel_cross_entropy(output.float())``); as one
    kernel its gradient takes the place of the probabilities, and 16-bit logits remain. Unfused
    attention makes the gradients of probabilities and scores; a fused kernel sums the query's
    gradient in fp32 (FlashAttention-2, arXiv:2307.08691, algorithm 2). DTensor makes the gradient
    of a table that ranks share by words whole before it is cut (torch,
    ``tensor/_ops/_embedding_ops.py``, whose backward rules have no such split). In inference it is
    all that enters and leaves.
    """
    inputs, outputs, _ = endpoint_bytes(operator, cut)
    if not cut.workload.is_training:
        return inputs + outputs
    if operator.kind == "loss" and cut.software.fuses_cross_entropy:
        return -inputs / 2.0
    if operator.kind == "loss" and cut.software.fuses_split_loss and _splits_classes(operator, cut):
        return 0.0
    if operator.kind == "loss":
        return inputs / 2.0 if cut.software.fuses_elementwise else inputs
    if operator.kind != "attention":
        return _whole_table_bytes(operator, cut)
    if attention_kernel(cut) == "unfused":
        return 2.0 * _scores(operator, cut) * cut.workload.compute_bytes
    return outputs / cut.workload.compute_bytes * _FP32_BYTES


def _whole_table_bytes(operator: Operator, cut: Cut) -> float:
    is_shared = any(i.label == cut.choice and i.kind == "lookup" for i in operator.indices)
    if not (is_shared and cut.software.fully_shards):
        return 0.0
    held = sum(num_elements(flat_labels(p.dims), cut.sizes) for p in operator.parameters)
    return held * cut.workload.compute_bytes


def _splits_classes(operator: Operator, cut: Cut) -> bool:
    """Whether ranks share the classes of a loss, not its samples."""
    return any(i.label == cut.choice and i.kind == "coupled" for i in operator.indices)


def _flops(operator: Operator, terms: tuple[FlopTerm, ...], cut: Cut) -> float:
    return sum(term.coefficient * local_elements(operator, term.labels, cut) for term in terms)


def _shape(operator: Operator, cut: Cut, flops: float) -> tuple[float, float, float, float]:
    """Return (batch, m, n, k); rows of grouped products follow from the FLOPs."""
    batch, m, n, k = (
        max(1.0, local_elements(operator, labels, cut, is_parameter=place == 0))
        for place, labels in enumerate(operator.roles_mn_k)
    )
    if expert_labels(operator):
        m = max(1.0, flops / (2 * batch * n * k))
    return batch, m, n, k


def _is_aligned(operator: Operator, cut: Cut, n: float, k: float) -> bool:
    """Whether the rows of a plain product's operands start where fast instructions want them."""
    if operator.kind != "matmul":
        return True
    return is_aligned(precision_of(operator, cut.workload.precision), n, k)


def _casts(operator: Operator, cut: Cut, *, backward: bool) -> tuple[Work, ...]:
    """Return the casts to fp8, or from autocast's fp32, before the products of a linear layer.

    Forward its input, backward the gradient of its output. Weights are cast for every microbatch
    unless the stack keeps the cast ones, as those do that fuse chains.
    """
    cast = cast_bytes(operator, cut)
    if cast > 0:
        return (Work(kind="memory", precision="bf16", memory_bytes=cast, backward=backward),)
    if cut.workload.precision != "fp8" or not runs_in_fp8(operator):
        return ()
    inputs, outputs, parameters = endpoint_bytes(operator, cut)
    num_bytes = outputs if backward else inputs
    if not backward and not cut.software.fuses_elementwise:
        num_bytes += parameters
    moved = CAST_BYTES * num_bytes
    return (Work(kind="memory", precision="bf16", memory_bytes=moved, backward=backward),)


def _work(
    operator: Operator,
    cut: Cut,
    flops: float,
    num_bytes: float,
    num_kernels: float,
    *,
    backward: bool = False,
) -> Work:
    kind: WorkKind = "attention" if operator.kind == "attention" else "memory"
    kind = _PRODUCT_KINDS.get(operator.kind, kind)
    is_half = operator.causal and kind == "attention"
    forward = _flops(operator, operator.flops_forward, cut)
    batch, m, n, k = _shape(operator, cut, forward)
    return Work(
        kind=kind,
        precision=precision_of(operator, cut.workload.precision),
        aligned=_is_aligned(operator, cut, n, k),
        num_flops=flops * _CAUSAL_SHARE if is_half else flops,
        memory_bytes=num_bytes,
        batch=batch,
        m=m,
        n=n,
        k=k,
        num_kernels=num_kernels,
        filter_area=operator.filter_area,
        backward=backward,
        sequential_steps=operator.sequential_steps,
        function=operator.target if kind == "memory" else "",
        num_elements=_elements(operator, cut) if kind == "memory" else 0.0,
    )


def _elements(operator: Operator, cut: Cut) -> float:
    """Return the elements that a memory-bound kernel goes through: of its largest operand [1]."""
    entering = (
        local_elements(operator, read_labels(cut.graph, operand), cut)
        for operand in operator.inputs
        if cut.graph.tensors[operand.tensor].kind == "activation"
    )
    leaving = (
        local_elements(operator, flat_labels(cut.graph.tensors[name].dims), cut)
        for name in operator.outputs
    )
    return max((*entering, *leaving), default=0.0)


def _backward_products(
    operator: Operator, cut: Cut, flops: float, num_bytes: float, num_kernels: float, *, two: bool
) -> tuple[Work, ...]:
    """Return the products for the input's and the weight's gradient."""
    forward = _flops(operator, operator.flops_forward, cut)
    batch, m, n, k = _shape(operator, cut, forward)
    area = operator.filter_area  # the gradient of an input sums over filters and their windows
    shapes = ((m, k / area, n * area), (k, n, m)) if two else ((k, n, m),)
    return tuple(
        Work(
            kind=_PRODUCT_KINDS[operator.kind],
            precision=precision_of(operator, cut.workload.precision),
            aligned=_is_aligned(operator, cut, n, k),
            num_flops=flops / len(shapes),
            memory_bytes=num_bytes / len(shapes)
            + (_accumulated_bytes(operator, cut) if number == len(shapes) - 1 else 0.0),
            batch=batch,
            m=rows,
            n=columns,
            k=inner,
            num_kernels=num_kernels / len(shapes),
            filter_area=operator.filter_area,
            backward=True,
            weight_gradient=number == len(shapes) - 1,
            sequential_steps=operator.sequential_steps,
        )
        for number, (rows, columns, inner) in enumerate(shapes)
    )


def _accumulated_bytes(operator: Operator, cut: Cut) -> float:
    """Return what a product moves beyond its 16-bit result to add it into an fp32 buffer [B].

    Only where the product does so itself (Megatron-LM's fused accumulation of weight gradients):
    elsewhere the copy is a part of ``gradient_accumulation_bytes``.
    """
    software, item = cut.software, cut.workload.compute_bytes
    adds = software.gradient_precision == "fp32" and software.gradient_accumulation_bytes == 0.0
    if not adds or item > _HALF_BYTES:
        return 0.0
    parameters = endpoint_bytes(operator, cut)[2]
    return parameters / item * (2.0 * _FP32_BYTES - item)


def _scores(operator: Operator, cut: Cut) -> float:
    batch, m, n, _ = operator.roles_mn_k
    return local_elements(operator, (*batch, *m, *n), cut)


def _unfused_attention(
    operator: Operator, cut: Cut, flops: float, num_bytes: float, *, backward: bool
) -> tuple[Work, ...]:
    """Return the products over the score matrix and the memory-bound softmax between them.

    Forward two products; backward four of the same size, whatever a fused kernel recomputes.
    """
    forward = _flops(operator, operator.flops_forward, cut)
    batch, m, n, k = _shape(operator, cut, forward)
    scores = _scores(operator, cut)
    item = cut.workload.compute_bytes
    shapes = ((m, n, k), (m, k, n), (n, k, m), (n, k, m)) if backward else ((m, n, k), (m, k, n))
    products = tuple(
        Work(
            kind="matmul",
            precision=precision_of(operator, cut.workload.precision),
            num_flops=forward / 2,
            memory_bytes=num_bytes / len(shapes) + scores * item,
            batch=batch,
            m=rows,
            n=columns,
            k=inner,
            backward=backward,
        )
        for rows, columns, inner in shapes
    )
    per_score, kernels = _softmax_bytes(cut, has_dropout=operator.dropout, backward=backward)
    softmax = Work(
        kind="memory",
        precision=precision_of(operator, cut.workload.precision),
        memory_bytes=per_score * scores,
        num_kernels=kernels + (1.0 if operator.dropout else 0.0),
        backward=backward,
    )
    return (*products, softmax) if flops > 0 else ()


def _softmax_bytes(cut: Cut, *, has_dropout: bool, backward: bool) -> tuple[float, float]:
    """Return bytes per score between the products [B], and kernels without that of dropout [1]."""
    mask = 1.0 if has_dropout else 0.0
    if autocasts(cut) and not cut.software.fuses_attention_softmax:
        return SOFTMAX_BYTES[has_dropout] + mask, SOFTMAX_KERNELS
    kernels = "fused" if cut.software.fuses_attention_softmax else "separate"
    passes = _SOFTMAX_PASSES[kernels][backward] + (_DROPOUT_PASSES if has_dropout else 0.0)
    return passes * cut.workload.compute_bytes + mask, _SOFTMAX_KERNELS[kernels]
