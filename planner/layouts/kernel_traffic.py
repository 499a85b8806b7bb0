"""Traffic of torch's kernels beside the operands and results of an operator."""

from planner.graph import Operator


def unseen_bytes(
    operator: Operator,
    *,
    endpoints: tuple[float, float, float],
    mask_bytes: float,
    kept_fp32_bytes: float,
    is_fused: bool,
    backward: bool,
) -> float:
    """Return what the kernels move beside what enters and leaves the operator [B].

    Dropout writes its mask. A loss over classes writes its log-probabilities, then fills a
    gradient of their size and reads it again; a norm reads input and gradient a second time for
    the gradients of its weights; the gradient of a lookup table is filled with zeros before its
    rows are added. Fused, only the mask remains.

    Parameters
    ----------
    operator : Operator
        The operator.
    endpoints : tuple of float
        Activations that enter, activations that leave, parameters [B].
    mask_bytes : float
        Masks that it keeps [B].
    kept_fp32_bytes : float
        Other fp32 tensors that it keeps [B].
    is_fused : bool
        Whether the stack fuses chains, or for a loss its cross entropy.
    backward : bool
        Which pass.

    Returns
    -------
    float
        Read plus written [B].

    References
    ----------
    .. [1] PyTorch, ``aten/src/ATen/native/cuda``: ``SoftMax.cu``, ``NLLLoss2d.cu``, ``Loss.cu``,
       ``layer_norm_kernel.cu``, ``Embedding.cu``.
    """
    if operator.kind == "elementwise":
        return 0.0 if backward else mask_bytes
    if is_fused:
        return 0.0
    inputs, outputs, parameters = endpoints
    if operator.target == "aten.cross_entropy":
        return kept_fp32_bytes * (2.0 if backward else 1.0)
    if not backward or not operator.parameters:
        return 0.0
    if operator.target in ("aten.layer_norm", "aten.rms_norm"):
        return inputs + outputs
    return parameters if operator.target == "aten.embedding" else 0.0
