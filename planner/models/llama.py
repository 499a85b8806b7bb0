"""Llama 3 as a chain of embedding, blocks and head."""

import torch
from torch import nn

from planner.models.attention import AttentionCore, initialise, transformer_chain
from planner.models.data import cross_entropy, token_batch
from planner.models.positions import positions_of
from planner.models.sizes import LlamaSize
from planner.models.source import Batch

chain = transformer_chain
loss = cross_entropy


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in fp32, arXiv:1910.07467 equation 4."""

    def __init__(self, hidden_size: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scale every position to unit root mean square."""
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(hidden.dtype) * self.weight


class Rotary(nn.Module):
    """Rotary positions, arXiv:2104.09864 equation 34, recomputed from the sequence length."""

    def __init__(self, *, head_size: int, theta: float) -> None:
        super().__init__()
        self.head_size = head_size
        self.theta = theta

    def forward(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate ``[batch, sequence, heads, head_size]`` queries and keys."""
        half = torch.arange(0, self.head_size, 2, device=query.device, dtype=torch.float32)
        frequency = self.theta ** (-half / self.head_size)
        position = positions_of(query.shape[1], device=query.device, dtype=torch.float32)
        angle = torch.outer(position, frequency)
        cosine = torch.cat((angle, angle), dim=-1).cos().to(query.dtype)[:, None, :]
        sine = torch.cat((angle, angle), dim=-1).sin().to(query.dtype)[:, None, :]
        return (
            query * cosine + _rotate_half(query) * sine,
            key * cosine + _rotate_half(key) * sine,
        )


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class LlamaAttention(nn.Module):
    """Causal self-attention with grouped queries, no biases."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.head_size = size.head_size
        kv_size = size.num_kv_heads * size.head_size
        self.query = nn.Linear(size.hidden_size, size.hidden_size, bias=False)
        self.key = nn.Linear(size.hidden_size, kv_size, bias=False)
        self.value = nn.Linear(size.hidden_size, kv_size, bias=False)
        self.rotary = Rotary(head_size=size.head_size, theta=size.rope_theta)
        self.core = AttentionCore(causal=True, dropout=size.dropout)
        self.output = nn.Linear(size.hidden_size, size.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what each position gathers from those before it."""
        heads = (*hidden.shape[:2], -1, self.head_size)
        query, key = self.rotary(self.query(hidden).view(heads), self.key(hidden).view(heads))
        value = self.value(hidden).view(heads)
        attended: torch.Tensor = self.output(self.core(query, key, value))
        return attended


class GatedFeedForward(nn.Module):
    """SwiGLU, arXiv:2002.05202 equation 6, without biases."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.gate = nn.Linear(size.hidden_size, size.ffn_size, bias=False)
        self.up = nn.Linear(size.hidden_size, size.ffn_size, bias=False)
        self.activation = nn.SiLU()
        self.down = nn.Linear(size.ffn_size, size.hidden_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Widen twice, gate, narrow."""
        narrowed: torch.Tensor = self.down(self.activation(self.gate(hidden)) * self.up(hidden))
        return narrowed


class LlamaBlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(size.hidden_size, eps=size.norm_eps)
        self.attention = LlamaAttention(size)
        self.ffn_norm = RmsNorm(size.hidden_size, eps=size.norm_eps)
        self.ffn = GatedFeedForward(size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to the same."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        added: torch.Tensor = hidden + self.ffn(self.ffn_norm(hidden))
        return added


class LlamaEmbedding(nn.Module):
    """Token embedding alone; positions enter in attention."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.token = nn.Embedding(size.vocab_size, size.hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, hidden]``."""
        embedded: torch.Tensor = self.token(tokens)
        return embedded


class LlamaHead(nn.Module):
    """Final norm and projection on the vocabulary."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.norm = RmsNorm(size.hidden_size, eps=size.norm_eps)
        self.projection = nn.Linear(size.hidden_size, size.vocab_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to ``[batch, sequence, vocab]``."""
        logits: torch.Tensor = self.projection(self.norm(hidden))
        return logits


class Llama(nn.Module):
    """The whole model, sizes of arXiv:2407.21783 table 3 in the presets."""

    def __init__(self, size: LlamaSize) -> None:
        super().__init__()
        self.embedding = LlamaEmbedding(size)
        self.blocks = nn.ModuleList(LlamaBlock(size) for _ in range(size.num_layers))
        self.head = LlamaHead(size)
        initialise(self)
        if size.tied:
            self.head.projection.weight = self.embedding.token.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, vocab]`` logits."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(hidden)
        return logits


def build(name: str, size: LlamaSize) -> nn.Module:
    """Return the model."""
    return Llama(size)


def make_batch(size: LlamaSize, batch_size: int, sequence_length: int, seed: int) -> Batch:
    """Return made-up tokens."""
    return token_batch(batch_size, sequence_length, seed, vocab_size=size.vocab_size)
