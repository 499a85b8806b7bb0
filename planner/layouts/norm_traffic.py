"""Traffic of batch norms, and of the chains that a stack fuses into them."""

from hardware_profiles.software import SoftwareProfile
from planner.graph import ModelGraph, Operator

BATCH_NORM = "batch_norm"
"""Part of the target of every batch norm."""


def is_batch_norm(operator: Operator) -> bool:
    """Return whether statistics are taken over the batch."""
    return operator.kind == "normalization" and BATCH_NORM in operator.target


def batch_norm_bytes(
    *, inputs: float, outputs: float, parameters: float, is_training: bool, backward: bool
) -> float:
    """Return what one batch norm moves in device memory [B].

    Statistics over the batch are complete only when all of it has been read, and a batch does not
    stay on the chip until then: forward reads its input for the statistics and again to normalise;
    backward reads input and gradient for the two sums, and both again for the gradient of the
    input (S. Ioffe, C. Szegedy 2015, arXiv:1502.03167, algorithm 1 and section 3). A layer norm,
    whose rows stay on the chip, reads each once. Inference has its statistics already.

    Parameters
    ----------
    inputs, outputs, parameters : float
        Local bytes of each [B].
    is_training : bool
        Whether statistics are taken from this batch.
    backward : bool
        Whether this is the backward pass.

    Examples
    --------
    >>> batch_norm_bytes(inputs=8, outputs=8, parameters=0, is_training=True, backward=False)
    24
    >>> batch_norm_bytes(inputs=8, outputs=8, parameters=0, is_training=True, backward=True)
    40
    """
    if backward:
        return 3 * inputs + 2 * outputs + 2 * parameters
    return (2 if is_training else 1) * inputs + outputs + parameters


def norm_before(graph: ModelGraph, operator: Operator, software: SoftwareProfile) -> str | None:
    """Return the batch norm's output that this chain reads in the norm's own kernel.

    With ``software.fuses_norm_activation`` an activation, or a shortcut's sum and activation, is
    computed where the norm writes its output; of several norms that meet in a sum, one takes it.

    Returns
    -------
    str or None
        Tensor name; None where the chain is a kernel of its own.
    """
    if operator.kind != "elementwise" or not software.fuses_norm_activation:
        return None
    for operand in operator.inputs:
        producer = graph.tensors[operand.tensor].producer
        if producer is not None and is_batch_norm(graph.operator(producer)):
            return operand.tensor
    return None
