"""Pipeline stages cut from a chain of modules, and torch's schedules over them."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from executor.recording import Recorder
from planner.strategy import Schedule
from simulator.placement import is_v_shaped
from simulator.zero_bubble import splits_backward

_OVER_STAGES: dict[str, type[PipelineScheduleMulti]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
}
"""Schedules that take several stages of a rank."""
_PASSES = {
    "forward_one_chunk": "forward",
    "backward_one_chunk": "backward",
    "backward_weight_one_chunk": "weight gradients",
}
"""Methods of torch's stages that compute, and what a timeline calls them."""


class ChainStage(nn.Module):
    """Consecutive modules of a chain, one tensor in and one out.

    Parameters
    ----------
    modules : sequence of Module
        In execution order.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Run the modules one after the other."""
        for part in self.parts:
            value = part(value)
        return value


def make_schedule(
    stages: Mapping[int, nn.Module],
    *,
    num_stages: int,
    schedule: Schedule,
    num_microbatches: int,
    loss: Callable[[Any, torch.Tensor], torch.Tensor],
    device: torch.device,
    group: dist.ProcessGroup,
    recorder: Recorder,
) -> PipelineScheduleSingle | PipelineScheduleMulti:
    """Return torch's schedule over this rank's stages.

    Parameters
    ----------
    stages : mapping of int to Module
        Stage index -> module, ascending.
    num_stages : int
        Stages over all ranks, virtual ones counted.
    schedule : str
        Of the plan; tests hold torch's order of those with virtual stages to the simulator's. With
        fewer microbatches than stages torch has no 1F1B; GPipe's order is run, which then differs
        on the last stages only.
    num_microbatches : int
        Microbatches per step.
    loss : callable
        ``loss(output, targets)``, a mean over samples.
    device : torch.device
        Where the stages live.
    group : ProcessGroup
        The ranks of this pipeline.
    recorder : Recorder
        Told of every forward and backward pass.
    """
    made: list[Any] = []
    for index, module in stages.items():
        if splits_backward(schedule):
            module.register_forward_hook(_without_views)
        stage = PipelineStage(module, index, num_stages, device, group=group)
        _record_stage(stage, index, recorder)
        made.append(stage)
    if is_v_shaped(schedule):
        scaled = _mean_over(loss, num_microbatches)
        return ScheduleZBVZeroBubble(made, num_microbatches, loss_fn=scaled, scale_grads=False)
    if schedule in _OVER_STAGES:
        return _OVER_STAGES[schedule](made, num_microbatches, loss_fn=loss)
    is_short = num_microbatches < num_stages
    kind = ScheduleGPipe if schedule == "gpipe" or is_short else Schedule1F1B
    return kind(made[0], num_microbatches, loss_fn=loss)


def _mean_over(
    loss: Callable[[Any, torch.Tensor], torch.Tensor], count: int
) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """Return a loss of the same value whose gradient is divided by the microbatches.

    Torch divides the gradients of each stage when the stage is through; a weight that two stages of
    one rank share (a head that is the embedding) would be divided twice.
    """

    def call(output: Any, targets: torch.Tensor) -> torch.Tensor:
        value = loss(output, targets)
        return value.detach() + (value - value.detach()) / count

    return call


def _without_views(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Return what a stage hands on as a tensor of its own.

    A split backward pass detaches it in place, which a view (a shard of a distributed tensor)
    refuses.
    """
    del module, inputs
    return output.clone() if output._is_view() else output


def _record_stage(stage: PipelineStage, index: int, recorder: Recorder) -> None:
    for method, name in _PASSES.items():
        setattr(stage, method, _recorded(getattr(stage, method), name, index, recorder))


def _recorded(original: Any, name: str, stage: int, recorder: Recorder) -> Any:
    @wraps(original)
    def call(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        told = name if kwargs.get("full_backward", True) else "input gradients"
        with recorder.region(told, "compute", stage=stage, microbatch=microbatch):
            return original(microbatch, *args, **kwargs)

    return call
