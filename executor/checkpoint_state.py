"""The state of a training under names that do not depend on the plan.

Every tensor is a plain one, whole on this rank, or a DTensor that says which part of the whole this
rank holds; torch.distributed.checkpoint then reads it back into any other split.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from executor.optimizer import ShardOptimizer

State = dict[str, torch.Tensor]


def training_state(
    parameters: Mapping[str, nn.Parameter],
    *,
    buffers: Mapping[str, torch.Tensor],
    optimizer: ShardOptimizer,
) -> State:
    """Return weights, buffers and optimizer state by name; writing into them writes the training's.

    Parameters
    ----------
    parameters : mapping of str to Parameter
        In the order in which the optimizer got them.
    buffers : mapping of str to Tensor
        Persistent buffers (running statistics); those of the first data rank are kept.
    optimizer : ShardOptimizer
        Its state is made where no step has made it yet.
    """
    state: State = {f"buffer.{name}": buffer for name, buffer in buffers.items()}
    for (name, parameter), entries in zip(
        parameters.items(), optimizer.state_tensors(), strict=True
    ):
        state[f"model.{name}"] = parameter.detach()
        for key, tensor in entries.items():
            state[f"optimizer.{name}.{key}"] = _as_split(tensor, parameter)
    return state


def _as_split(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return optimizer state under the split of its parameter; counters stay as they are."""
    if tensor.dim() == 0 or not isinstance(parameter, DTensor):
        return tensor
    return DTensor.from_local(
        tensor, parameter.device_mesh, parameter.placements, run_check=False,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip


def persistent_buffers(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Return the buffers that a state dict of these modules would hold, by their whole name."""
    found: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                found[f"{path}.{key}".lstrip(".")] = buffer
    return found
