"""What a unit keeps between the gradients of its inputs and those of its weights."""

from collections.abc import Mapping

from hardware_profiles.software import SoftwareProfile
from planner.graph import Operator
from planner.layouts.costs import OperatorCost, Setting

_LOSS = "loss:"
_BIAS = "aten.add_bias"
_PRODUCTS = ("matmul", "convolution", "recurrent")


def keeps_graph(software: SoftwareProfile) -> bool:
    """Return whether all that backward saved stays until the gradients of weights are made."""
    return software.split_backward == "graph"


def awaiting_bytes(
    setting: Setting, costs: Mapping[str, OperatorCost], kept: Mapping[str, float]
) -> float:
    """Return what waits for the gradients of a unit's weights, without scores of attention [B].

    Torch (``torch.distributed.pipelining._backward``) holds the whole graph, since the operators
    at which the gradients of weights begin reach all below them, and beside it the gradient of what
    each operator with weights wrote; only what stands above the last of these is gone, the loss.
    Other stacks keep what the products of weight gradients read: inputs of the products and the
    gradients of their outputs (Qi et al. 2024, arXiv:2401.10241, section 3: linear layers store
    their input and the gradient of their output).

    Parameters
    ----------
    setting : Setting
        Circumstances.
    costs : mapping
        Operator of the unit -> its price.
    kept : mapping
        Operator of the unit -> bytes kept for backward [B].
    """
    if not setting.workload.is_training:
        return 0.0
    graph = setting.graph
    with_weights = [name for name in costs if _has_weights(graph.operator(name))]
    if keeps_graph(setting.software):
        saved = sum(num_bytes for name, num_bytes in kept.items() if not name.startswith(_LOSS))
        return saved + sum(costs[name].written_bytes for name in with_weights)
    products = [name for name in with_weights if graph.operator(name).kind in _PRODUCTS]
    inputs = {
        tensor: num_bytes for name in products for tensor, num_bytes in costs[name].read_bytes
    }
    return sum(inputs.values()) + sum(costs[name].written_bytes for name in products)


def _has_weights(operator: Operator) -> bool:
    """Whether gradients of weights begin here; a bias is a part of its product."""
    return bool(operator.parameters) and not operator.target.startswith(_BIAS)
