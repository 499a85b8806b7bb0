"""Rules of kernels that are no products: element-wise, reductions, lookups, reorderings."""

from collections.abc import Sequence
from typing import Any

import torch

from planner.tracing.atoms import Product
from planner.tracing.notes import Value
from planner.tracing.rules_product import batch_roles
from planner.tracing.rules_view import Args, Rule
from planner.tracing.tracer import Draft, Tracer


def tensors_in(items: Any) -> list[torch.Tensor]:
    """Return the tensors of nested arguments in order."""
    if isinstance(items, torch.Tensor):
        return [items]
    if isinstance(items, (list, tuple)):
        return [tensor for item in items for tensor in tensors_in(item)]
    if isinstance(items, dict):
        return tensors_in(list(items.values()))
    return []


def broadcast(draft: Draft, rank: int) -> list[Product]:
    """Join operands from the right as broadcasting does; return the dims of the result."""
    dims: list[Product] = []
    for back in range(1, rank + 1):
        reference: Product = ()
        order = sorted(range(len(draft.values)), key=lambda at: draft.weak[at])
        for operand in order:
            present = draft.dims(operand)
            if len(present) < back or present[-back] == ():
                continue
            if reference == ():
                reference = present[-back]
            else:
                draft.join(operand, -back, reference)
                reference = draft.atoms.resolve(reference)
        dims.insert(0, reference)
    return distinct(draft, dims)


def distinct(draft: Draft, dims: list[Product]) -> list[Product]:
    """Give an atom that broadcasting put into two dims (rows beside columns) an alias."""
    seen: set[int] = set()
    result = []
    for dim in dims:
        parts = []
        for atom in draft.atoms.resolve(dim):
            part = atom
            while part in seen:
                part = draft.atoms.alias(part)
            seen.add(part)
            parts.append(part)
        result.append(tuple(parts))
    return result


def pointwise(tracer: Tracer, target: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Any element-wise kernel, also in place."""
    outs = tensors_in(out)
    sources = tensors_in([args, kwargs])
    if not sources or not outs:
        return
    draft = tracer.kernel(target, "elementwise", *sources)
    in_place = target.endswith("_") and not target.endswith("__")
    dims = broadcast(draft, outs[0].dim())
    for result in outs:
        if result.dim() == len(dims):
            draft.write(result, dims, in_place=in_place)
    draft.kernel.dropout = "dropout" in target or "bernoulli" in target
    draft.end()


def constant(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Bind a new tensor that depends on nothing but a shape."""
    del args, kwargs
    dims = [tracer.atoms.fresh(size) for size in out.shape]
    tracer.bind(out, Value(note=tracer.note(out, dims), dims=dims, weak=True))


def copy(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Write into (a slice of) a buffer: the buffer takes the indices of what is written."""
    del kwargs, out
    target, source = args[0], args[1]
    if tracer.value(source).weak:
        return
    base = tracer.base(target)
    before = [] if base.weak else [target]
    draft = tracer.kernel("aten.copy_", "elementwise", source, *before)
    if before:
        draft.operands[1].dims = [tracer.atoms.resolve(dim) for dim in base.dims]
    slots = [tracer.atoms.resolve(dim) for dim in tracer.value(target).dims]
    for back in range(1, min(len(slots), source.dim()) + 1):
        if slots[-back] != () and draft.dims(0)[-back] != ():
            tracer.atoms.join(draft.dims(0)[-back], slots[-back])
    note = draft.note(target, [tracer.atoms.resolve(dim) for dim in base.dims])
    tracer.rewrite(target, note)
    draft.kernel.outputs.append(note)
    draft.end()


def concatenate(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Join along a dim: fresh (parts, part) if all parts are alike, an opaque extent otherwise."""
    pieces = [piece for piece in args[0] if piece.dim() == out.dim()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    draft = tracer.kernel("aten.cat", "elementwise", *pieces)
    sizes = {piece.shape[dim] for piece in pieces}
    dims: list[Product] = []
    for at in range(out.dim()):
        order = sorted(range(len(pieces)), key=lambda n: draft.weak[n])
        reference = next((draft.dims(n)[at] for n in order if draft.dims(n)[at] != ()), ())
        if at != dim or len(sizes) == 1:
            for operand in order:
                if draft.dims(operand)[at] != ():
                    draft.join(operand, at, reference)
            reference = draft.atoms.resolve(reference)
        if at == dim and len(sizes) == 1:
            parts = tracer.atoms.fresh(len(pieces), splittable=False)
            reference = (*parts, *reference)
        elif at == dim:
            for operand in order:
                draft.atoms.forbid_split(draft.dims(operand)[at])
            reference = tracer.atoms.fresh(out.shape[dim], splittable=False)
        dims.append(reference)
    draft.write(out, distinct(draft, dims))
    draft.end()


def stack(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Join along a new dim."""
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    draft = tracer.kernel("aten.stack", "elementwise", *args[0])
    dims = broadcast(draft, out.dim() - 1)
    dims.insert(dim, tracer.atoms.fresh(out.shape[dim], splittable=False))
    draft.write(out, dims)
    draft.end()


def repeat(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Tile: a fresh factor in front of each repeated dim."""
    del kwargs
    draft = tracer.kernel("aten.repeat", "elementwise", args[0])
    dims = [()] * (out.dim() - args[0].dim()) + list(draft.dims(0))
    sizes = tracer.shape(dims)
    result = [
        (*tracer.atoms.fresh(new // old), *dim)
        for dim, old, new in zip(dims, sizes, out.shape, strict=True)
    ]
    draft.write(out, result)
    draft.end()


def _reduced_dims(args: Args, kwargs: dict[str, Any], rank: int) -> set[int]:
    chosen = args[1] if len(args) > 1 else kwargs.get("dim")
    if chosen is None or chosen == [] or isinstance(chosen, bool):
        return set(range(rank))
    chosen = [chosen] if isinstance(chosen, int) else chosen
    return {dim % rank for dim in chosen} if rank else set()


REDUCTIONS = {
    "sum": "sum", "mean": "mean", "amax": "max", "amin": "max", "max": "max", "min": "max",
    "argmax": "max", "argmin": "max", "any": "max", "all": "max", "prod": "sum", "var": "mean",
    "std": "mean", "var_mean": "mean", "linalg_vector_norm": "sum", "logsumexp": "sum",
    "norm": "sum", "count_nonzero": "sum",
}  # fmt: skip


def reduce(tracer: Tracer, target: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Sum, mean, max over dims."""
    source: torch.Tensor = args[0]
    name = target.removeprefix("aten.")
    draft = tracer.kernel(target, "reduction", source)
    if name == "linalg_vector_norm":
        args = (args[0], args[2] if len(args) > 2 else None)  # noqa: PLR2004
    gone = _reduced_dims(args, kwargs, source.dim())
    dims = draft.dims(0)
    outs = tensors_in(out)
    keep = outs[0].dim() == source.dim()
    result = [() if at in gone else dim for at, dim in enumerate(dims) if keep or at not in gone]
    kept = [dim for at, dim in enumerate(dims) if at not in gone]
    batch_roles(draft, kept, "m")
    linear = name in ("sum", "mean", "amax", "amin", "max", "min")
    for at in sorted(gone):
        kind = "reduced" if linear else "coupled"
        draft.role(dims[at], "k", kind=kind, reduction=REDUCTIONS[name])
    if tracer.in_loss:
        draft.kernel.kind = "loss"
    for tensor in outs:
        draft.write(tensor, result)
    draft.end()


def softmax(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Softmax and log-softmax: the normalised dim is coupled."""
    del kwargs
    draft = tracer.kernel("aten._softmax", "softmax", args[0])
    coupled(draft, [args[1] % args[0].dim()], role="k")
    draft.write(out, draft.dims(0))
    draft.end()


def coupled(draft: Draft, dims: Sequence[int], *, role: str) -> None:
    """Give operand 0's dims their roles: ``dims`` coupled, the rest free."""
    for at, dim in enumerate(draft.dims(0)):
        if at in dims:
            draft.role(dim, role, kind="coupled")
        else:
            batch_roles(draft, [dim], "m")


def pooling(tracer: Tracer, target: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Pooling, padding, resampling: dims of the same size stay, others are fresh with a halo."""
    del kwargs
    source: torch.Tensor = args[0]
    draft = tracer.kernel(target, "pooling", source)
    dims = draft.dims(0)
    outs = tensors_in(out)
    result: list[Product] = []
    for at, size in enumerate(outs[0].shape):
        if size == source.shape[at]:
            result.append(dims[at])
            batch_roles(draft, [dims[at]], "channels")
        else:
            fresh = tracer.atoms.fresh(size, hint="spatial", splittable=False)
            result.append(fresh)
            draft.role(fresh, "spatial", kind="halo")
    for tensor in outs:
        draft.write(tensor, result)
    draft.end()


def unknown(tracer: Tracer, target: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Record an operator without a rule: costed from its tensors, splits only by sample."""
    sources = tensors_in([args, kwargs])
    draft = tracer.kernel(target, "other", *sources)
    outs = tensors_in(out)
    if draft.is_weak or not outs:
        for tensor in outs:
            constant(tracer, args, kwargs, tensor)
        return
    tracer.warn(target, "no rule for this operator; costed from its tensors, splits only by sample")
    kept: set[int] = set()
    reference = max(range(len(sources)), key=lambda at: (not draft.weak[at], -at))
    for tensor in outs:
        dims: list[Product] = []
        for at, size in enumerate(tensor.shape):
            given = draft.dims(reference)
            whole = at < len(given) and tracer.atoms.total(given[at]) == size
            fresh = given[at] if whole else tracer.atoms.fresh(size, splittable=False)
            dims.append(fresh)
            kept.update(fresh)
        draft.write(tensor, dims)
    for atom in sorted(kept):
        is_sample = tracer.atoms.hints[atom] == "b"
        draft.role((atom,), "batch" if is_sample else "m", kind="free" if is_sample else "coupled")
    inner = {atom for at in range(len(sources)) for dim in draft.dims(at) for atom in dim} - kept
    for atom in sorted(inner):
        draft.role((atom,), "k", kind="coupled")
    draft.end()


KERNEL_RULES: dict[str, Rule] = {
    "copy_": copy, "cat": concatenate, "stack": stack, "repeat": repeat,
    "_softmax": softmax, "_safe_softmax": softmax, "_log_softmax": softmax,
}  # fmt: skip
POOLINGS = frozenset({
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "avg_pool3d", "max_pool3d_with_indices", "_adaptive_avg_pool3d", "constant_pad_nd",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "reflection_pad2d",
    "replication_pad2d", "avg_pool1d", "roll_pad", "_adaptive_avg_pool1d", "adaptive_avg_pool1d",
    "reflection_pad1d", "max_pool1d", "mkldnn_adaptive_avg_pool2d",
})  # fmt: skip
CONSTANTS = frozenset({
    "arange", "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_empty", "new_full",
    "scalar_tensor", "zeros_like", "ones_like", "full_like", "empty_like", "rand", "randn",
    "rand_like", "randn_like", "linspace", "eye", "tril_indices", "triu_indices", "randint",
    "empty_strided", "new_empty_strided", "randperm",
})  # fmt: skip
POINTWISE = frozenset({
    "clone", "_to_copy", "contiguous", "masked_fill", "masked_fill_", "where", "fill_", "zero_",
    "tril", "triu", "tril_", "triu_", "native_dropout", "flip", "roll", "bernoulli_", "rot90",
    "_safe_softmax_mask", "dropout", "isin", "one_hot", "lerp", "addcmul", "addcdiv",
    "add_bias", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "mish", "glu_jvp",
    "floor_divide", "remainder", "fmod",
})  # fmt: skip
