"""The precision of a run: what products compute in, how weights rest, what gradients travel as."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from executor.settings import RunPrecision
from hardware_profiles import load_software
from hardware_profiles.software import SoftwareProfile

_READING: dict[tuple[Any, torch.dtype], type[nn.Module]] = {}
"""Kinds of modules by the kind they stand for and the precision they are read in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """What a run computes, keeps and sends in. Weights and optimizer are fp32 while training."""

    compute: torch.dtype = torch.float32
    """Of products, of activations and of the weights that kernels read."""
    reduce: torch.dtype = torch.float32
    """Of gradients on the way between ranks."""
    autocasts: bool = False
    """Norms, softmax and what they hand on stay fp32, as torch's autocast has it."""

    @property
    def is_mixed(self) -> bool:
        """Whether kernels compute in less than weights rest in."""
        return self.compute != torch.float32

    def autocast_on(self, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
        """Return what to enter for a forward pass; casts are not cached, which would keep them."""
        if not self.autocasts:
            return nullcontext
        return partial(torch.autocast, device.type, dtype=self.compute, cache_enabled=False)

    def entering(self, value: Any) -> Any:
        """Return what enters a model in the precision of its first kernels."""
        return value if self.autocasts else _cast_all(value, self.compute)

    @property
    def sharding_policy(self) -> MixedPrecisionPolicy:
        """FSDP's part: it gathers weights in ``compute`` and reduces gradients in ``reduce``."""
        if not self.is_mixed:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(
            param_dtype=self.compute, reduce_dtype=self.reduce,
            cast_forward_inputs=not self.autocasts,
        )  # fmt: skip


def numerics_of(precision: RunPrecision, *, software: str) -> Numerics:
    """Return what a precision means under the software that a plan assumes.

    Parameters
    ----------
    precision : str
        ``fp32``, ``tf32`` or ``bf16``.
    software : str
        The plan's profile: whether it autocasts, and in what it reduces gradients.
    """
    if precision != "bf16":
        return Numerics()
    profile = load_software(software)
    low = profile.gradient_precision == "compute"
    return Numerics(
        compute=torch.bfloat16, reduce=torch.bfloat16 if low else torch.float32,
        autocasts=profile.autocasts,
    )  # fmt: skip


def allow_tf32(precision: RunPrecision, *, device: torch.device) -> None:
    """Let products of fp32 run in tf32 where that is wanted and there are such units."""
    if precision == "tf32" and device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def precision_notes(precision: RunPrecision, *, planned: str, software: str) -> tuple[str, ...]:
    """Return in what a run's precision differs from the plan's."""
    if precision != planned:
        return (f"computed in {precision} in place of {planned}",)
    profile = load_software(software) if precision == "bf16" else None
    if profile is None or not _keeps_low(profile):
        return ()
    kept = "no fp32 copy" if profile.pure_low_precision else "bf16 weights beside the fp32 ones"
    return (f"weights rest in fp32 and are cast where they are used; {software} keeps {kept}",)


def _keeps_low(profile: SoftwareProfile) -> bool:
    return profile.master_weights or profile.pure_low_precision


def lower_weights(
    modules: Iterable[nn.Module], numerics: Numerics, *, is_training: bool, is_sharded: bool
) -> None:
    """Make the kernels of some modules read their weights in the run's precision.

    For inference the weights themselves are cast. In training they stay fp32 and are cast at each
    use, so that gradients add up in fp32; where they are sharded, FSDP casts them as it gathers.
    Batch norms read fp32: torch has no kernel for 16-bit weights beside fp32 statistics.

    Parameters
    ----------
    modules : iterable of Module
        Containers and leaves, before any wrapper.
    numerics : Numerics
        Of the run.
    is_training, is_sharded : bool
        Whether there is a backward pass, and whether FSDP holds the weights.
    """
    if not numerics.is_mixed:
        return
    for module in modules:
        if not module._parameters:
            continue
        if isinstance(module, _BatchNorm):
            _read_as(module, torch.float32)
        elif not is_training:
            _cast_in_place(module, numerics.compute)
        elif not is_sharded and not numerics.autocasts:
            _read_as(module, numerics.compute)


def cast_at_edges(module: nn.Module, numerics: Numerics, *, is_first: bool, is_last: bool) -> None:
    """Cast what enters a model to the run's precision, and what leaves it for the loss to fp32."""
    if not numerics.is_mixed:
        return

    def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return numerics.entering((args, kwargs))

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        return _cast_all(output, torch.float32)

    if is_first:
        module.register_forward_pre_hook(enter, with_kwargs=True)
    if is_last:
        module.register_forward_hook(leave)


def _cast_all(value: Any, dtype: torch.dtype) -> Any:
    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return pytree.tree_map_only(torch.Tensor, cast, value)


def _cast_in_place(module: nn.Module, dtype: torch.dtype) -> None:
    for parameter in module._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _read_as(module: Any, dtype: torch.dtype) -> None:
    key = (type(module), dtype)
    if key not in _READING:
        _READING[key] = _reading(type(module), dtype)
    module.__class__ = _READING[key]


def _reading(kind: Any, dtype: torch.dtype) -> type[nn.Module]:
    """Return a kind of module that hands out its parameters in another dtype.

    The parameters themselves, their names and the optimizer's hold on them are as before; each
    read is a cast that autograd sees, in recomputation too.
    """

    def read(self: nn.Module, name: str) -> Any:
        value = kind.__getattr__(self, name)
        is_weight = isinstance(value, nn.Parameter) and value.is_floating_point()
        return value.to(dtype) if is_weight else value

    members: dict[str, Any] = {"__getattr__": read, "__module__": kind.__module__}
    if issubclass(kind, nn.RNNBase):  # holds its weights in a list of their own

        def listed(self: nn.RNNBase) -> list[Any]:
            return [getattr(self, name) for name in self._flat_weights_names]

        members["_flat_weights"] = property(listed, lambda self, weights: None)
    return type(kind.__name__, (kind,), members)
