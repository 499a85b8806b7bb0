"""Operators that run on each rank's own shard, where DTensor has no rule or a slow one.

A call whose tensors are split along independent rows (samples of a convolution, heads of an
attention) needs no communication: every rank runs the plain kernel on its shard. A parameter read
whole by ranks with different samples then gets a partial gradient, which the type of its local view
says to autograd.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from executor.ring_attention import Ring
from executor.split_loss import split_cross_entropy

ROW_WISE = frozenset({
    "conv1d", "conv2d", "conv3d", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "batch_norm", "local_response_norm", "boolean_dispatch",
    "_max_pool2d", "_max_pool1d",
})  # fmt: skip
"""Functions that treat each sample alone; their first tensor holds the samples."""
WHOLE = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
"""Functions that run whole on every rank: recurrent layers, which DTensor has no rule for."""
_ATTENTION = "scaled_dot_product_attention"
_CROSS_ENTROPY = "cross_entropy"
_DROPOUT = 4
"""Position of an attention's dropout, after query, key, value and mask."""
_HEADS_DIM = 1


class LocalShards(TorchFunctionMode):
    """Run attention, convolutions, pooling and cross-entropy of DTensors on local shards.

    Parameters
    ----------
    recompute_attention : bool
        Compute each attention core again in the backward pass (selective recomputation).
    drop_dropout : bool
        Make dropout the identity, so that runs with different splits are comparable.
    ring : Ring, optional
        Ranks that hold other positions of the same samples.

    Attributes
    ----------
    has_dropped : bool
        Whether dropout was made the identity so far, in any pass of this mode.
    """

    def __init__(
        self, *, recompute_attention: bool, drop_dropout: bool, ring: Ring | None = None
    ) -> None:
        super().__init__()
        self._ring = ring
        self._recompute_attention = recompute_attention
        self._drop_dropout = drop_dropout
        self.has_dropped = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == _CROSS_ENTROPY and isinstance(args[0] if args else None, DTensor):
            return split_cross_entropy(func, args, kwargs)
        if name == _ATTENTION:
            return self._attention(func, args, kwargs)
        if self._drop_dropout and name.endswith("dropout") and args:
            self.has_dropped |= _drops(args, kwargs)
            return args[0]
        if name in ROW_WISE and any(isinstance(value, DTensor) for value in args):
            return _row_wise(func, args, kwargs)
        if name in WHOLE:
            return _whole_call(func, args, kwargs)
        return func(*args, **kwargs)

    def _attention(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if self._drop_dropout:
            before, rate, rest = (
                args[:_DROPOUT],
                args[_DROPOUT : _DROPOUT + 1],
                args[_DROPOUT + 1 :],
            )
            self.has_dropped |= (rate[0] if rate else kwargs.get("dropout_p", 0.0)) != 0
            args = (*before, 0.0, *rest) if rate else args
            kwargs = kwargs if rate else {**kwargs, "dropout_p": 0.0}
        query, key, value = args[:3]
        if not isinstance(query, DTensor):
            return self._core(func, args, kwargs)
        placements = _common_placements(query, key, value)
        mesh = query.device_mesh
        local = tuple(
            part.redistribute(mesh, placements).to_local() if isinstance(part, DTensor) else part
            for part in (query, key, value)
        )
        rest = tuple(_whole(part) for part in args[3:])
        kwargs = {name: _whole(part) for name, part in kwargs.items()}
        out = self._core(func, (*local, *rest), kwargs)
        return DTensor.from_local(out, mesh, placements, run_check=False)

    def _core(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if self._ring is not None:  # which keeps nothing that grows with the square of positions
            return self._ring.attention(*args, **kwargs)
        if self._recompute_attention and torch.is_grad_enabled():
            return checkpoint(func, *args, use_reentrant=False, **kwargs)
        return func(*args, **kwargs)


def _drops(args: Any, kwargs: dict[str, Any]) -> bool:
    """Return whether a call ``dropout(input, p, training)`` would change its input."""
    rate = kwargs.get("p", args[1] if len(args) > 1 else None)
    is_training = kwargs.get("training", args[2] if len(args) > 2 else True)  # noqa: PLR2004
    return rate != 0 and bool(is_training)


def _common_placements(*parts: Any) -> list[Placement]:
    """Return per mesh axis the split of samples or heads that all parts can share, else whole."""
    first = parts[0]
    found: list[Placement] = []
    for axis, placement in enumerate(first.placements):
        size = first.device_mesh.size(axis)
        is_shared = (
            isinstance(placement, Shard)
            and placement.dim <= _HEADS_DIM
            and all(part.shape[placement.dim] % size == 0 for part in parts)
        )
        found.append(placement if is_shared else Replicate())
    return found


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _whole_call(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call on gathered tensors and wrap the results as replicated."""
    distributed = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, DTensor)]
    if not distributed:
        return func(*args, **kwargs)
    mesh = distributed[0].device_mesh
    everywhere = [Replicate()] * mesh.ndim

    def gather(value: DTensor) -> torch.Tensor:
        local: torch.Tensor = value.redistribute(mesh, everywhere).to_local()
        return local

    args, kwargs = pytree.tree_map_only(DTensor, gather, (args, kwargs))
    return pytree.tree_map_only(
        torch.Tensor,
        lambda value: DTensor.from_local(value, mesh, everywhere, run_check=False),
        func(*args, **kwargs),
    )


def _row_wise(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    rows = args[0]
    mesh = rows.device_mesh
    placements: list[Placement] = [
        placement if placement == Shard(0) else Replicate() for placement in rows.placements
    ]
    of_weights: list[Placement] = [
        Partial() if placement == Shard(0) else Replicate() for placement in placements
    ]

    def local(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        if any(placement != Replicate() for placement in value.placements):
            value = value.redistribute(mesh, [Replicate()] * mesh.ndim)
        return value.to_local(grad_placements=of_weights)  # partial: summed once per step

    own = rows.redistribute(mesh, placements).to_local()
    out = func(own, *map(local, args[1:]), **{name: local(part) for name, part in kwargs.items()})
    return DTensor.from_local(out, mesh, placements, run_check=False)
