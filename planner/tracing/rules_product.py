"""Rules of products: matrix products, convolutions, grouped expert products."""

from collections.abc import Sequence
from typing import Any

import torch

from planner.tracing.atoms import Product
from planner.tracing.notes import TensorNote, Value
from planner.tracing.rules_view import Args, Rule
from planner.tracing.tracer import Draft, Tracer


def batch_roles(draft: Draft, dims: Sequence[Product], role: str) -> None:
    """Give rows their roles: the sample index is ``batch``, the rest ``role``."""
    for dim in dims:
        for atom in draft.atoms.resolve(dim):
            draft.role((atom,), "batch" if draft.atoms.hints[atom] == "b" else role)


def _flat(draft: Draft, dims: Sequence[Product]) -> Product:
    return tuple(atom for dim in dims for atom in draft.atoms.resolve(dim))


def _backward_factor(draft: Draft) -> float:
    return float(sum(read.note.requires_grad for read in draft.operands[:2]))


def product(
    draft: Draft, out: torch.Tensor, *, batch: int, k_dim: int, n_dim: int, bias: bool = False
) -> TensorNote:
    """Record ``out[batch.., rows.., n] = a[batch.., rows.., k] w[batch.., k, n]``."""
    rank = len(draft.dims(0))
    reference = draft.operands[1].note.kind == "parameter"
    for dim in range(batch):
        draft.join(1, dim, draft.dims(0)[dim])
    if reference:
        draft.join(0, rank - 1, draft.dims(1)[k_dim])
        rows = draft.dims(0)[: rank - 1]
        k = draft.dims(0)[rank - 1]
        draft.separate(0, range(rank - 1), [k, draft.dims(1)[n_dim]])
    else:
        draft.join(1, k_dim, draft.dims(0)[rank - 1])
        k = draft.dims(0)[rank - 1]
        draft.separate(1, [n_dim], [*draft.dims(0), k])
    rows, n = draft.dims(0)[: rank - 1], draft.dims(1)[n_dim]
    k = draft.dims(0)[rank - 1]
    kernel = draft.kernel
    batch_roles(draft, rows, "m")
    draft.role(n, "n")
    draft.role(k, "k", kind="reduced", reduction="sum")
    kernel.roles_mn_k = (_flat(draft, rows[:batch]), _flat(draft, rows[batch:]), n, k)
    kernel.flops = [(2.0, _flat(draft, [*rows, n, k]))]
    kernel.backward_factor = _backward_factor(draft)
    if not bias:
        draft.write(out, [*rows, n])
        draft.end()
        return kernel.outputs[0]
    note = draft.note(out, [*rows, n])
    kernel.outputs.append(note)
    draft.end()
    return note


def add_bias(
    tracer: Tracer, note: TensorNote, bias: torch.Tensor, out: torch.Tensor, dim: int
) -> None:
    """Record the bias of a product as an element-wise kernel of its own.

    Split on ``k``, a bias inside the product would be added once per shard. Matrix products add it
    in their own kernel's epilogue; convolutions run a second kernel.
    """
    inner = torch.empty(0)
    tracer.bind(inner, Value(note=note, dims=list(note.dims)))
    draft = tracer.kernel("aten.add_bias", "elementwise", inner, bias)
    draft.join(1, 0, draft.dims(0)[dim])
    in_epilogue = dim == -1
    draft.kernel.writes_outputs = not in_epilogue
    draft.kernel.launches = 0 if in_epilogue else 1
    draft.write(out, draft.dims(0))
    draft.end()


def linear(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """``y[.., n] = x[.., k] W[n, k] + bias[n]``."""
    source, weight = args[0], args[1]
    bias = args[2] if len(args) > 2 else kwargs.get("bias")  # noqa: PLR2004
    draft = tracer.kernel("aten.linear", "matmul", source, weight)
    _save_product(draft)
    note = product(draft, out, batch=0, k_dim=1, n_dim=0, bias=bias is not None)
    if bias is not None:
        add_bias(tracer, note, bias, out, -1)


def _save_product(draft: Draft) -> None:
    """Keep each operand whose partner needs a gradient."""
    for operand, partner in ((0, 1), (1, 0)):
        if draft.operands[partner].note.requires_grad:
            draft.save(operand)


def mm(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """``out[m, n] = a[m, k] b[k, n]``."""
    del kwargs
    draft = tracer.kernel("aten.mm", "matmul", args[0], args[1])
    product(draft, out, batch=0, k_dim=0, n_dim=1)


def mv(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """``out[m] = a[m, k] x[k]``."""
    del kwargs
    draft = tracer.kernel("aten.mv", "matmul", args[0], args[1])
    draft.join(1, 0, draft.dims(0)[1])
    rows, k = draft.dims(0)
    batch_roles(draft, [rows], "m")
    draft.role(k, "k", kind="reduced", reduction="sum")
    draft.kernel.roles_mn_k = ((), rows, (), k)
    draft.kernel.flops = [(2.0, (*rows, *k))]
    draft.kernel.backward_factor = _backward_factor(draft)
    draft.write(out, [rows])
    draft.end()


def bmm(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """``out[batch, m, n] = a[batch, m, k] b[batch, k, n]``."""
    del kwargs
    draft = tracer.kernel("aten.bmm", "matmul", args[0], args[1])
    product(draft, out, batch=1, k_dim=1, n_dim=2)


def addmm(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Record a product and a bias as two kernels."""
    del kwargs
    bias, source, weight = args[:3]
    draft = tracer.kernel("aten.addmm", "matmul", source, weight)
    note = product(draft, out, batch=0, k_dim=0, n_dim=1, bias=True)
    if bias.dim() == 1:
        add_bias(tracer, note, bias, out, -1)
    else:
        _add_whole(tracer, note, bias, out)


def _add_whole(tracer: Tracer, note: TensorNote, other: torch.Tensor, out: torch.Tensor) -> None:
    inner = torch.empty(0)
    tracer.bind(inner, Value(note=note, dims=list(note.dims)))
    draft = tracer.kernel("aten.add_bias", "elementwise", inner, other)
    for dim in range(1, other.dim() + 1):
        if draft.dims(1)[-dim] != ():
            draft.join(1, -dim, draft.dims(0)[-dim])
    draft.kernel.launches = 0
    draft.write(out, draft.dims(0))
    draft.end()


def baddbmm(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Record a batched product added to a tensor."""
    del kwargs
    draft = tracer.kernel("aten.baddbmm", "matmul", args[1], args[2])
    note = product(draft, out, batch=1, k_dim=1, n_dim=2, bias=True)
    _add_whole(tracer, note, args[0], out)


def convolution(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """``out[b, o, spatial] = x[b, c, spatial'] w[o, c / groups, filter]``, also transposed."""
    del kwargs
    source, weight, bias, stride, transposed, groups = (*args[:4], args[6], args[8])
    draft = tracer.kernel("aten.convolution", "convolution", source, weight)
    atoms, kernel = tracer.atoms, draft.kernel
    filters_dim, channels_dim = (1, 0) if transposed else (0, 1)
    group: Product = ()
    if groups == 1:
        draft.join(0, 1, draft.dims(1)[channels_dim])
        filters = draft.dims(1)[filters_dim]
        channels = draft.dims(0)[1]
    else:
        group, channels, filters = _groups(draft, groups, weight, transposed=transposed)
    window = draft.dims(1)[2:]
    pointwise = all(size == 1 for size in weight.shape[2:]) and set(stride) == {1}
    for dim in window:
        atoms.forbid_split(dim)
    spatial = [
        draft.dims(0)[dim]
        if pointwise
        else atoms.fresh(out.shape[dim], hint="spatial", splittable=False)
        for dim in range(2, out.dim())
    ]
    batch_roles(draft, [draft.dims(0)[0]], "batch")
    draft.role(group, "groups")
    draft.role(filters, "filters")
    for dim in spatial:
        draft.role(dim, "spatial", kind="free" if pointwise else "halo")
    draft.role(channels, "channels", kind="reduced", reduction="sum")
    for dim in window:
        draft.role(dim, "filter", kind="reduced", reduction="sum")
    sample = draft.dims(0)[0]
    kernel.roles_mn_k = (
        group,
        _flat(draft, [sample, *spatial]),
        filters,
        _flat(draft, [channels, *window]),
    )
    inner = _flat(draft, draft.dims(0)[2:]) if transposed else _flat(draft, spatial)
    kernel.flops = [(2.0, _flat(draft, [sample, group, filters, inner, channels, *window]))]
    kernel.backward_factor = _backward_factor(draft)
    kernel.filter_area = atoms.total(_flat(draft, window))
    dims = [sample, (*group, *filters), *spatial]
    if bias is None:
        draft.write(out, dims)
        draft.end()
        return
    note = draft.note(out, dims)
    kernel.outputs.append(note)
    draft.end()
    add_bias(tracer, note, bias, out, 1)


def _groups(
    draft: Draft, groups: int, weight: torch.Tensor, *, transposed: bool
) -> tuple[Product, Product, Product]:
    """Refine channels and filters of a grouped convolution into (groups, per group)."""
    from planner.tracing.rules_view import cut

    tracer = draft.tracer
    per_group = draft.tracer.shape([draft.dims(0)[1]])[0] // groups
    group, channels = cut(tracer, [draft.dims(0)[1]], (groups, per_group))
    if transposed:
        draft.atoms.join(group + channels, draft.dims(1)[0])
        return group, channels, draft.dims(1)[1]
    filters_group, filters = cut(tracer, [draft.dims(1)[0]], (groups, weight.shape[0] // groups))
    draft.atoms.join(group, filters_group)
    draft.atoms.join(channels, draft.dims(1)[1])
    return draft.atoms.resolve(group), draft.atoms.resolve(channels), filters


def grouped_mm(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Products of experts: ``out[token, n] = x[token, k] w[expert(token), k, n]``.

    Costed as balanced: every expert gets tokens / experts rows, so that FLOPs are
    ``2 token k n`` = ``(2 / experts) expert token k n``.
    """
    del kwargs
    source, weight = args[0], args[1]
    draft = tracer.kernel("aten._grouped_mm", "matmul", source, weight)
    _save_product(draft)
    draft.join(0, 1, draft.dims(1)[1])
    experts, k, n = draft.dims(1)
    rows = draft.dims(0)[0]
    atoms = tracer.atoms
    num_experts = atoms.total(experts)
    known = tracer.experts.setdefault((rows, num_experts), experts)
    atoms.join(known, experts)
    experts = atoms.resolve(known)
    for atom in experts:
        atoms.hints[atom] = "experts"
    draft.role(experts, "expert", kind="permuted")
    for atom in rows:
        role = "batch" if atoms.hints[atom] == "b" else "token"
        draft.role((atom,), role, kind="permuted")
    draft.role(n, "n")
    draft.role(k, "k", kind="reduced", reduction="sum")
    kernel = draft.kernel
    kernel.roles_mn_k = (experts, rows, n, k)
    kernel.flops = [(2.0 / num_experts, _flat(draft, [experts, rows, n, k]))]
    kernel.backward_factor = _backward_factor(draft)
    kernel.traffic_scale = (1.0 / num_experts, experts)
    kernel.data_dependent = True
    tracer.warn(
        "experts", "the load of experts depends on data; costed as balanced over all experts"
    )
    draft.write(out, [rows, n])
    draft.end()


PRODUCT_RULES: dict[str, Rule] = {
    "mm": mm, "bmm": bmm, "addmm": addmm, "baddbmm": baddbmm, "mv": mv, "linear": linear,
    "convolution": convolution, "_convolution": convolution, "_grouped_mm": grouped_mm,
}  # fmt: skip
