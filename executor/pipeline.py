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
)

from executor.recording import Recorder
from planner.strategy import Schedule


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
        ``gpipe``, ``1f1b`` or ``interleaved``. With fewer microbatches than stages torch has no
        1F1B; GPipe's order is run, which then differs on the last stages only.
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
        stage = PipelineStage(module, index, num_stages, device, group=group)
        _record_stage(stage, index, recorder)
        made.append(stage)
    if schedule == "interleaved":
        return ScheduleInterleaved1F1B(made, num_microbatches, loss_fn=loss)
    is_short = num_microbatches < num_stages
    kind = ScheduleGPipe if schedule == "gpipe" or is_short else Schedule1F1B
    return kind(made[0], num_microbatches, loss_fn=loss)


def _record_stage(stage: PipelineStage, index: int, recorder: Recorder) -> None:
    for method, name in (("forward_one_chunk", "forward"), ("backward_one_chunk", "backward")):
        setattr(stage, method, _recorded(getattr(stage, method), name, index, recorder))


def _recorded(original: Any, name: str, stage: int, recorder: Recorder) -> Any:
    @wraps(original)
    def call(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        with recorder.region(name, "compute", stage=stage, microbatch=microbatch):
            return original(microbatch, *args, **kwargs)

    return call
