"""One step of one rank: forward, backward, gradient sums, update."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from executor.assemble import Assembly
from executor.data_parallel import SummedReplica, prepare_microbatch
from executor.errors import RunError
from executor.gradients import (
    average_over_data_ranks,
    reduce_partial_gradients,
    sum_tied_gradients,
)
from executor.optimizer import ShardOptimizer
from executor.rank_mesh import RankMesh
from executor.recording import Recorder
from planner.models.source import Batch, ModelSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """What a rank needs to run steps."""

    assembly: Assembly
    ranks: RankMesh
    source: ModelSource
    optimizer: ShardOptimizer | None
    recorder: Recorder
    device: torch.device

    def forward_backward(self, batch: Batch) -> float | None:
        """Run a step up to whole, averaged gradients; return the loss where this rank knows it."""
        dp = self.ranks.shape.size("dp")
        return self.forward_backward_own(rows_of(batch, self.ranks.coordinate("dp"), dp))

    def forward_backward_own(self, own: Batch) -> float | None:
        """Do so with a batch that holds the samples of this data-parallel rank only."""
        shape = self.ranks.shape
        if self.assembly.context is not None:
            own = self.assembly.context.own_part(own)
        own = _on_device(own, self.device)
        is_plain = self.assembly.schedule is None
        loss = self._plain(own) if is_plain else self._pipelined(own)
        if shape.mode == "train":
            self._sync()
        return loss

    def update(self) -> None:
        """Apply the gradients and drop them."""
        if self.optimizer is None:
            return
        with self.recorder.region("optimizer", "optimizer"):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _plain(self, own: Batch) -> float:
        shape, module = self.ranks.shape, self.assembly.module
        if module is None:
            raise RuntimeError("a pipelined assembly has no module")
        total = 0.0
        count = shape.num_microbatches
        divisor = count * (shape.data_ranks if isinstance(module, SummedReplica) else 1)
        for index in range(count):
            micro = rows_of(own, index, count)
            is_last = index == count - 1
            if shape.mode == "infer":
                total += self._infer(module, micro, index)
                continue
            prepare_microbatch(module, sharding=shape.sharding, is_last=is_last)
            if isinstance(module, DistributedDataParallel):
                module.require_backward_grad_sync = is_last
            with self.assembly.modes():
                with self.recorder.region("forward", "compute", stage=0, microbatch=index):
                    output = module(*micro.inputs, **micro.keywords)
                    loss = self.assembly.loss(output, micro.targets)
                with self.recorder.region("backward", "compute", stage=0, microbatch=index):
                    (loss / divisor).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total / count

    def _infer(self, module: nn.Module, micro: Batch, index: int) -> float:
        region = self.recorder.region("forward", "compute", stage=0, microbatch=index)
        with torch.no_grad(), self.assembly.modes(), region:
            output = module(*micro.inputs, **micro.keywords)
            return float(self.assembly.loss(output, micro.targets))

    def _pipelined(self, own: Batch) -> float | None:
        assembly = self.assembly
        if len(own.inputs) != 1 or own.keywords:
            raise RunError(
                f"{self.source.name}: a pipeline passes one tensor; this model takes "
                f"{len(own.inputs)} inputs and {len(own.keywords)} keywords; use pp=1"
            )
        losses: list[torch.Tensor] = []
        arguments: dict[str, Any] = {"losses": losses, "return_outputs": False}
        if assembly.has_last:
            arguments["target"] = own.targets
        inputs = own.inputs if assembly.has_first else ()
        is_training = self.ranks.shape.mode == "train"
        step = assembly.schedule.step if is_training else assembly.schedule.eval
        with assembly.modes(), self.recorder.region("pipeline", "pipeline"):
            step(*inputs, **arguments)
        return float(torch.stack(losses).mean()) if losses else None

    def _sync(self) -> None:
        tensor_mesh = self.ranks.axis("tp")
        if tensor_mesh is None and not self.assembly.tied and not self.assembly.averages:
            return
        parameters, travels_as = self.assembly.parameters(), self.assembly.numerics.reduce
        if tensor_mesh is not None:
            reduce_partial_gradients(
                list(parameters.values()), mesh=tensor_mesh, recorder=self.recorder,
                travels_as=travels_as,
            )  # fmt: skip
        sum_tied_gradients(
            self.assembly.tied, parameters, recorder=self.recorder, travels_as=travels_as
        )
        for average in self.assembly.averages:
            average_over_data_ranks(
                [parameters[name] for name in average.names], group=average.group,
                num_losses=average.num_losses, axis=average.label, recorder=self.recorder,
                travels_as=travels_as,
            )  # fmt: skip


def rows_of(batch: Batch, index: int, count: int) -> Batch:
    """Return the ``index``-th of ``count`` equal slices of a batch along its samples."""
    if count == 1:
        return batch
    reference = batch.targets if batch.targets is not None else batch.inputs[0]
    total = reference.shape[0]

    def cut(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] != total:
            return value
        return value.tensor_split(count)[index]

    return Batch(
        inputs=tuple(cut(value) for value in batch.inputs),
        keywords={key: cut(value) for key, value in batch.keywords.items()},
        targets=None if batch.targets is None else cut(batch.targets),
    )


def _on_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return Batch(
        inputs=tuple(move(value) for value in batch.inputs),
        keywords={key: move(value) for key, value in batch.keywords.items()},
        targets=move(batch.targets),
    )
