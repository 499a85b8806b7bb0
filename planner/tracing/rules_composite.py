"""Rules of calls that are recorded whole, at function level: attention, norms, losses, recurrence.

What such a call runs inside depends on the backend (a CPU decomposes attention that a GPU fuses);
its indices, FLOPs and saved tensors do not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from planner.tracing.atoms import Product
from planner.tracing.notes import Value
from planner.tracing.rules_kernel import constant, coupled, pointwise, tensors_in
from planner.tracing.rules_product import batch_roles, grouped_mm, linear
from planner.tracing.rules_view import cut
from planner.tracing.tracer import Draft, Tracer

Call = Callable[[Tracer, Sequence[Any], dict[str, Any], Any], None]
FLASH_BACKWARD_FACTOR = 2.5
"""Flash attention recomputes the scores: five products for the forward's two (Dao et al., 2022,
"FlashAttention", algorithm 4)."""
QKV = ("query", "key", "value")


def bound(args: Sequence[Any], kwargs: dict[str, Any], names: str) -> dict[str, Any]:
    """Return positional and keyword arguments by name."""
    return {**dict(zip(names.split(), args, strict=False)), **kwargs}


def attention(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """``out[b, h, q, e] = softmax(Q[b, h, q, d] K[b, h, k, d]) V[b, h, k, e]``, fused."""
    given = bound(args, kwargs, "query key value attn_mask dropout_p is_causal")
    given["query"], given["key"], given["value"] = (_four_dims(tracer, given[name]) for name in QKV)
    operands = [given[name] for name in QKV]
    mask = given.get("attn_mask")
    if mask is not None and not tracer.value(mask).weak:
        operands.append(mask)
    draft = tracer.kernel("attention", "attention", *operands)
    rank = len(draft.dims(0))
    for operand in (1, 2):
        for dim in range(rank - 3):
            draft.join(operand, dim, draft.dims(0)[dim])
        _join_heads(draft, operand, rank - 3)
    draft.join(1, rank - 1, draft.dims(0)[rank - 1])
    draft.join(2, rank - 2, draft.dims(1)[rank - 2])
    lead, heads, query, inner = _split_dims(draft.dims(0))
    if set(inner) & set(draft.dims(2)[-1]):
        used = [*lead, heads, query, draft.dims(2)[-1]]
        draft.separate(0, [rank - 1], used)
        inner = draft.dims(0)[-1]
        draft.separate(1, [rank - 1], used)
    used = [*lead, heads, query]
    for operand in (1, 2):
        draft.separate(operand, [rank - 2], used)
    key, width = draft.dims(1)[-2], draft.dims(2)[-1]
    query = draft.dims(0)[-2]
    scores = [*lead, heads, query, key]
    for back in range(1, len(draft.dims(3)) + 1 if len(operands) > len(QKV) else 1):
        if draft.dims(3)[-back] != ():
            draft.join(3, -back, scores[-back])
    batch_roles(draft, lead, "batch")
    draft.role(heads, "heads")
    draft.role(query, "query")
    draft.role(key, "key", kind="coupled")
    draft.role(inner, "head_dim", kind="coupled")
    draft.role(width, "value_dim")
    kernel = draft.kernel
    batch = tuple(atom for dim in lead for atom in draft.atoms.resolve(dim)) + heads
    kernel.flops = [(2.0, (*batch, *query, *key, *inner)), (2.0, (*batch, *query, *key, *width))]
    kernel.backward_factor = FLASH_BACKWARD_FACTOR
    kernel.roles_mn_k = (batch, query, key, inner)
    kernel.causal = bool(given.get("is_causal", False))
    kernel.dropout = float(given.get("dropout_p", 0.0)) > 0
    draft.write(out, [*lead, heads, query, width])
    draft.save(*range(len(operands)))
    draft.save_outputs()
    kernel.extra_saved = [((*batch, *query), "fp32")]
    draft.end()


def _four_dims(tracer: Tracer, tensor: torch.Tensor) -> torch.Tensor:
    """See ``x[b, s, d]`` as ``x[b, 1, s, d]``."""
    if tensor.dim() != 3:  # noqa: PLR2004
        return tensor
    value = tracer.value(tensor)
    seen = tensor.unsqueeze(1)
    dims = [value.dims[0], (), *value.dims[1:]]
    tracer.bind(seen, Value(note=value.note, dims=dims, weak=value.weak))
    return seen


def _split_dims(dims: list[Product]) -> tuple[list[Product], Product, Product, Product]:
    return dims[:-3], dims[-3], dims[-2], dims[-1]


def _join_heads(draft: Draft, operand: int, dim: int) -> None:
    """Heads of keys: all of the queries' heads, or their leading factor (grouped queries)."""
    whole, part = (
        draft.tracer.shape([draft.dims(0)[dim]])[0],
        draft.tracer.shape([draft.dims(operand)[dim]])[0],
    )
    if whole == part:
        draft.join(operand, dim, draft.dims(0)[dim])
    elif part > 1:
        leading, _ = cut(draft.tracer, [draft.dims(0)[dim]], (part, whole // part))
        draft.join(operand, dim, leading)


def normalization(tracer: Tracer, name: str, args: Any, kwargs: dict[str, Any], out: Any) -> None:
    """Layer and RMS norm: trailing dims coupled, weights over them."""
    given = bound(args, kwargs, "input normalized_shape weight bias eps")
    weights = [given[key] for key in ("weight", "bias") if given.get(key) is not None]
    draft = tracer.kernel(f"aten.{name}", "normalization", given["input"], *weights)
    rank, size = len(draft.dims(0)), len(given["normalized_shape"])
    for operand in range(1, len(weights) + 1):
        for back in range(1, size + 1):
            draft.join(0, -back, draft.dims(operand)[-back])
    coupled(draft, range(rank - size, rank), role="hidden")
    rows = tuple(atom for dim in draft.dims(0)[: rank - size] for atom in dim)
    _finish_norm(draft, out, rows, 2 if name == "layer_norm" else 1)


def _finish_norm(draft: Draft, out: torch.Tensor, rows: Product, statistics: int) -> None:
    draft.write(out, draft.dims(0))
    draft.save(0)
    draft.kernel.extra_saved = [(rows, "fp32")] * statistics
    draft.end()


def layer_norm(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Layer norm."""
    normalization(tracer, "layer_norm", args, kwargs, out)


def rms_norm(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """RMS norm."""
    normalization(tracer, "rms_norm", args, kwargs, out)


def batch_norm(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Batch norm with statistics of the local samples (as data parallelism runs it)."""
    given = bound(args, kwargs, "input running_mean running_var weight bias training")
    weights = [given[key] for key in ("weight", "bias") if given.get(key) is not None]
    draft = tracer.kernel("aten.batch_norm", "normalization", given["input"], *weights)
    for operand in range(1, len(weights) + 1):
        draft.join(operand, 0, draft.dims(0)[1])
    coupled(draft, range(2, len(draft.dims(0))), role="spatial")
    _finish_norm(draft, out, draft.dims(0)[1], 2)


def group_norm(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Group norm: groups free, channels of a group and space coupled."""
    given = bound(args, kwargs, "input num_groups weight bias eps")
    weights = [given[key] for key in ("weight", "bias") if given.get(key) is not None]
    draft = tracer.kernel("aten.group_norm", "normalization", given["input"], *weights)
    groups = int(given["num_groups"])
    channels = given["input"].shape[1]
    group, inner = cut(tracer, [draft.dims(0)[1]], (groups, channels // groups))
    for operand in range(1, len(weights) + 1):
        draft.join(operand, 0, draft.dims(0)[1])
    batch_roles(draft, draft.dims(0)[:1], "m")
    draft.role(group, "groups")
    for dim in (inner, *draft.dims(0)[2:]):
        draft.role(dim, "hidden", kind="coupled")
    _finish_norm(draft, out, (*draft.dims(0)[0], *group), 2)


def dropout(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Dropout: element-wise, keeps a mask of one byte per element."""
    pointwise(tracer, "aten.dropout", args[:1] or (kwargs["input"],), {}, out)
    kernel = tracer.kernels[-1]
    if kernel.target == "aten.dropout":
        product = tuple(atom for dim in kernel.outputs[0].dims for atom in dim)
        kernel.extra_saved = [(product, "bool")]


def cross_entropy(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Log-softmax and negative log-likelihood: the classes are coupled, samples averaged."""
    given = bound(args, kwargs, "input target weight size_average ignore_index reduce reduction")
    logits, target = given["input"], given["target"]
    draft = tracer.kernel("aten.cross_entropy", "loss", logits, target)
    classes = 1 if logits.dim() > 1 else 0
    dims = draft.dims(0)
    rows = [dim for at, dim in enumerate(dims) if at != classes]
    if target.dim() == len(rows):
        for at, dim in enumerate(rows):
            draft.join(1, at, dim)
    elif target.dim() == len(dims):
        for at, dim in enumerate(dims):
            draft.join(1, at, dim)
    for atom in dims[classes]:
        draft.atoms.hints[atom] = draft.atoms.hints[atom] or "vocab"
    whole = given.get("reduction", "mean") != "none"
    for dim in rows:
        for atom in draft.atoms.resolve(dim):
            role = "batch" if draft.atoms.hints[atom] == "b" else "token"
            draft.role((atom,), role, **({"kind": "reduced", "reduction": "mean"} if whole else {}))
    draft.role(dims[classes], "vocab", kind="coupled")
    draft.write(out, [] if whole else rows)
    flat = tuple(atom for dim in dims for atom in draft.atoms.resolve(dim))
    draft.kernel.extra_saved = [(flat, tracer.dtype_of(logits))]
    draft.kernel.launches = 2
    draft.end()


def element_loss(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Element-wise losses: squared error, binary cross entropy."""
    sources = tensors_in([args, kwargs])[:2]
    draft = tracer.kernel("aten.loss", "loss", *sources)
    dims = draft.dims(0)
    for at in range(min(sources[-1].dim(), len(dims))):
        draft.join(len(sources) - 1, at, dims[at])
    whole = out.dim() == 0
    for dim in draft.dims(0):
        for atom in dim:
            role = "batch" if draft.atoms.hints[atom] == "b" else "m"
            draft.role((atom,), role, **({"kind": "reduced", "reduction": "mean"} if whole else {}))
    draft.save(0)
    draft.write(out, [] if whole else draft.dims(0))
    draft.end()


def embedding_bag(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """Sum or mean of looked-up rows per bag."""
    given = bound(args, kwargs, "input weight offsets")
    index, table, offsets = given["input"], given["weight"], given.get("offsets")
    bags = index if offsets is None else offsets
    draft = tracer.kernel("aten.embedding_bag", "embedding", index, table)
    vocab, width = draft.dims(1)
    rows = tracer.value(bags).dims[0] if offsets is None or bags.shape[0] == out.shape[0] else ()
    batch_roles(draft, [rows], "token")
    if offsets is None:
        draft.role(draft.dims(0)[1], "token", kind="reduced", reduction="sum")
    draft.role(vocab, "vocab", kind="lookup", reduction="sum")
    draft.role(width, "hidden")
    draft.save(0)
    draft.write(out, [rows, width])
    draft.end()


def dispatched_norm(
    tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[torch.Tensor]
) -> None:
    """Norms called below function level: every dim but the first is coupled."""
    del kwargs
    source: torch.Tensor = args[0]
    weights = [item for item in args[1:] if isinstance(item, torch.Tensor) and item.requires_grad]
    draft = tracer.kernel("aten.native_norm", "normalization", source, *weights)
    for operand in range(1, len(weights) + 1):
        if draft.dims(operand) and weights[operand - 1].shape[-1] == source.shape[-1]:
            draft.join(0, -1, draft.dims(operand)[-1])
    coupled(draft, range(1, source.dim()), role="hidden")
    draft.write(out[0], draft.dims(0))
    draft.end()
    for statistics in out[1:]:
        constant(tracer, (), {}, statistics)


def dispatched_attention(
    tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Sequence[torch.Tensor]
) -> None:
    """Fused attention called below function level."""
    causal = kwargs.get("is_causal", next((item for item in args[3:] if item is True), False))
    attention(tracer, args[:3], {"is_causal": causal}, out[0])
    for other in tensors_in(out[1:]):
        constant(tracer, (), {}, other)


GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
SAVED_PER_HIDDEN = {"lstm": 6.0, "gru": 5.0, "rnn_tanh": 1.0, "rnn_relu": 1.0}
"""Reserve space per step and hidden unit: gates, cell state and its tanh."""


def recurrent(tracer: Tracer, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
    """LSTM, GRU, RNN: one composite kernel per layer and direction."""
    del kwargs
    source, _, weights, has_bias, layers, _, _, bidirectional, batch_first = args[:9]
    kind = _cell(weights)
    directions = 2 if bidirectional else 1
    per_layer = len(weights) // (layers * directions)
    current = source
    for layer in range(layers):
        results = []
        last = layer == layers - 1
        for direction in range(directions):
            start = (layer * directions + direction) * per_layer
            group = weights[start : start + per_layer]
            size = weights[start + 1].shape[1]
            result = (
                out[0]
                if last and directions == 1
                else current.new_empty((*current.shape[:2], size)).requires_grad_()
            )
            _layer(tracer, kind, current, group, result, batch_first=batch_first)
            results.append(result)
        current = results[0] if directions == 1 else _both(tracer, results, out[0], last=last)
    del has_bias
    value = tracer.value(out[0])
    time = 1 if batch_first else 0
    rest = [dim for at, dim in enumerate(value.dims) if at != time]
    for state in out[1:]:
        lead = () if state.shape[0] == 1 else tracer.atoms.fresh(state.shape[0], splittable=False)
        dims = [lead, rest[0], rest[1]]
        if tracer.shape(dims) != tuple(state.shape):
            dims[-1] = tracer.atoms.fresh(state.shape[-1], splittable=False)
        tracer.bind(state, Value(note=value.note, dims=dims))


def _cell(weights: Sequence[torch.Tensor]) -> str:
    gates = weights[1].shape[0] // weights[1].shape[1]
    return {4: "lstm", 3: "gru"}.get(gates, "rnn_tanh")


def _both(tracer: Tracer, parts: list[torch.Tensor], out: torch.Tensor, *, last: bool) -> Any:
    from planner.tracing.rules_kernel import concatenate

    whole = out if last else torch.empty(out.shape).requires_grad_()
    concatenate(tracer, (parts, -1), {}, whole)
    return whole


def _layer(
    tracer: Tracer,
    kind: str,
    source: torch.Tensor,
    weights: Sequence[torch.Tensor],
    out: torch.Tensor,
    *,
    batch_first: bool,
) -> None:
    draft = tracer.kernel(f"aten.{kind}", "recurrent", source, *weights)
    atoms, gates = tracer.atoms, GATES[kind]
    size = weights[1].shape[1]
    gate, hidden = cut(tracer, [draft.dims(1)[0]], (gates, size))
    for operand in range(2, len(weights) + 1):
        draft.join(operand, 0, (*gate, *hidden))
    draft.join(0, 2, draft.dims(1)[1])
    inner, state = draft.dims(0)[2], draft.dims(2)[1]
    atoms.forbid_split(gate)
    sample, time = draft.dims(0)[:2] if batch_first else draft.dims(0)[1::-1]
    for atom in hidden:
        atoms.hints[atom] = "recurrent"
    batch_roles(draft, [sample], "batch")
    draft.role(time, "time", kind="sequential")
    draft.role(gate, "gate", kind="coupled")
    draft.role(hidden, "hidden", kind="coupled")
    draft.role(inner, "k", kind="coupled")
    draft.role(state, "k", kind="coupled")
    rows = (*sample, *time)
    kernel = draft.kernel
    kernel.flops = [
        (2.0, (*rows, *gate, *hidden, *inner)),
        (2.0, (*rows, *gate, *hidden, *state)),
    ]
    sizes = (atoms.total(atoms.resolve(inner)), atoms.total(atoms.resolve(state)))
    kernel.backward_factor = 2.0
    if not draft.operands[0].note.requires_grad:
        kernel.backward_factor = 1.0 + sizes[1] / sum(sizes)
    kernel.roles_mn_k = ((), sample, (*gate, *hidden), inner)
    kernel.sequential_steps = source.shape[1 if batch_first else 0]
    kernel.extra_saved = [((*rows, *hidden), "compute")] * int(SAVED_PER_HIDDEN[kind])
    draft.save(0)
    draft.write(out, [sample, time, hidden] if batch_first else [time, sample, hidden])
    draft.end()


COMPOSITES: dict[str, Call] = {
    "scaled_dot_product_attention": attention, "layer_norm": layer_norm, "rms_norm": rms_norm,
    "batch_norm": batch_norm, "group_norm": group_norm, "dropout": dropout,
    "cross_entropy": cross_entropy, "mse_loss": element_loss, "l1_loss": element_loss,
    "smooth_l1_loss": element_loss, "binary_cross_entropy": element_loss,
    "binary_cross_entropy_with_logits": element_loss, "embedding_bag": embedding_bag,
    "lstm": recurrent, "gru": recurrent, "rnn_tanh": recurrent, "rnn_relu": recurrent,
    "linear": linear, "grouped_mm": grouped_mm, "_grouped_mm": grouped_mm,
}  # fmt: skip
DISPATCHED: dict[str, Call] = {
    "native_layer_norm": dispatched_norm, "native_batch_norm": dispatched_norm,
    "_native_batch_norm_legit": dispatched_norm, "native_group_norm": dispatched_norm,
    "_fused_rms_norm": dispatched_norm,
    "_scaled_dot_product_flash_attention_for_cpu": dispatched_attention,
    "_scaled_dot_product_flash_attention": dispatched_attention,
    "_scaled_dot_product_efficient_attention": dispatched_attention,
    "_scaled_dot_product_cudnn_attention": dispatched_attention,
}  # fmt: skip
