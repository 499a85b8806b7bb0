"""Optimizers on each rank's own shards."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from executor.gradients import local_of

_MOMENTUM = 0.9


class ShardOptimizer:
    """An optimizer on local shards, element-wise or of whole tensors; without DTensor's cost.

    Parameters
    ----------
    name : str
        ``sgd``, ``momentum``, ``adam``, ``adamw``, or ``adafactor`` on whole parameters.
    parameters : sequence of Parameter
        Plain or distributed parameters.
    learning_rate : float
        Step size [1].
    """

    def __init__(
        self, name: str, parameters: Sequence[nn.Parameter], *, learning_rate: float
    ) -> None:
        self._parameters = list(parameters)
        self._shards = [local_of(parameter.detach()) for parameter in self._parameters]
        self._inner = _build(name, self._shards, learning_rate)

    def step(self) -> None:
        """Update the shards from the gradients."""
        for parameter, shard in zip(self._parameters, self._shards, strict=True):
            shard.grad = None if parameter.grad is None else local_of(parameter.grad)
        self._inner.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter, shard in zip(self._parameters, self._shards, strict=True):
            parameter.grad = shard.grad = None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use another step size from the next step on [1]."""
        for group in self._inner.param_groups:
            group["lr"] = learning_rate

    def state_tensors(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield each parameter's own state, in order; writing into it writes the optimizer's.

        State that no step has made yet is made as the first step would: zeros.
        """
        for shard in self._shards:
            state = self._inner.state[shard]
            if not state:
                state.update(_first_state(self._inner, shard))
            yield {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _first_state(optimizer: torch.optim.Optimizer, shard: torch.Tensor) -> dict[str, torch.Tensor]:
    if isinstance(optimizer, torch.optim.SGD):
        has_momentum = optimizer.defaults["momentum"] != 0
        return {"momentum_buffer": torch.zeros_like(shard)} if has_momentum else {}
    if isinstance(optimizer, torch.optim.Adafactor):
        return {"step": torch.zeros(()), **_first_variances(shard)}
    return {
        "step": torch.zeros(()),
        "exp_avg": torch.zeros_like(shard),
        "exp_avg_sq": torch.zeros_like(shard),
    }


def _first_variances(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return Adafactor's second moments: of rows and columns, of vectors whole."""
    if tensor.dim() < 2:  # noqa: PLR2004 a matrix has two
        return {"variance": torch.zeros_like(tensor)}
    *batch, rows, columns = tensor.shape
    return {
        "row_var": tensor.new_zeros(*batch, rows, 1),
        "col_var": tensor.new_zeros(*batch, 1, columns),
    }


def _build(name: str, tensors: list[torch.Tensor], learning_rate: float) -> torch.optim.Optimizer:
    """Return torch's optimizer as one kernel per tensor.

    On a CPU a third of the time of its loop over operators, whose temporaries it does not need.
    """
    if name == "sgd":
        return torch.optim.SGD(tensors, lr=learning_rate, fused=True)
    if name == "momentum":
        return torch.optim.SGD(tensors, lr=learning_rate, momentum=_MOMENTUM, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(tensors, lr=learning_rate)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(tensors, lr=learning_rate, fused=True)
