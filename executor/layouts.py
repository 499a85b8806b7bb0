"""Layouts of a plan on one mesh axis: DTensor parameters and activation boundaries.

Parameters are placed by name, activations are redistributed at module boundaries. What lies between
follows by DTensor's own rules: a parameter that lacks the split index gets a partial gradient, an
input that every rank reads whole likewise.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.utils import _pytree as pytree

from executor.errors import RunError
from planner.plan import Boundary, ModuleBoundary, PlannedLayout

_SHARD = re.compile(r"S(\d+)")


def placement_of(text: str) -> Placement:
    """Return torch's placement for ``R``, ``S<dim>`` or ``P``.

    Examples
    --------
    >>> placement_of("S1")
    Shard(dim=1)
    """
    if text == "R":
        return Replicate()
    if text == "P":
        return Partial()
    match = _SHARD.fullmatch(text)
    if match is None:
        raise RunError(f"placement {text!r} in the plan; expected R, P or S<dim>")
    return Shard(int(match.group(1)))


def pattern_of(name: str) -> str:
    """Return a dotted name with its positions replaced, so that fewer layers still match.

    Examples
    --------
    >>> pattern_of("blocks.11.ffn.up.weight")
    'blocks.*.ffn.up.weight'
    """
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def find_by_name(entries: Mapping[str, Any], name: str) -> Any:
    """Return the entry of a name; of its pattern, if the plan's model had fewer such layers.

    A small model may be scaled to more layers than it had; those beyond the plan's last take the
    entry that all of the pattern share. A name within the plan's range is not listed on purpose.

    Raises
    ------
    RunError
        If the layers that the plan lists differ.

    Examples
    --------
    >>> entries = {"blocks.0.up": "S0", "blocks.1.up": "S0"}
    >>> find_by_name(entries, "blocks.3.up"), find_by_name(entries, "blocks.3.down")
    ('S0', None)
    """
    if name in entries:
        return entries[name]
    pattern, position = pattern_of(name), _position(name)
    alike = {key: value for key, value in entries.items() if pattern_of(key) == pattern}
    if position is None or not alike or position <= max(_position(key) or 0 for key in alike):
        return None
    found = list(alike.values())
    if any(value != found[0] for value in found):
        raise RunError(
            f"{name}: the plan has no layout of this name and different ones for {pattern}; "
            "run it without --scale-down"
        )
    return found[0]


def _position(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def apply_layout(
    modules: Iterable[tuple[str, nn.Module]],
    layout: PlannedLayout,
    *,
    mesh: DeviceMesh,
    names_of: Mapping[int, tuple[str, ...]],
) -> None:
    """Turn parameters into DTensors and attach the boundary changes of a layout.

    Parameters
    ----------
    modules : iterable of (str, Module)
        Path and module of everything this rank holds, containers and leaves.
    layout : PlannedLayout
        Placements per parameter name and changes per module path.
    mesh : DeviceMesh
        The one-dimensional mesh of the layout's axis.
    names_of : mapping of int to tuple of str
        Identity of a parameter -> all its names; tied parameters stay one parameter.

    Raises
    ------
    RunError
        If a dimension does not divide by the axis.
    """
    placed: dict[int, nn.Parameter] = {}
    for path, module in modules:
        for key, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in placed:
                names = names_of.get(id(parameter), (f"{path}.{key}".lstrip("."),))
                placed[id(parameter)] = _distributed(parameter, names, layout, mesh)
            module._parameters[key] = placed[id(parameter)]
        boundary = find_by_name(layout.modules, path) if path else layout.modules.get("")
        if boundary is not None:
            _attach(module, boundary, mesh)


def _distributed(
    parameter: nn.Parameter, names: tuple[str, ...], layout: PlannedLayout, mesh: DeviceMesh
) -> nn.Parameter:
    found = (find_by_name(layout.parameters, name) for name in names)
    text = next((entry for entry in found if entry is not None), "R")
    placement = placement_of(text)
    if isinstance(placement, Shard):
        size = parameter.shape[placement.dim]
        if size % mesh.size():
            raise RunError(
                f"{names[0]}: dimension {placement.dim} of {size} does not divide by "
                f"{layout.axis}={mesh.size()}; run with fewer processes or another --scale-down"
            )
    distributed = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    return nn.Parameter(distributed, requires_grad=parameter.requires_grad)


def _attach(module: nn.Module, boundary: ModuleBoundary, mesh: DeviceMesh) -> None:
    if boundary.input is not None:
        module.register_forward_pre_hook(_entry_hook(boundary.input, mesh), with_kwargs=True)
    if boundary.output is not None:
        module.register_forward_hook(_exit_hook(boundary.output, mesh))


def _entry_hook(boundary: Boundary, mesh: DeviceMesh) -> Any:
    def change(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (_redistribute(args[0], boundary, mesh), *args[1:]), kwargs
        for key, value in kwargs.items():
            if isinstance(value, torch.Tensor):
                return args, {**kwargs, key: _redistribute(value, boundary, mesh)}
        return args, kwargs

    return change


def _exit_hook(boundary: Boundary, mesh: DeviceMesh) -> Any:
    def change(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple) and output:
            return (_redistribute(output[0], boundary, mesh), *output[1:])
        return _redistribute(output, boundary, mesh)

    return change


def _redistribute(value: Any, boundary: Boundary, mesh: DeviceMesh) -> Any:
    if not isinstance(value, torch.Tensor) or boundary.want == "-":
        return value
    if not isinstance(value, DTensor):
        value = DTensor.from_local(value, mesh, [Replicate()], run_check=False)
    return value.redistribute(mesh, [placement_of(boundary.want)])


class LayoutBoundary(nn.Module):
    """A model or stage under layouts, with plain tensors outside.

    Parameters
    ----------
    inner : Module
        What runs on DTensors.
    mesh : DeviceMesh
        The one-dimensional mesh of the layout's axis.
    input_placement : str
        ``R``, or ``S0`` where each rank takes its slice of the samples.
    carries_from, carries_to : str
        Placement in which activations come from the stage before, and go to the one after: ``S1``
        where ranks hold their own positions and pass these on alone.
    output_placement : str
        Placement in which the model's output goes to the loss; a distributed tensor unless whole.
    """

    def __init__(
        self, inner: nn.Module, *, mesh: DeviceMesh, input_placement: str,
        carries_from: str = "R", carries_to: str = "R", output_placement: str = "R",
    ) -> None:  # fmt: skip
        super().__init__()
        self.inner = inner
        self._mesh = mesh
        self._placement = placement_of(input_placement)
        self._from = placement_of(carries_from)
        self._to = placement_of(carries_to)
        self._output = placement_of(output_placement)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Wrap the inputs, run, hand out the outputs: whole, or this rank's share."""
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._enter, (args, kwargs))
        return pytree.tree_map_only(DTensor, self._leave, self.inner(*args, **kwargs))

    def _enter(self, value: torch.Tensor) -> torch.Tensor:
        if self._from != Replicate():
            return DTensor.from_local(value, self._mesh, [self._from], run_check=False)
        whole = DTensor.from_local(value, self._mesh, [Replicate()], run_check=False)
        if isinstance(self._placement, Shard) and value.shape[0] % self._mesh.size():
            raise RunError(
                f"microbatch of {value.shape[0]} samples does not divide by "
                f"tp={self._mesh.size()}, over which the plan splits it; use a larger microbatch"
            )
        return whole.redistribute(self._mesh, [self._placement])

    def _leave(self, value: DTensor) -> torch.Tensor:
        if isinstance(self._output, Shard) and self._output.dim < value.dim():
            return value.redistribute(self._mesh, [self._output])
        local: torch.Tensor = value.redistribute(self._mesh, [self._to]).to_local()
        return local
