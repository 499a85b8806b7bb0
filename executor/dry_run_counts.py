"""Count collectives by mesh axis and kind: the common language of torch's calls and the model's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from executor.errors import RunError

Key = tuple[str, str]
"""Mesh axis and kind of collective."""

_KIND_OF_OPERATOR = {
    "all_reduce": "all_reduce", "all_reduce_": "all_reduce", "all_reduce_coalesced": "all_reduce",
    "allreduce_": "all_reduce", "allreduce_coalesced_": "all_reduce",
    "all_gather_into_tensor": "all_gather", "all_gather_into_tensor_out": "all_gather",
    "all_gather_into_tensor_coalesced": "all_gather", "allgather_": "all_gather",
    "_allgather_base_": "all_gather", "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter", "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter", "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "all_to_all_single": "all_to_all", "alltoall_": "all_to_all", "alltoall_base_": "all_to_all",
    "broadcast": "broadcast", "broadcast_": "broadcast",
    "send": "send", "recv_": "recv", "recv_any_source_": "recv",
    "gather_": "gather", "scatter_": "scatter", "reduce_": "reduce",
}  # fmt: skip
_SILENT = frozenset({"wait_tensor", "_wrap_tensor_autograd", "barrier", "monitored_barrier_"})
"""Operators of the same namespaces that move nothing."""
_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """How often a collective is issued, and how much it moves."""

    count: float
    num_bytes: float
    """Larger of input and output, the nccl-tests convention, summed [B]."""

    def __add__(self, other: "Count") -> "Count":
        return Count(count=self.count + other.count, num_bytes=self.num_bytes + other.num_bytes)


Counts = Mapping[Key, Count]
NOTHING = Count(count=0, num_bytes=0.0)


def added(parts: Iterable[tuple[Key, Count]]) -> dict[Key, Count]:
    """Return the sums of counts by axis and kind, without those that add up to nothing.

    Examples
    --------
    >>> one = (("tp", "all_reduce"), Count(count=1, num_bytes=8.0))
    >>> added([one, one])
    {('tp', 'all_reduce'): Count(count=2, num_bytes=16.0)}
    """
    found: dict[Key, Count] = {}
    for key, count in parts:
        found[key] = found.get(key, NOTHING) + count
    return {key: value for key, value in found.items() if value != NOTHING}


def counts_to_json(counts: Counts) -> dict[str, dict[str, dict[str, float]]]:
    """Return mesh axis -> kind -> count and bytes, as ``run --json`` prints them."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (axis, kind), value in sorted(counts.items()):
        table.setdefault(axis, {})[kind] = {"count": value.count, "bytes": value.num_bytes}
    return table


def counts_from_json(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[Key, Count]:
    """Return what :func:`counts_to_json` wrote."""
    return {
        (axis, kind): Count(count=value["count"], num_bytes=value["bytes"])
        for axis, kinds in table.items()
        for kind, value in kinds.items()
    }


class IssuedCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count every collective that torch issues inside, whoever issues it.

    Parameters
    ----------
    axis_of_group : mapping of str to str
        Name of a process group -> mesh axis.
    """

    def __init__(self, axis_of_group: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._axis_of_group = axis_of_group
        self._found: list[tuple[Key, Count]] = []

    @property
    def counts(self) -> dict[Key, Count]:
        """What was issued so far."""
        return added(self._found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; note it if it is a collective of plain tensors."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if func.namespace in _NAMESPACES and func._opname not in _SILENT:
            self._note(func._opname, (args, kwargs), out)
        return out

    def _note(self, name: str, arguments: Any, out: Any) -> None:
        kind = _KIND_OF_OPERATOR.get(name)
        if kind is None:
            raise RunError(
                f"torch issued the collective {name!r}, which the dry run cannot count; expected "
                f"one of {', '.join(sorted(_KIND_OF_OPERATOR))}; report it with the plan"
            )
        self._found.append(
            ((self._axis(arguments), kind), Count(count=1, num_bytes=_moved_bytes(arguments, out)))
        )

    def _axis(self, arguments: Any) -> str:
        for leaf in pytree.tree_leaves(arguments):
            name = leaf if isinstance(leaf, str) else _group_name(leaf)
            if name in self._axis_of_group:
                return self._axis_of_group[name]
        return "other"


def _group_name(value: Any) -> str:
    """Return the name of a process group as the dispatcher hands it over, else ""."""
    if not isinstance(value, torch.ScriptObject):
        return ""
    from torch.distributed import ProcessGroup

    try:
        return str(ProcessGroup.unbox(value).group_name)
    except (RuntimeError, TypeError):
        return ""


def _moved_bytes(arguments: Any, out: Any) -> float:
    """Return the larger of what goes in and what comes out [B].

    In-place operators name both sides as arguments, lists of tensors where they are coalesced.
    """
    positional, _ = arguments
    return max(_total_bytes(side) for side in (*positional, out))


def _total_bytes(side: Any) -> float:
    tensors = [leaf for leaf in pytree.tree_leaves(side) if isinstance(leaf, torch.Tensor)]
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
