"""Rules of operators that move no data: they relabel dimensions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planner.tracing.atoms import Product
from planner.tracing.notes import Value
from planner.tracing.tracer import Tracer

Args = Sequence[Any]
Rule = Callable[[Tracer, Args, dict[str, Any], Any], None]


def _see(tracer: Tracer, source: torch.Tensor, out: torch.Tensor, dims: list[Product]) -> None:
    value = tracer.value(source)
    tracer.bind(out, Value(note=value.note, dims=dims, weak=value.weak))


def _dims(tracer: Tracer, tensor: torch.Tensor) -> list[Product]:
    return [tracer.atoms.resolve(dim) for dim in tracer.value(tensor).dims]


def cut(tracer: Tracer, dims: Sequence[Product], sizes: Sequence[int]) -> list[Product]:
    """Cut the concatenated atoms of ``dims`` again by ``sizes``; refine an atom at a boundary.

    Where a boundary does not divide an atom, that stretch becomes one opaque extent per dimension.
    """
    atoms = tracer.atoms
    for _ in range(64):
        flat = [atom for dim in dims for atom in atoms.resolve(dim)]
        result, position, refined = [], 0, False
        for size in sizes:
            start, have = position, 1
            while have < size and position < len(flat):
                have *= atoms.sizes[flat[position]]
                position += 1
            if have == size:
                result.append(tuple(flat[start:position]))
                continue
            last = flat[position - 1] if position else -1
            before = have // atoms.sizes[last] if position else 0
            if (
                position
                and size % before == 0
                and have % size == 0
                and atoms.refine(last, have // size)
            ):
                refined = True
                break
            return _opaque(tracer, dims, sizes)
        if not refined:
            if position < len(flat):
                return _opaque(tracer, dims, sizes)
            return result
    return _opaque(tracer, dims, sizes)


def _opaque(tracer: Tracer, dims: Sequence[Product], sizes: Sequence[int]) -> list[Product]:
    """Keep leading dims that are whole; give the rest opaque extents."""
    atoms = tracer.atoms
    result: list[Product] = []
    for position, size in enumerate(sizes):
        same = (
            position < len(dims)
            and len(result) == position
            and all(dim != () for dim in result)
            and atoms.total(atoms.resolve(dims[position])) == size
            and (position == 0 or result[position - 1] == atoms.resolve(dims[position - 1]))
        )
        if same:
            result.append(atoms.resolve(dims[position]))
        else:
            result.append(atoms.fresh(size, splittable=False))
    for dim in dims:
        if atoms.resolve(dim) not in result:
            atoms.forbid_split(dim)
    return result


def view(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Reshape without copying."""
    del kwargs
    _see(tracer, args[0], out, cut(tracer, _dims(tracer, args[0]), out.shape))


def same(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Alias and detach."""
    del kwargs
    _see(tracer, args[0], out, _dims(tracer, args[0]))


def permute(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Reorder the dims."""
    del kwargs
    dims = _dims(tracer, args[0])
    _see(tracer, args[0], out, [dims[order] for order in args[1]])


def transpose(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Swap two dims (the last two for ``t``)."""
    del kwargs
    dims = _dims(tracer, args[0])
    first, second = (args[1], args[2]) if len(args) > 2 else (0, -1)  # noqa: PLR2004
    if dims:
        dims[first], dims[second] = dims[second], dims[first]
    _see(tracer, args[0], out, dims)


def unsqueeze(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Insert a dim of size 1."""
    del kwargs
    dims = _dims(tracer, args[0])
    dims.insert(args[1] % out.dim(), ())
    _see(tracer, args[0], out, dims)


def squeeze(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Drop dims of size 1."""
    del kwargs
    source: torch.Tensor = args[0]
    dims = _dims(tracer, source)
    chosen = range(source.dim()) if len(args) == 1 else args[1]
    chosen = [chosen] if isinstance(chosen, int) else list(chosen)
    drop = {dim % source.dim() for dim in chosen if source.dim() and source.shape[dim] == 1}
    _see(tracer, source, out, [dim for at, dim in enumerate(dims) if at not in drop])


def select(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Take one position of a dim."""
    del kwargs
    dims = _dims(tracer, args[0])
    dim = args[1] if len(args) > 1 else 0
    del dims[dim % len(dims)]
    _see(tracer, args[0], out, dims)


def unbind(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: Sequence[torch.Tensor]) -> None:
    """Take every position of a dim."""
    for piece in out:
        select(tracer, args, kwargs, piece)


def expand(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Broadcast dims of size 1 to fresh extents."""
    del kwargs
    source: torch.Tensor = args[0]
    dims = [()] * (out.dim() - source.dim()) + _dims(tracer, source)
    shape = (1,) * (out.dim() - source.dim()) + tuple(source.shape)
    for at, (old, new) in enumerate(zip(shape, out.shape, strict=True)):
        if old != new:
            dims[at] = tracer.atoms.fresh(new)
    _see(tracer, source, out, dims)


def _piece(tracer: Tracer, dim: Product, size: int) -> Product:
    """Return the minor factor of ``dim`` with ``size`` values, refining; opaque otherwise."""
    atoms = tracer.atoms
    whole = atoms.total(dim)
    pieces = cut(tracer, [dim], (whole // size, size))
    return pieces[1]


def slice_dim(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Take a range: all, an aligned half, or an opaque segment."""
    del kwargs
    dims = _dims(tracer, args[0])
    dim = (args[1] if len(args) > 1 else 0) % len(dims)
    whole, part = args[0].shape[dim], out.shape[dim]
    start = args[2] if len(args) > 2 and args[2] is not None else 0  # noqa: PLR2004
    start = start + whole if start < 0 else start
    if whole == part:
        pass
    elif part * 2 == whole and start % part == 0 and (len(args) < 5 or args[4] == 1):  # noqa: PLR2004
        dims[dim] = _piece(tracer, dims[dim], part)
    elif part == 1:
        dims[dim] = ()
    else:
        if not tracer.value(args[0]).weak:
            tracer.atoms.forbid_split(dims[dim])
        dims[dim] = tracer.atoms.fresh(part, splittable=False)
    _see(tracer, args[0], out, dims)


def split(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: Sequence[torch.Tensor]) -> None:
    """Cut a dim into pieces: a (pieces, size) refinement if equal, opaque segments otherwise."""
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)  # noqa: PLR2004
    sizes = {piece.shape[dim] for piece in out}
    dims = _dims(tracer, args[0])
    dim %= len(dims)
    if len(out) == 1:
        parts = [dims[dim]]
    elif len(sizes) == 1:
        parts = [_piece(tracer, dims[dim], out[0].shape[dim])] * len(out)
        whole = tracer.atoms.resolve(dims[dim])
        keep = len(tracer.atoms.resolve(parts[0]))
        tracer.atoms.forbid_split(whole[: len(whole) - keep])
    else:
        tracer.atoms.forbid_split(dims[dim])
        parts = [tracer.atoms.fresh(piece.shape[dim], splittable=False) for piece in out]
    for piece, part in zip(out, parts, strict=True):
        _see(tracer, args[0], piece, [*dims[:dim], part, *dims[dim + 1 :]])


def opaque_view(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Any other view (as_strided, unfold): keep leading dims of the same size."""
    del kwargs
    _see(tracer, args[0], out, _opaque(tracer, _dims(tracer, args[0]), out.shape))


VIEW_RULES: dict[str, Rule] = {
    "view": view, "_unsafe_view": view, "reshape": view, "_reshape_alias": view,
    "flatten": view, "unflatten": view,
    "detach": same, "alias": same, "lift_fresh": same, "view_as": same,
    "permute": permute, "transpose": transpose, "t": transpose, "numpy_T": transpose,
    "unsqueeze": unsqueeze, "squeeze": squeeze, "select": select, "unbind": unbind,
    "expand": expand, "slice": slice_dim, "split": split, "split_with_sizes": split,
    "chunk": split, "unsafe_split": split, "unsafe_split_with_sizes": split,
    "unsafe_chunk": split, "as_strided": opaque_view, "unfold": opaque_view,
    "diagonal": opaque_view, "view_as_complex": opaque_view, "view_as_real": opaque_view,
}  # fmt: skip
