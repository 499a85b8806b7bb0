"""What torch's autocast does beside casting the inputs of products: norms and softmax in fp32.

PyTorch documentation, "Automatic mixed precision", ops that autocast to float32: ``layer_norm``,
``softmax``, ``cross_entropy``. What they return stays in fp32, so the residual stream does, and
each product that reads it casts it first.
"""

from planner.graph import Operator
from planner.layouts.cut import Cut, endpoint_bytes

CASTS = ("fp16", "bf16")
WIDENED = 2.0
"""Bytes of a norm in fp32 over those in 16 bits [1]."""
SUM_WIDENED = 5.0 / 3.0
"""Sum of a 16-bit branch and an fp32 stream into fp32, over one in 16 bits: 10 B for 6 B [1]."""
CAST_PASSES = 3.0
"""An element read in 4 B and written in 2 B (or back), in 16-bit passes [1]."""
SOFTMAX_BYTES = {False: 28.0, True: 36.0}
"""Bytes per score between the products, without and with dropout. Forward: scale and mask in 16
bits (4 each), cast (6), softmax (8), dropout (8), cast (6); backward: cast (6), dropout (8),
softmax (12), cast (6), scale (4)."""
SOFTMAX_KERNELS = 5.0
SAVED_SCORE_BYTES = {False: 6.0, True: 7.0}
"""Kept per score: probabilities in fp32, their 16-bit cast, and the mask of dropout [B]."""


def autocasts(cut: Cut) -> bool:
    """Whether the stack computes under autocast in 16 bits."""
    return cut.software.autocasts and cut.workload.precision in CASTS


def widened(operator: Operator, cut: Cut) -> float:
    """Return the factor on the bytes of an operator that runs in fp32 under autocast [1]."""
    if not autocasts(cut):
        return 1.0
    if operator.kind == "normalization":
        return WIDENED
    return SUM_WIDENED if operator.kind == "elementwise" and _feeds_norm(operator, cut) else 1.0


def cast_bytes(operator: Operator, cut: Cut) -> float:
    """Return what casting a product's input from fp32 (or its gradient back) moves [B].

    Forward and backward alike; 0 for products that read what another product made.
    """
    if not autocasts(cut) or operator.kind != "matmul":
        return 0.0
    graph = cut.graph
    makers = {graph.tensors[operand.tensor].producer for operand in operator.inputs}
    if not any(m is not None and graph.operator(m).kind == "normalization" for m in makers):
        return 0.0
    return CAST_PASSES * endpoint_bytes(operator, cut)[0]


def _feeds_norm(operator: Operator, cut: Cut) -> bool:
    outputs = set(operator.outputs)
    return any(
        other.kind == "normalization" and any(item.tensor in outputs for item in other.inputs)
        for _, other in cut.graph.graph.nodes(data="operator")
    )
