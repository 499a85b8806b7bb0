"""Experts spread over ranks: tokens travel to the rank of their expert and back.

No token is dropped and no expert has a capacity, as in the model on one device: each rank sends as
many rows to each expert as its router chose (Lepikhin et al. 2020, arXiv:2006.16668, section 3.3,
without the capacity).
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from executor.errors import RunError
from planner.strategy import Sharding

_STACKED_DIMS = 3
"""Dimensions of a weight of all experts: expert, out, in."""
_FORWARD_ARGUMENTS = 3
"""Hidden states, chosen experts, their weights."""


def expert_modules(
    modules: Iterable[tuple[str, nn.Module]],
) -> tuple[tuple[str, nn.Module], ...]:
    """Return path and module of the layers whose parameters stack all experts.

    As transformers builds them: ``num_experts``, parameters with the experts first, and a forward
    pass of hidden states, chosen experts and their weights.
    """
    return tuple((path, module) for path, module in modules if _stacks_experts(module))


def _stacks_experts(module: nn.Module) -> bool:
    count = getattr(module, "num_experts", None)
    own = [p for p in module._parameters.values() if p is not None]
    if not isinstance(count, int) or not any(p.dim() == _STACKED_DIMS for p in own):
        return False
    arguments = inspect.signature(type(module).forward).parameters
    return all(p.shape[0] == count for p in own) and len(arguments) == 1 + _FORWARD_ARGUMENTS


def check_experts(
    modules: Iterable[tuple[str, nn.Module]], *, size: int
) -> tuple[tuple[str, nn.Module], ...]:
    """Return the layers whose experts can be spread over ``size`` ranks.

    Raises
    ------
    RunError
        If no layer stacks its experts, or their number does not divide.
    """
    found = expert_modules(modules)
    if not found:
        raise RunError(
            f"ep={size}: no layer stacks its experts in parameters [experts, ...] and takes hidden "
            "states, chosen experts and weights, as transformers' layers do; plan with ep=1"
        )
    for path, layer in found:
        if layer.num_experts % size:  # type: ignore[operator]
            raise RunError(
                f"{path}: {layer.num_experts} experts do not divide by ep={size}; plan or run "
                "with a divisor"
            )
    return found


def spread_experts(
    modules: Iterable[tuple[str, nn.Module]], *, mesh: DeviceMesh
) -> tuple[nn.Module, ...]:
    """Keep this rank's experts of each layer, and make tokens travel; return the layers.

    Parameters
    ----------
    modules : iterable of (str, Module)
        Path and module of everything this rank holds.
    mesh : DeviceMesh
        The ranks among which experts are spread, in order.

    Raises
    ------
    RunError
        As :func:`check_experts`.
    """
    size = mesh.size()
    found = check_experts(modules, size=size)
    for path, layer in found:
        experts = int(layer.num_experts)  # type: ignore[arg-type]
        for key, parameter in list(layer._parameters.items()):
            if parameter is not None:
                own = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
                layer._parameters[key] = nn.Parameter(own, requires_grad=parameter.requires_grad)
        layer.num_experts = experts // size  # type: ignore[assignment]
        layer.forward = _Travelling(path=path, layer=layer, inner=layer.forward, mesh=mesh)
    return tuple(layer for _, layer in found)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Travelling:
    """The forward pass of a layer of which each rank holds some experts."""

    path: str
    layer: nn.Module
    inner: Callable[..., torch.Tensor]
    """The layer's own forward pass, on its own experts."""
    mesh: DeviceMesh

    def __call__(
        self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Return what the chosen experts of every token say, weighted.

        Parameters
        ----------
        hidden : Tensor
            This rank's tokens, ``[..., width]``.
        chosen, weights : Tensor
            Experts of each token among all, and their weights, ``[tokens, chosen]``.
        """
        if weights.shape != chosen.shape:
            raise RunError(
                f"{self.path}: weights {tuple(weights.shape)} for chosen experts "
                f"{tuple(chosen.shape)}; expected one weight per choice; plan with ep=1"
            )
        size, local = self.mesh.size(), int(self.layer.num_experts)  # type: ignore[arg-type]
        per_token = chosen.shape[-1]
        order = torch.argsort(chosen.flatten(), stable=True)
        sent = torch.bincount(chosen.flatten(), minlength=size * local).view(size, local)
        received = counts_from_peers(sent, group=self.mesh.get_group())
        to_each, from_each = sent.sum(1).tolist(), received.sum(1).tolist()
        rows = hidden.flatten(0, -2)[order // per_token]
        arrived = _travel(rows, to_each, from_each, self.mesh.get_group())
        owners = torch.arange(local, device=chosen.device).repeat(size)
        done = self._own_experts(arrived, owners.repeat_interleave(received.flatten()))
        back = _travel(done, from_each, to_each, self.mesh.get_group())
        in_order = back[torch.argsort(order)].view(-1, per_token, hidden.shape[-1])
        summed: torch.Tensor = (in_order * weights.unsqueeze(-1)).sum(1)
        return summed.to(hidden.dtype).view(hidden.shape)

    def _own_experts(self, rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Run rows through this rank's experts; where none came, a row of zeros keeps gradients."""
        missing = int(rows.shape[0] == 0)
        if missing:
            rows = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
            experts = experts.new_zeros(1)
        with _plain_parameters(self.layer):
            done = self.inner(rows, experts.unsqueeze(-1), rows.new_ones(rows.shape[0], 1))
        return done[missing:]


@contextmanager
def _plain_parameters(layer: nn.Module) -> Iterator[None]:
    """Put this rank's part in the place of distributed parameters."""
    held = dict(layer._parameters)
    read = {key: getattr(layer, key) for key in held}  # in the precision of the run
    plain: dict[str, Any] = {
        key: value.to_local() if isinstance(value, DTensor) else value
        for key, value in read.items()
    }
    layer._parameters.update(plain)
    try:
        yield
    finally:
        layer._parameters.update(held)


def shard_experts(
    layers: Iterable[nn.Module],
    *,
    copies: DeviceMesh | None,
    sharding: Sharding,
    num_losses: int,
    policy: MixedPrecisionPolicy,
) -> set[nn.Parameter]:
    """Shard each layer's experts over the ranks that hold the same; return what stays whole.

    Parameters
    ----------
    layers : iterable of Module
        Layers whose experts are spread.
    copies : DeviceMesh or None
        The ranks that hold the same experts; None where there is one copy.
    sharding : str
        As in :func:`executor.data_parallel.shard_parameters`.
    num_losses : int
        Data ranks: an expert's gradient holds the tokens of all that send some [1].
    policy : MixedPrecisionPolicy
        As for all other weights.
    """
    whole: set[nn.Parameter] = set()
    for layer in layers:
        if copies is None:
            whole.update(layer.parameters(recurse=False))
            continue
        sharded = fully_shard(
            layer, mesh=copies, reshard_after_forward=sharding == "parameters",
            shard_placement_fn=partial(_sharded_dim, size=copies.size()), mp_policy=policy,
        )  # fmt: skip
        sharded.set_gradient_divide_factor(num_losses)
        sharded.set_force_sum_reduction_for_comms(enable=True)  # gloo has no scaled sum
    return whole


def _sharded_dim(parameter: nn.Parameter, *, size: int) -> Shard:
    """Return a dimension that divides: experts, else the rows of each."""
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    is_by_rows = own.shape[0] % size != 0 and own.shape[1] % size == 0
    return Shard(1 if is_by_rows else 0)


def counts_from_peers(sent: torch.Tensor, *, group: dist.ProcessGroup) -> torch.Tensor:
    """Tell each rank how many rows come for each of its experts.

    Parameters
    ----------
    sent : Tensor
        Rows per rank and its experts, ``[ranks, experts of one]`` [1].
    group : ProcessGroup
        The ranks.

    Returns
    -------
    Tensor
        Rows that arrive, per rank they come from and own expert [1].
    """
    even = [1] * sent.shape[0]
    return _exchanged(sent, even, even, group)


def _travel(
    rows: torch.Tensor, to_each: list[int], from_each: list[int], group: dist.ProcessGroup
) -> torch.Tensor:
    travelled: torch.Tensor = _Travel.apply(rows, to_each, from_each, group)  # type: ignore[no-untyped-call]
    return travelled


class _Travel(torch.autograd.Function):
    """Rows sorted by rank go there; their gradients come back."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        to_each: list[int],
        from_each: list[int],
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        ctx.back = (from_each, to_each, group)
        return _exchanged(rows, to_each, from_each, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        to_each, from_each, group = ctx.back
        return _exchanged(gradients[0], to_each, from_each, group), None, None, None


def _exchanged(
    rows: torch.Tensor, to_each: list[int], from_each: list[int], group: dist.ProcessGroup
) -> torch.Tensor:
    operators = torch.ops._c10d_functional
    moved = operators.all_to_all_single(rows.contiguous(), from_each, to_each, group.group_name)
    arrived: torch.Tensor = operators.wait_tensor(moved)
    return arrived
