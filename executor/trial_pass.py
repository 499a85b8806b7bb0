"""torch's trial pass through pipeline stages, kept from leaving traces in the model.

Before its first step torch 2.13 runs each stage forward and backward on the first microbatch, later
stages on uninitialised memory, to learn shapes. It restores random numbers and gradients, but not
buffers: running statistics of batch normalisation would take in that memory.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

_TRIALS = ("_prepare_forward_infra", "_prepare_backward_infra")
"""Private methods of torch 2.13's stages; a torch without them runs no such trial."""


def keep_buffers_in_trial(schedule: Any) -> None:
    """Make the stages of a schedule restore their buffers after the trial pass."""
    for stage in getattr(schedule, "_stages", None) or [schedule._stage]:
        for name in _TRIALS:
            if hasattr(stage, name):
                setattr(stage, name, _restoring(getattr(stage, name), stage.submod))


def _restoring(trial: Callable[..., Any], module: nn.Module) -> Callable[..., Any]:
    @wraps(trial)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = [(buffer, buffer.clone()) for buffer in module.buffers()]
        result = trial(*args, **kwargs)
        for buffer, value in before:
            buffer.copy_(value)
        return result

    return call
