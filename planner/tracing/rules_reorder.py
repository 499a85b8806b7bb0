"""Rules of kernels that look up or reorder: embeddings, sorting, indexing, scattering."""

from typing import Any

import torch

from planner.tracing.rules_kernel import constant, coupled, distinct, tensors_in
from planner.tracing.rules_product import batch_roles
from planner.tracing.rules_view import Args, Rule
from planner.tracing.tracer import Tracer


def row_wise(tracer: Tracer, target: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Sort, cumulative sums, top-k: one dim is coupled, others are free.

    Integer tensors (which token goes to which expert) follow the rank: their order is data.
    """
    source: torch.Tensor = args[0]
    position = 2 if target == "aten.topk" else 1
    dim = args[position] if len(args) > position else kwargs.get("dim", -1)
    dim = dim % source.dim() if isinstance(dim, int) and source.dim() else 0
    draft = tracer.kernel(target, "permutation", source)
    if source.is_floating_point():
        coupled(draft, [dim], role="k")
    else:
        for product in draft.dims(0):
            for atom in product:
                role = "batch" if draft.atoms.hints[atom] == "b" else "token"
                draft.role((atom,), role, kind="permuted")
    dims = draft.dims(0)
    fresh: tuple[int, ...] | None = None
    for tensor in tensors_in(out):
        result = list(dims)
        if tensor.shape[dim] != source.shape[dim]:
            if fresh is None:
                fresh = tracer.atoms.fresh(tensor.shape[dim], hint="choices", splittable=False)
                draft.role(fresh, "choices", kind="coupled")
            result[dim] = fresh
        draft.write(tensor, result)
    draft.kernel.data_dependent = True
    draft.end()


def embedding(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Look up rows of a table: ``out[.., k] = table[index[..], k]``."""
    del kwargs
    table, index = args[0], args[1]
    draft = tracer.kernel("aten.embedding", "embedding", index, table)
    vocab, width = draft.dims(1)
    rows = list(draft.dims(0))
    if draft.weak[0]:
        rows = [tuple(atom for atom in dim) for dim in rows]
    for dim in rows:
        batch_roles(draft, [dim], "token")
    draft.role(vocab, "vocab", kind="lookup", reduction="sum")
    draft.role(width, "hidden")
    draft.write(out, [*rows, width])
    draft.end()


def histogram(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Tokens per expert: control data, the same on every rank."""
    constant(tracer, args, kwargs, out)


def index(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Advanced indexing: rows in a data-dependent order."""
    del kwargs
    source, indices = args[0], args[1]
    given = [(at, item) for at, item in enumerate(indices) if isinstance(item, torch.Tensor)]
    if tracer.value(source).weak and all(tracer.value(item).weak for _, item in given):
        constant(tracer, args, {}, out)
        return
    draft = tracer.kernel("aten.index", "permutation", source, *(item for _, item in given))
    looked_up = {at for at, _ in given}
    rank = max(item.dim() for _, item in given)
    reference = next((n for n, (_, item) in enumerate(given, 1) if item.dim() == rank), 1)
    rows = [draft.atoms.resolve(dim) for dim in draft.values[reference].dims]
    rest = [dim for at, dim in enumerate(draft.dims(0)) if at not in looked_up]
    first = given[0][0]
    is_fixed = all(draft.weak[1:])
    if is_fixed:
        for dim in rows:
            draft.atoms.forbid_split(dim)
    dims = [*rest[:first], *rows, *rest[first:]]
    moved = {atom for dim in rows for atom in dim}
    for dim in rows:
        for atom in dim:
            role = "batch" if draft.atoms.hints[atom] == "b" else "token"
            draft.role((atom,), role, kind="free" if is_fixed else "permuted")
    for at in looked_up:
        left = tuple(atom for atom in draft.dims(0)[at] if atom not in moved)
        kind = "coupled" if is_fixed else "lookup"
        draft.role(left, "vocab", kind=kind, reduction=None if is_fixed else "sum")
    for dim in rest:
        kept = tuple(atom for atom in draft.atoms.resolve(dim) if atom not in moved)
        batch_roles(draft, [kept], "hidden")
    draft.kernel.data_dependent = not is_fixed
    draft.write(out, distinct(draft, dims))
    draft.end()


def index_select(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Rows of one dim by an index vector."""
    source, dim, chosen = args[:3]
    indices = [None] * (dim % source.dim()) + [chosen]
    index(tracer, (source, indices), kwargs, out)


def gather(tracer: Tracer, args: Args, kwargs: dict[str, Any], out: torch.Tensor) -> None:
    """Gather along a dim by indices of the same rank."""
    del kwargs
    source, dim, chosen = args[0], args[1], args[2]
    draft = tracer.kernel("aten.gather", "permutation", source, chosen)
    dim %= max(source.dim(), 1)
    for at in range(source.dim()):
        if at != dim and source.shape[at] == chosen.shape[at] and draft.dims(0)[at] != ():
            draft.join(1, at, draft.dims(0)[at])
    rows = [
        draft.dims(0)[at] if at != dim and draft.weak[1] else product
        for at, product in enumerate(draft.dims(1))
    ]
    for at, product in enumerate(rows):
        batch_roles(draft, [product], "token" if at != dim else "k")
    draft.role(draft.dims(0)[dim], "vocab", kind="coupled")
    draft.kernel.data_dependent = True
    draft.write(out, rows)
    draft.end()


def scatter(tracer: Tracer, target: str, args: Args, kwargs: dict[str, Any], out: Any) -> None:
    """Write or add rows at data-dependent places of ``args[0]``."""
    sources = [item for item in tensors_in([args, kwargs]) if item is not args[0]]
    draft = tracer.kernel(target, "permutation", *sources, args[0])
    last = len(sources)
    base = draft.values[last]
    result = tensors_in(out)[0]
    dims = [draft.atoms.resolve(dim) for dim in base.dims]
    for n, source in enumerate(sources):
        for at in range(min(source.dim(), len(dims))):
            back = at + 1
            same_size = source.shape[-back] == result.shape[-back]
            if same_size and not draft.weak[n] and dims[-back] != ():
                draft.join(n, -back, dims[-back])
                dims = [draft.atoms.resolve(dim) for dim in dims]
    for dim in dims:
        for atom in dim:
            role = "batch" if draft.atoms.hints[atom] == "b" else "token"
            draft.role((atom,), role, kind="permuted")
    draft.kernel.data_dependent = True
    draft.write(result, dims, in_place=target.endswith("_"))
    draft.end()


REORDER_RULES: dict[str, Rule] = {
    "embedding": embedding, "histc": histogram, "bincount": histogram, "index": index,
    "_unsafe_index": index, "gather": gather, "index_select": index_select,
}  # fmt: skip
ROW_WISE = frozenset(
    {"sort", "topk", "cumsum", "cumprod", "argsort", "msort", "kthvalue", "logcumsumexp"}
)
SCATTERS = frozenset({
    "scatter", "scatter_", "scatter_add", "scatter_add_", "index_add", "index_add_", "index_put",
    "index_put_", "_index_put_impl_", "scatter_reduce", "scatter_reduce_", "index_copy",
    "index_copy_", "masked_scatter", "slice_scatter", "select_scatter",
})  # fmt: skip
