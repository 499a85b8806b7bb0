"""Gradient sums that no library does: partial gradients, data-parallel groups, tied weights."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from executor.recording import Recorder

BUCKET_BYTES = 25_000_000
"""Bytes per all-reduce, as DDP's default of 25 MB [B]."""


def reduce_partial_gradients(
    parameters: Sequence[nn.Parameter], *, mesh: DeviceMesh, recorder: Recorder,
    travels_as: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """Sum the partial gradients of one mesh axis, one flat all-reduce per bucket.

    DTensor leaves them partial, and an optimizer would reduce them one by one; accumulation over
    microbatches before this call needs no communication.
    """
    sums: list[nn.Parameter] = []
    means: list[nn.Parameter] = []
    for parameter in parameters:
        grad = parameter.grad
        if not isinstance(grad, DTensor) or not isinstance(parameter, DTensor):
            continue
        placement, wanted = grad.placements[-1], parameter.placements[-1]
        if placement == wanted:
            continue
        if isinstance(placement, Partial) and wanted == Replicate() and len(grad.placements) == 1:
            (sums if placement.reduce_op == "sum" else means).append(parameter)
        else:
            parameter.grad = grad.redistribute(grad.device_mesh, parameter.placements)
    for chosen, scale in ((sums, 1.0), (means, 1.0 / mesh.size())):
        locals_ = [p.grad.to_local() for p in chosen if isinstance(p.grad, DTensor)]
        summed = _all_reduce_flat(
            locals_, mesh.get_group(), scale=scale, recorder=recorder, axis="tp",
            travels_as=travels_as,
        )  # fmt: skip
        for parameter, local in zip(chosen, summed, strict=True):
            parameter.grad = DTensor.from_local(local, mesh, [Replicate()], run_check=False)


def average_over_data_ranks(
    parameters: Sequence[nn.Parameter],
    *,
    group: dist.ProcessGroup | None,
    num_losses: int,
    axis: str,
    recorder: Recorder,
    travels_as: torch.dtype = torch.float32,
) -> None:
    """Average gradients over data-parallel ranks, which hold equal shards of equal parameters.

    Parameters
    ----------
    parameters : sequence of Parameter
        Weights whose gradients are whole on this rank.
    group : ProcessGroup or None
        The ranks that hold the same; None scales alone.
    num_losses : int
        Mean losses whose gradients the sum holds [1].
    axis : str
        The group's mesh axes, for the record.
    recorder : Recorder
        Told of each all-reduce.
    travels_as : dtype
        Of the gradients on the way.
    """
    scale = 1.0 / num_losses
    held = [p for p in parameters if p.grad is not None]
    locals_ = [local_of(p.grad) for p in held if p.grad is not None]
    if group is None:
        for local in locals_:
            local.mul_(scale)
        return
    averaged = _all_reduce_flat(
        locals_, group, scale=scale, recorder=recorder, axis=axis, travels_as=travels_as
    )
    for old, new in zip(locals_, averaged, strict=True):
        old.copy_(new)


def sum_tied_gradients(
    tied: Mapping[str, dist.ProcessGroup],
    parameters: Mapping[str, nn.Parameter],
    *,
    recorder: Recorder,
    travels_as: torch.dtype = torch.float32,
) -> None:
    """Sum the gradients of parameters that several pipeline stages hold (embedding and head)."""
    for name, group in tied.items():
        parameter = parameters[name]
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        parameter.grad = grad
        held = local_of(grad)
        sent = held.to(travels_as)
        with recorder.collective("all_reduce", axis="pp", tensor=sent):
            dist.all_reduce(sent, group=group)
        if sent is not held:
            held.copy_(sent)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's shard of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _all_reduce_flat(
    tensors: list[torch.Tensor],
    group: dist.ProcessGroup,
    *,
    scale: float,
    recorder: Recorder,
    axis: str,
    travels_as: torch.dtype,
) -> Iterator[torch.Tensor]:
    """Yield the summed tensors in order; no more than one bucket of copies is held here."""
    for bucket in gradient_buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).to(travels_as)
        with recorder.collective("all_reduce", axis=axis, tensor=flat):
            dist.all_reduce(flat, group=group)
        if scale != 1.0:
            flat.mul_(scale)
        parts = torch.split(flat.to(bucket[0].dtype), [tensor.numel() for tensor in bucket])
        yield from (p.view(t.shape) for p, t in zip(parts, bucket, strict=True))


def gradient_buckets(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Cut a list into runs of one dtype of at most :data:`BUCKET_BYTES`."""
    buckets: list[list[torch.Tensor]] = []
    held = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        fits = buckets and buckets[-1][0].dtype == tensor.dtype and held + num_bytes <= BUCKET_BYTES
        if not fits:
            buckets.append([])
            held = 0
        buckets[-1].append(tensor)
        held += num_bytes
    return buckets
