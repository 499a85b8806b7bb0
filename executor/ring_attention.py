"""Attention over positions that ranks hold apart: keys and values travel round a ring.

Liu et al. 2023, "Ring Attention with Blockwise Transformers for Near-Infinite Context",
arXiv:2310.01889, section 3. A rank holds one piece of positions from either end of the sequence, so
that causal attention gives all ranks equal work (arXiv:2407.21783, section 3.3.2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from executor.attention_kernels import attend, attend_backward
from executor.errors import RunError
from executor.recording import Recorder

_POSITIONS_DIM = 2
_ALL = slice(None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ring:
    """The ranks that share the positions of each sample, in order."""

    group: dist.ProcessGroup
    recorder: Recorder

    @property
    def size(self) -> int:
        """Ranks [1]."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """The place of this rank."""
        return self.group.rank()

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 (torch's signature)
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """Return what this rank's positions gather from those of all ranks.

        Arguments are those of ``torch.nn.functional.scaled_dot_product_attention``, of this rank's
        positions: ``[samples, heads, positions, head]``.

        Raises
        ------
        RunError
            If attention has a mask, or drops probabilities.
        """
        del enable_gqa  # head counts tell
        if attn_mask is not None:
            raise RunError(
                f"cp={self.size}: attention with a mask cannot go round a ring of ranks, expected "
                "causal or full attention; plan with cp=1"
            )
        if dropout_p:
            raise RunError(
                f"cp={self.size}: attention drops probabilities (dropout {dropout_p:g}), which "
                "parts of a ring would not do alike; set the model's attention dropout to 0"
            )
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        apply: Any = _RingAttention.apply
        attended: torch.Tensor = apply(query, key, value, self, is_causal, scale)
        return attended

    def pass_on(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Send a tensor to the next rank; return what waits for that of the rank before."""
        arrived = torch.empty_like(tensor)
        rank = self.rank
        works = dist.batch_isend_irecv([
            dist.P2POp(dist.isend, tensor, group=self.group, group_peer=(rank + 1) % self.size),
            dist.P2POp(dist.irecv, arrived, group=self.group, group_peer=(rank - 1) % self.size),
        ])  # fmt: skip

        def wait() -> torch.Tensor:
            with self.recorder.collective("send_recv", axis="cp", tensor=tensor):
                for work in works:
                    if work is not None:
                        work.wait()
            return arrived

        return wait

    def part(self, step: int, *, num_positions: int, is_causal: bool) -> "_Part":
        """Return which positions meet which keys when those of ``step`` ranks before are here."""
        half = num_positions // 2
        if not is_causal or step == 0:
            return _Part(rows=_ALL, keys=_ALL, is_causal=is_causal)
        if step <= self.rank:  # of a rank before: its first piece is seen by all, its last by none
            return _Part(rows=_ALL, keys=slice(None, half), is_causal=False)
        return _Part(rows=slice(half, None), keys=_ALL, is_causal=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Positions of this rank, and keys of those that are here, which meet."""

    rows: slice
    keys: slice
    is_causal: bool


def own_positions(length: int, *, size: int, rank: int) -> torch.Tensor:
    """Return which positions a rank of a ring holds: one piece from either end.

    Parameters
    ----------
    length : int
        Positions of a sample, a multiple of ``2 * size`` [1].
    size : int
        Ranks of the ring [1].
    rank : int
        Place in the ring.

    Examples
    --------
    >>> own_positions(8, size=2, rank=0).tolist(), own_positions(8, size=2, rank=1).tolist()
    ([0, 1, 6, 7], [2, 3, 4, 5])
    """
    pieces = torch.arange(length).chunk(2 * size)
    return torch.cat((pieces[rank], pieces[2 * size - 1 - rank]))


class _RingAttention(torch.autograd.Function):
    """Forward: keys and values go round once. Backward: once more, and their gradients behind."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ring: Ring,
        is_causal: bool, scale: float,  # noqa: FBT001 (autograd passes positions)
    ) -> torch.Tensor:  # fmt: skip
        held = torch.cat((key, value), dim=-1)
        out = query.new_zeros(*query.shape[:-1], value.shape[-1], dtype=torch.float32)
        log_sum = out.new_full(query.shape[:-1], float("-inf"))
        for step in range(ring.size):
            coming = ring.pass_on(held) if step < ring.size - 1 else None
            part = ring.part(step, num_positions=query.shape[_POSITIONS_DIM], is_causal=is_causal)
            keys, values = _split(held[:, :, part.keys], key)
            found, found_log = attend(
                query[:, :, part.rows], keys, values, is_causal=part.is_causal, scale=scale
            )
            _merge(out[:, :, part.rows], log_sum[:, :, part.rows], found, found_log)
            held = held if coming is None else coming()
        attended = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, attended, log_sum)
        ctx.how = (ring, is_causal, scale)
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        query, key, value, out, log_sum = ctx.saved_tensors
        ring, is_causal, scale = ctx.how
        held = torch.cat((key, value), dim=-1)
        of_query, own, travelling = torch.zeros_like(query), held, torch.zeros_like(held)
        behind: Callable[[], torch.Tensor] | None = None
        for step in range(ring.size):
            coming = ring.pass_on(held) if step < ring.size - 1 else None
            part = ring.part(step, num_positions=query.shape[_POSITIONS_DIM], is_causal=is_causal)
            rows, keys = part.rows, part.keys
            here = _split(held[:, :, keys], key)
            found = attend_backward(
                gradients[0][:, :, rows], query[:, :, rows], *here, out=out[:, :, rows],
                log_sum=log_sum[:, :, rows], is_causal=part.is_causal, scale=scale,
            )  # fmt: skip
            of_query[:, :, rows] += found[0]
            share = torch.cat(found[1:], dim=-1)
            if step == 0:
                own = share
            else:  # what ranks before have added comes with the keys, and goes home in the end
                travelling = travelling if behind is None else behind()
                travelling[:, :, keys] += share
                behind = ring.pass_on(travelling)
            held = held if coming is None else coming()
        of_key, of_value = _split(own if behind is None else own + behind(), key)
        return of_query, of_key, of_value, None, None, None


def _split(held: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    width = key.shape[-1]
    return held[..., :width], held[..., width:]


def _merge(
    out: torch.Tensor, log_sum: torch.Tensor, found: torch.Tensor, found_log: torch.Tensor
) -> None:
    """Take a part into what was attended so far, in place."""
    total = torch.logaddexp(log_sum, found_log)
    out.mul_((log_sum - total).exp().unsqueeze(-1))
    out.add_(found * (found_log - total).exp().unsqueeze(-1))
    log_sum.copy_(total)
