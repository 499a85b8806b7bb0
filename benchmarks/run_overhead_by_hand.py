"""Training steps as an experienced user of torch writes them: the baseline of run_overhead.py.

Nothing of paraplan is used but the preset's model class, its batches and its loss. Each function
builds one strategy on all ranks and returns a function that trains one step on this rank's samples
and returns its loss, None where the rank does not know it.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

Loss = Callable[[Any, torch.Tensor], torch.Tensor]
TrainStep = Callable[[torch.Tensor, torch.Tensor], float | None]


def data_parallel(
    model: nn.Module, *, loss: Loss, num_microbatches: int, learning_rate: float
) -> TrainStep:
    """DistributedDataParallel, gradients summed in the last microbatch."""
    replicated = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(replicated.parameters(), lr=learning_rate, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        total = 0.0
        pairs = _microbatches(tokens, targets, num_microbatches)
        for index, (inputs, wanted) in enumerate(pairs):
            is_last = index == num_microbatches - 1
            with nullcontext() if is_last else replicated.no_sync():
                value = loss(replicated(inputs), wanted) / num_microbatches
                value.backward()
            total += value.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def fully_sharded(
    model: nn.Module, *, loss: Loss, num_microbatches: int, learning_rate: float
) -> TrainStep:
    """FSDP2: embedding, every block and head gathered one at a time."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (model.embedding, *model.blocks, model.head):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        total = 0.0
        for inputs, wanted in _microbatches(tokens, targets, num_microbatches):
            value = loss(model(inputs), wanted) / num_microbatches
            value.backward()
            total += value.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def tensor_parallel(
    model: nn.Module,
    *,
    loss: Loss,
    num_microbatches: int,
    learning_rate: float,
    sequence_parallel: bool,
) -> TrainStep:
    """Megatron's split of blocks by parallelize_module, logits and loss split over the vocabulary.

    The embedding is split over its columns, as the plan has it: cheaper than Megatron's rows.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if sequence_parallel:  # each rank looks up its own positions
        own = PrepareModuleInput(
            input_layouts=Replicate(), desired_input_layouts=Shard(0), use_local_output=True
        )
        parallelize_module(model.embedding.position, mesh, own)
    parallelize_module(model, mesh, _outer_plan(sequence_parallel=sequence_parallel))
    for block in model.blocks:
        parallelize_module(block, mesh, _block_plan(sequence_parallel=sequence_parallel))
    parameters = list(model.parameters())
    split = [p for p in parameters if isinstance(p, DTensor)]
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    groups = [{"params": split}, {"params": whole}]  # the fused kernel takes one kind at a time
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float:
        total = 0.0
        for inputs, wanted in _microbatches(tokens, targets, num_microbatches):
            with loss_parallel():
                value = loss(model(inputs), wanted) / num_microbatches
                value.backward()
            total += value.to_local().item()
        if sequence_parallel:
            _sum_partial_gradients(parameters, mesh)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def _outer_plan(*, sequence_parallel: bool) -> dict[str, Any]:
    between = Shard(1) if sequence_parallel else Replicate()
    logits = ColwiseParallel(
        input_layouts=between, output_layouts=Shard(-1), use_local_output=False
    )
    plan: dict[str, Any] = {
        "embedding.token": ColwiseParallel(output_layouts=between),
        "head.projection": logits,
    }
    if sequence_parallel:
        plan["embedding.position"] = SequenceParallel(sequence_dim=0, use_local_output=True)
        plan["head.norm"] = SequenceParallel(use_local_output=True)
    return plan


def _block_plan(*, sequence_parallel: bool) -> dict[str, Any]:
    between = Shard(1) if sequence_parallel else Replicate()
    whole = PrepareModuleInput(input_layouts=between, desired_input_layouts=Replicate())
    plan: dict[str, Any] = {
        "attention": whole,
        "attention.query": ColwiseParallel(),
        "attention.key": ColwiseParallel(),
        "attention.value": ColwiseParallel(),
        "attention.output": RowwiseParallel(output_layouts=between),
        "ffn": whole,
        "ffn.up": ColwiseParallel(),
        "ffn.down": RowwiseParallel(output_layouts=between),
    }
    if sequence_parallel:
        plan["attention_norm"] = SequenceParallel(use_local_output=True)
        plan["ffn_norm"] = SequenceParallel(use_local_output=True)
    return plan


def _sum_partial_gradients(parameters: Sequence[nn.Parameter], mesh: DeviceMesh) -> None:
    """Sum the norms' gradients in one message; the optimizer would do so one by one."""
    partial = [
        p for p in parameters if isinstance(p.grad, DTensor) and p.grad.placements[0].is_partial()
    ]
    flat = torch.cat([p.grad.to_local().flatten() for p in partial])
    dist.all_reduce(flat, group=mesh.get_group())
    for parameter, part in zip(partial, flat.split([p.numel() for p in partial]), strict=True):
        parameter.grad = DTensor.from_local(
            part.view(parameter.shape), mesh, [Replicate()], run_check=False
        )


class FirstStage(nn.Module):
    """Embedding and the first half of the blocks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.embedding = model.embedding
        self.blocks = model.blocks[: len(model.blocks) // 2]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the hidden values that the next stage gets."""
        hidden: torch.Tensor = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


class LastStage(nn.Module):
    """The other blocks and the head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.blocks = model.blocks[len(model.blocks) // 2 :]
        self.head = model.head

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(hidden)
        return logits


def pipeline(
    model: nn.Module, *, loss: Loss, num_microbatches: int, learning_rate: float
) -> TrainStep:
    """Schedule1F1B over two stages."""
    is_first = dist.get_rank() == 0
    module = FirstStage(model) if is_first else LastStage(model)
    stage = PipelineStage(module, dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    schedule = Schedule1F1B(stage, num_microbatches, loss_fn=loss)
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> float | None:
        losses: list[torch.Tensor] = []
        if is_first:
            schedule.step(tokens, return_outputs=False)
        else:
            schedule.step(target=targets, losses=losses, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).mean().item() if losses else None

    return step


def _microbatches(
    tokens: torch.Tensor, targets: torch.Tensor, count: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(tokens.chunk(count), targets.chunk(count), strict=True))
