"""GPT-2 and GPT-3 as a chain of embedding, blocks and head."""

import torch
from torch import nn

from planner.models.attention import FeedForward, SelfAttention, initialise, transformer_chain
from planner.models.data import cross_entropy, token_batch
from planner.models.positions import positions_of
from planner.models.sizes import GptSize
from planner.models.source import Batch

chain = transformer_chain
loss = cross_entropy


class GptEmbedding(nn.Module):
    """Token plus learned position embedding."""

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.token = nn.Embedding(size.vocab_size, size.hidden_size)
        self.position = nn.Embedding(size.max_positions, size.hidden_size)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, hidden]``."""
        positions = positions_of(tokens.shape[1], device=tokens.device)
        embedded: torch.Tensor = self.dropout(self.token(tokens) + self.position(positions))
        return embedded


class GptBlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.hidden_size)
        self.attention = SelfAttention(
            hidden_size=size.hidden_size, head_size=size.head_size, causal=True,
            dropout=size.dropout,
        )  # fmt: skip
        self.attention_dropout = nn.Dropout(size.dropout)
        self.ffn_norm = nn.LayerNorm(size.hidden_size)
        self.ffn = FeedForward(
            hidden_size=size.hidden_size, ffn_size=size.ffn_multiple * size.hidden_size,
            activation=nn.GELU(approximate="tanh"),
        )  # fmt: skip
        self.ffn_dropout = nn.Dropout(size.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to the same."""
        hidden = hidden + self.attention_dropout(self.attention(self.attention_norm(hidden)))
        added: torch.Tensor = hidden + self.ffn_dropout(self.ffn(self.ffn_norm(hidden)))
        return added


class GptHead(nn.Module):
    """Final norm and projection on the vocabulary."""

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.hidden_size)
        self.projection = nn.Linear(size.hidden_size, size.vocab_size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to ``[batch, sequence, vocab]``."""
        logits: torch.Tensor = self.projection(self.norm(hidden))
        return logits


class Gpt(nn.Module):
    """The whole model; parameters as in Radford et al. 2019 where sizes are GPT-2's."""

    def __init__(self, size: GptSize) -> None:
        super().__init__()
        self.embedding = GptEmbedding(size)
        self.blocks = nn.ModuleList(GptBlock(size) for _ in range(size.num_layers))
        self.head = GptHead(size)
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


def build(name: str, size: GptSize) -> nn.Module:
    """Return the model."""
    return Gpt(size)


def make_batch(size: GptSize, batch_size: int, sequence_length: int, seed: int) -> Batch:
    """Return made-up tokens."""
    return token_batch(
        batch_size, sequence_length, seed,
        vocab_size=size.vocab_size, max_positions=size.max_positions,
    )  # fmt: skip
