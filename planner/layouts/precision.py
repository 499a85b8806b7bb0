"""In which precision an operator runs under a recipe, and what that needs beside the product."""

from hardware_profiles.device import Precision
from planner.graph import Operator

CAST_BYTES = 2.0
"""Traffic of a cast to fp8 per byte of the 16-bit tensor: it is read once and written twice in fp8,
as it is and transposed (Transformer Engine, ``cast_transpose``) [1]."""
_ALIGNMENT_BYTES = 16
_ITEM_BYTES = {"fp8": 1, "int8": 1, "fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4, "fp64": 8}


def precision_of(operator: Operator, recipe: Precision) -> Precision:
    """Return the precision in which the operator runs.

    A recipe in fp8 runs the products of linear layers in it; attention, norms, chains, lookups and
    the product to the vocabulary stay in bf16.

    Parameters
    ----------
    operator : Operator
        The operator.
    recipe : str
        Precision of the workload.

    Returns
    -------
    str
        Precision of its arithmetic.

    References
    ----------
    .. [1] NVIDIA, "Transformer Engine", user guide, section "Using FP8": ``fp8_autocast`` acts on
       the modules ``Linear``, ``LayerNormLinear`` and ``LayerNormMLP``; Megatron-LM's output layer
       is none of them.
    """
    if recipe != "fp8" or runs_in_fp8(operator):
        return recipe
    return "bf16"


def runs_in_fp8(operator: Operator) -> bool:
    """Whether a recipe in fp8 runs this operator in it: the product of a linear layer."""
    if operator.kind != "matmul" or not operator.parameters:
        return False
    return not any(label.split("@")[0] == "vocab" for label in operator.roles_mn_k[2])


def is_aligned(precision: Precision, *widths: float) -> bool:
    """Whether rows of these widths [elements] all start at multiples of 16 B.

    Examples
    --------
    >>> is_aligned("bf16", 4096, 50304), is_aligned("bf16", 50257), is_aligned("fp8", 1000)
    (True, False, False)
    """
    return all(width * _ITEM_BYTES[precision] % _ALIGNMENT_BYTES == 0 for width in widths)
