"""Attention of some positions over some keys, with the log-sum-exp that merges several such parts.

The backward pass takes output and log-sum-exp of *all* keys, and then gives the share of these keys
in the gradients (Dao et al. 2022, FlashAttention, arXiv:2205.14135, appendix B.2): softmax is
recomputed from the log-sum-exp.
"""

import torch

_ATEN = torch.ops.aten
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attended values and the log-sum-exp of the scores, ``[samples, heads, positions]``.

    Parameters
    ----------
    query, key, value : Tensor
        ``[samples, heads, positions, head]``; several query heads may share one of keys.
    is_causal : bool
        Whether a position sees no later key; as many positions as keys then.
    scale : float
        Of the scores [1].
    """
    shared = query.shape[1] // key.shape[1]
    key, value = _per_head(key, shared), _per_head(value, shared)
    if not _is_fused(query, value):
        return _plain(query, key, value, is_causal=is_causal, scale=scale)
    if query.device.type == "cpu":
        found = _ATEN._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, scale=scale
        )
    else:
        found = _ATEN._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, scale=scale
        )
    return found[0], found[1]


def attend_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    is_causal: bool,
    scale: float,
) -> Gradients:
    """Return the gradients of query, key and value that go through these keys.

    Parameters
    ----------
    gradient, out, log_sum : Tensor
        Gradient of the attended values, these, and the log-sum-exp, over all keys.
    query, key, value, is_causal, scale
        As in :func:`attend`.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = _per_head(key, shared), _per_head(value, shared)
    if not _is_fused(query, value):
        found = _plain_backward(
            gradient, query, key, value, out=out, log_sum=log_sum, is_causal=is_causal, scale=scale
        )
    elif query.device.type == "cpu":
        found = _ATEN._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, out, log_sum, 0.0, is_causal, scale=scale
        )
    else:
        nothing, state = None, torch.zeros(2, dtype=torch.uint64, device=query.device)
        found = _ATEN._scaled_dot_product_flash_attention_backward(
            gradient, query, key, value, out, log_sum, nothing, nothing, query.shape[2],
            key.shape[2], 0.0, is_causal, state, state[:0], scale=scale,
        )  # fmt: skip
    of_query, of_key, of_value = found
    return of_query, _per_key_head(of_key, shared), _per_key_head(of_value, shared)


def _is_fused(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch has a kernel that hands out the log-sum-exp: on CUDA for 16 bits alone."""
    if query.shape[-1] != value.shape[-1]:
        return False
    return query.device.type == "cpu" or query.dtype in (torch.float16, torch.bfloat16)


def _per_head(tensor: torch.Tensor, shared: int) -> torch.Tensor:
    return tensor if shared == 1 else tensor.repeat_interleave(shared, dim=1)


def _per_key_head(gradient: torch.Tensor, shared: int) -> torch.Tensor:
    return (
        gradient
        if shared == 1
        else gradient.view(gradient.shape[0], -1, shared, *gradient.shape[2:]).sum(2)
    )


def _plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = _scores(query, key, is_causal=is_causal, scale=scale)
    log_sum = scores.logsumexp(-1)
    return (scores - log_sum.unsqueeze(-1)).exp().to(value.dtype) @ value, log_sum


def _plain_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
    out: torch.Tensor, log_sum: torch.Tensor, is_causal: bool, scale: float,
) -> Gradients:  # fmt: skip
    scores = _scores(query, key, is_causal=is_causal, scale=scale)
    shares = (scores - log_sum.unsqueeze(-1)).exp()
    along = (gradient * out).sum(-1, keepdim=True).float()
    of_scores = shares * ((gradient @ value.mT).float() - along) * scale
    of_value = shares.to(gradient.dtype).mT @ gradient
    of_scores = of_scores.to(query.dtype)
    return of_scores @ key, of_scores.mT @ query, of_value


def _scores(
    query: torch.Tensor, key: torch.Tensor, *, is_causal: bool, scale: float
) -> torch.Tensor:
    scores = (query @ key.mT).float() * scale
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(later, float("-inf"))
    return scores
