"""What the framework takes beside its kernels: calls, sharded tensors, hooks, the update.

Measured on tensors so small that their kernels take next to nothing.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils.checkpoint import checkpoint

from executor.calibration_kernels import Kernel
from executor.local_shards import LocalShards
from executor.optimizer import ShardOptimizer

BLOCKS = 8
OPERATORS_PER_BLOCK = 6
"""Of a feed-forward block: norm, linear, bias, GELU, linear with its bias and sum, as a graph
counts them [1]."""
KERNELS_PER_BLOCK = 31
"""Of a transformer block. Forward 11: two norms, four linears, attention and its copy, GELU, two
sums. Backward 20: two products and a bias sum per linear, attention, GELU, two norms, two sums of
gradients, a copy and the join of three gradients. Views between them are no kernels and
cost time all the same [1]."""
COLLECTIVES_PER_REDISTRIBUTION = 2
"""A gather, and a reduction on the way back [1]."""
UNIT_ROWS, UNIT_WIDTH = 256, 256
"""Of the blocks that are sharded: they compute about as long as they communicate [1]."""
SMALL_TENSORS, SMALL_ELEMENTS = 64, 64
LARGE_TENSORS, LARGE_ELEMENTS = 4, 1 << 20
_WIDTH = 16
_HEADS = 2
OPTIMIZERS = ("adam", "adamw", "sgd", "momentum")


class Block(nn.Module):
    """A feed-forward block with a shortcut."""

    def __init__(self, width: int = _WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of input and feed-forward layers."""
        y: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return y


class TransformerBlock(nn.Module):
    """A block with the views, splits and transpositions that surround attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(_WIDTH)
        self.join = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.feed_forward = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the block makes of samples x positions x width."""
        samples, length, width = x.shape
        parts = self.join(self.norm(x)).split(width, dim=-1)
        query, key, value = (
            part.view(samples, length, _HEADS, width // _HEADS).transpose(1, 2) for part in parts
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).contiguous().view(samples, length, width)
        y: torch.Tensor = self.feed_forward(x + self.out(mixed))
        return y


class Checkpointed(nn.Module):
    """A block that runs again in the backward pass, as ``executor.recompute`` has it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the block makes."""
        y: torch.Tensor = checkpoint(self.block, x, use_reentrant=False)
        return y


def framework_kernels(mesh: DeviceMesh | None) -> Iterator[Kernel]:
    """Yield what one process measures by its CPU time; all ranks of ``mesh`` take part."""
    shape = (BLOCKS,)
    blocks = nn.Sequential(*(TransformerBlock() for _ in range(BLOCKS)))
    entered = torch.randn(1, 4, _WIDTH)
    yield Kernel("calls", shape, "fp32", _step_of(blocks, entered))
    yield Kernel("forward_calls", shape, "fp32", torch.no_grad()(partial(blocks, entered)))
    checkpointed = nn.Sequential(*(Checkpointed(block) for block in blocks))
    yield Kernel("checkpointed_calls", shape, "fp32", _step_of(checkpointed, entered))
    yield Kernel("plain_calls", shape, "fp32", _step_of(_model(), torch.randn(4, _WIDTH)))
    if mesh is not None:
        yield Kernel("sharded_calls", shape, "fp32", _sharded_step(mesh))
        yield Kernel("redistribute", (1,), "fp32", _redistribution(mesh))
        yield from sharded_units(mesh)
    for name in OPTIMIZERS:
        for count, elements in ((SMALL_TENSORS, SMALL_ELEMENTS), (LARGE_TENSORS, LARGE_ELEMENTS)):
            yield Kernel(f"optimizer:{name}", (count, elements), "fp32",
                         _update(name, count, elements))  # fmt: skip


def sharded_units(mesh: DeviceMesh) -> Iterator[Kernel]:
    """Yield a step of blocks by themselves, then fully sharded: gathers and reductions."""
    entered = torch.randn(UNIT_ROWS, UNIT_WIDTH)
    yield Kernel("plain_units", (BLOCKS,), "fp32", _step_of(_model(UNIT_WIDTH), entered))
    model = _model(UNIT_WIDTH)
    for block in model:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    yield Kernel("sharded_units", (BLOCKS,), "fp32", _step_of(model, entered))


def unit_bytes() -> float:
    """Return the weights of one of these blocks [B]."""
    return float(sum(4 * parameter.numel() for parameter in Block(UNIT_WIDTH).parameters()))


def _model(width: int = _WIDTH) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(width) for _ in range(BLOCKS)))


def _step_of(model: nn.Module, entered: torch.Tensor) -> Callable[[], object]:
    def step() -> None:
        model(entered).sum().backward()
        for parameter in model.parameters():
            parameter.grad = None

    return step


def _sharded_step(mesh: DeviceMesh) -> Callable[[], object]:
    """Return a step of blocks whose batch is split: no communication, but DTensor's dispatch."""
    model = _model()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            spread = distribute_tensor(parameter.detach(), mesh, [Replicate()])
            module.register_parameter(name, nn.Parameter(spread))
    entered = distribute_tensor(torch.randn(4 * mesh.size(), _WIDTH), mesh, [Shard(0)])
    upstream = DTensor.from_local(torch.ones(4, _WIDTH), mesh, [Shard(0)], run_check=False)

    def step() -> None:
        with implicit_replication(), LocalShards(recompute_attention=False, drop_dropout=False):
            model(entered).backward(upstream)
        for parameter in model.parameters():
            parameter.grad = None

    return step


def _redistribution(mesh: DeviceMesh) -> Callable[[], object]:
    """Return the gather of a shard, which is reduced and scattered on the way back."""
    local = torch.ones(4, _WIDTH, requires_grad=True)
    upstream = DTensor.from_local(torch.ones(4 * mesh.size(), _WIDTH), mesh, [Partial()],
                                  run_check=False)  # fmt: skip

    def exchange() -> None:
        shard = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        shard.redistribute(mesh, [Replicate()]).backward(upstream)  # type: ignore[no-untyped-call]

    return exchange


def _update(name: str, count: int, elements: int) -> Callable[[], object]:
    parameters = [nn.Parameter(torch.randn(elements)) for _ in range(count)]
    gradients = [torch.randn(elements) for _ in range(count)]
    optimizer = ShardOptimizer(name, parameters, learning_rate=1e-3)

    def update() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return update


def world_mesh() -> DeviceMesh | None:
    """Return the mesh of all processes; None for a single one."""
    from torch.distributed.device_mesh import init_device_mesh

    size = dist.get_world_size()
    return init_device_mesh("cpu", (size,), mesh_dim_names=("all",)) if size > 1 else None
