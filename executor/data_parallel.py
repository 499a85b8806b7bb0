"""Data parallelism: DDP where only samples are split, else fully sharded by FSDP2."""

import time
import warnings
from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from executor.recording import Recorder
from planner.strategy import Sharding


class SummedReplica(DistributedDataParallel):
    """DDP that sums gradients: the loss is to be divided by the number of replicas.

    Dividing gradients is a pass over all of them, some 1 % of a small model's step.
    """


def replicate(
    module: nn.Module, *, group: dist.ProcessGroup, axis: str, recorder: Recorder,
    travels_as: torch.dtype = torch.float32, leaving: Collection[nn.Module] = (),
) -> DistributedDataParallel:  # fmt: skip
    """Wrap a model in DDP whose bucket all-reduces are recorded, and sent in ``travels_as``.

    The own parameters of the modules ``leaving`` are not averaged; without such the replicas are a
    :class:`SummedReplica`.
    Gradients are views of the buckets: as copies they would take their size a second time.
    """
    left = [
        f"{path}.{key}".lstrip(".")
        for path, part in module.named_modules()
        if part in leaving
        for key in part._parameters
    ]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(module, left)
    with warnings.catch_warnings():
        # torch 2.13 renames the option; buffers are equal by seed, the old name keeps them so
        warnings.simplefilter("ignore", FutureWarning)
        kind = DistributedDataParallel if left else SummedReplica
        replicated = kind(
            module, process_group=group, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    divisor = group.size() if left else 1
    hook = _recorded_all_reduce(group, axis, recorder, travels_as, divisor=divisor)
    replicated.register_comm_hook(None, hook)
    return replicated


def _recorded_all_reduce(
    group: dist.ProcessGroup, axis: str, recorder: Recorder, travels_as: torch.dtype, *,
    divisor: int,
) -> Any:  # fmt: skip
    def hook(
        state: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]
    ) -> torch.futures.Future[torch.Tensor]:
        start = time.monotonic()
        held_as = bucket.buffer().dtype
        whole = bucket.buffer() if divisor == 1 else bucket.buffer().div_(divisor)
        flat = whole.to(travels_as)
        num_bytes = flat.numel() * flat.element_size()
        is_last = bucket.is_last()
        work = dist.all_reduce(flat, group=group, async_op=True)

        def finish(done: torch.futures.Future[Any]) -> torch.Tensor:
            end = time.monotonic()
            if recorder.is_on:
                recorder.add("all_reduce", axis=axis, num_bytes=num_bytes, start_s=start,
                             end_s=end, blocked_from_s=start if is_last else end)  # fmt: skip
            reduced: torch.Tensor = done.value()[0]
            return reduced.to(held_as)

        future: torch.futures.Future[torch.Tensor] = work.get_future().then(finish)
        return future

    return hook


def shard_parameters(
    module: nn.Module, blocks: Iterable[nn.Module], *, mesh: DeviceMesh, sharding: Sharding,
    policy: MixedPrecisionPolicy, leaving: Collection[nn.Parameter] = (),
) -> FSDPModule:  # fmt: skip
    """Shard parameters, gradients and optimizer state over a mesh axis by FSDP2.

    ``parameters`` frees the gathered weights after each forward; ``optimizer`` and ``gradients``
    keep them until the backward pass is through (see :func:`prepare_microbatch`). The parameters
    ``leaving`` stay as they are.
    """
    frees, left = sharding == "parameters", set(leaving)
    for block in blocks:
        fully_shard(
            block, mesh=mesh, reshard_after_forward=frees, mp_policy=policy, ignored_params=left
        )
    return fully_shard(
        module, mesh=mesh, reshard_after_forward=frees, mp_policy=policy, ignored_params=left
    )


def prepare_microbatch(module: nn.Module, *, sharding: Sharding, is_last: bool) -> None:
    """Set what FSDP keeps after this microbatch's backward pass.

    ``optimizer`` reduces gradients once per step (whole gradients accumulate), ``gradients`` after
    every microbatch; both gather weights once per step. ``parameters`` does everything each time.
    Copies of the shards are summed once per step.
    """
    if not isinstance(module, FSDPModule):
        return
    if sharding != "parameters":
        module.set_reshard_after_backward(is_last)
        module.set_requires_gradient_sync(is_last or sharding == "gradients")
    module.set_requires_all_reduce(is_last)  # the call above sets this, too


def sharding_blocks(candidates: Iterable[nn.Module], *, tied: frozenset[int]) -> list[nn.Module]:
    """Return the modules to gather one at a time: those with parameters, none of them tied."""
    found = []
    for module in candidates:
        parameters = list(module.parameters())
        if parameters and not any(id(parameter) in tied for parameter in parameters):
            found.append(module)
    return found
