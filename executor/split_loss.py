"""The loss of an output that a layout splits: over classes, samples or positions."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.nn import functional
from torch.utils import _pytree as pytree

Loss = Callable[[Any, torch.Tensor | None], torch.Tensor]

_CLASSES = 1
"""Dimension of the classes in the input of a cross-entropy of rows."""
_IGNORED = -100
"""Class number that torch's losses leave out by default."""
_SIGNATURE = inspect.signature(functional.cross_entropy)
_PLAIN = {"weight": None, "size_average": None, "reduce": None, "reduction": "mean",
          "label_smoothing": 0.0}  # fmt: skip
"""Arguments of a cross-entropy that is computed on shards; any other gathers its input."""


def split_loss(loss: Loss, *, placement: Placement, mesh: DeviceMesh) -> Loss:
    """Return the loss for outputs in one placement.

    Over classes, ``loss`` is called on the distributed output, where :func:`split_cross_entropy`
    stands in for torch's. Over samples or positions every rank takes the loss of its own, which
    is what the function returns; gradients are those of the mean over ranks. Nothing is sent.

    Parameters
    ----------
    loss : callable
        ``loss(output, targets)``, a mean over rows.
    placement : Placement
        Of the output.
    mesh : DeviceMesh
        The one-dimensional mesh of the layout's axis.
    """
    if not isinstance(placement, Shard):
        return loss
    dim, size, rank = placement.dim, mesh.size(), mesh.get_local_rank()

    def call(output: Any, targets: torch.Tensor | None) -> torch.Tensor:
        shards = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, DTensor)]
        if any(0 < leaf.dim() - 1 == dim for leaf in shards):
            return loss(output, targets)
        own = pytree.tree_map_only(DTensor, DTensor.to_local, output)
        if targets is None:
            return _with_gradient_of(loss(own, None), 1 / size)
        mine = targets.tensor_split(size, dim)[rank]
        share, mine = _share_of(mine, targets, size=size)
        return _with_gradient_of(loss(own, mine), share, value=share * size)

    return call


def _share_of(
    own: torch.Tensor, targets: torch.Tensor, *, size: int
) -> tuple[float | torch.Tensor, torch.Tensor]:
    """Return a rank's share of the mean, less where its targets do not count, and safe targets."""
    if targets.is_floating_point():
        return 1 / size, own
    counted = (own != _IGNORED).sum()
    share = counted / (targets != _IGNORED).sum()
    return share, torch.where(counted > 0, own, 0)  # a mean of nothing would be no number


def _with_gradient_of(
    loss: torch.Tensor, share: float | torch.Tensor, *, value: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """Return ``value * loss`` whose gradient is that of ``share * loss``."""
    return share * loss + ((value - share) * loss).detach()


def split_cross_entropy(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Return a cross-entropy of logits that ranks hold in shards.

    Three numbers per row travel: maximum, sum of exponentials, target's logit (Shoeybi et al. 2019,
    arXiv:1909.08053, section 3). What is no mean over rows of class numbers is computed on
    gathered logits.
    """
    given = _SIGNATURE.bind(*args, **kwargs).arguments
    logits, targets = given["input"], given["target"]
    is_plain = all(given.get(name, default) == default for name, default in _PLAIN.items())
    if (
        is_plain
        and logits.placements == (Shard(_CLASSES),)
        and logits.dim() == _CLASSES + 1
        and not targets.is_floating_point()
    ):
        ignored = given.get("ignore_index", _SIGNATURE.parameters["ignore_index"].default)
        mesh = logits.device_mesh
        first = mesh.get_local_rank() * (logits.shape[_CLASSES] // mesh.size())
        return _SplitCrossEntropy.apply(
            logits.to_local(), targets, mesh.get_group(), first, ignored
        )  # type: ignore[no-untyped-call]
    whole = logits.redistribute(logits.device_mesh, [Replicate()] * logits.device_mesh.ndim)
    return func(**{**given, "input": whole.to_local()})


class _SplitCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of rows whose classes are dealt out to the ranks of a group [nat]."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup,
        first: int, ignored: int,
    ) -> torch.Tensor:  # fmt: skip
        """Sum the rows' statistics over the group; keep the softmax of the own classes."""
        largest = _summed(logits.float().amax(_CLASSES), "max", group)
        shifted = logits.float() - largest.unsqueeze(_CLASSES)
        own = targets - first
        is_own = (own >= 0) & (own < logits.shape[_CLASSES])
        place = own.clamp(0, logits.shape[_CLASSES] - 1).unsqueeze(_CLASSES)
        at_target = torch.where(is_own, shifted.gather(_CLASSES, place).squeeze(_CLASSES), 0.0)
        at_target = _summed(at_target, "sum", group)
        softmax = shifted.exp_()
        total = _summed(softmax.sum(_CLASSES), "sum", group)
        softmax.div_(total.unsqueeze(_CLASSES))
        counts = targets != ignored
        share = counts / counts.sum()
        ctx.save_for_backward(softmax, place, share, torch.where(is_own, share, 0.0))
        ctx.dtype = logits.dtype
        return (share * (total.log() - at_target)).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        """Return softmax minus one at the target, times the row's share of the mean."""
        softmax, place, share, own_share = ctx.saved_tensors
        gradient = softmax * share.unsqueeze(_CLASSES)
        gradient.scatter_add_(_CLASSES, place, -own_share.unsqueeze(_CLASSES))
        return gradient.mul_(gradients[0]).to(ctx.dtype), None, None, None, None


def _summed(rows: torch.Tensor, operation: str, group: dist.ProcessGroup) -> torch.Tensor:
    """Return an all-reduced copy, by the operators that DTensor's own collectives are made of."""
    operators = torch.ops._c10d_functional
    summed: torch.Tensor = operators.all_reduce(rows, operation, group.group_name)
    waited: torch.Tensor = operators.wait_tensor(summed)
    return waited
