"""BERT with its masked-language head, as a chain of embedding, blocks and head."""

from dataclasses import replace

import torch
from torch import nn

from planner.errors import ModelError
from planner.models.attention import FeedForward, SelfAttention, initialise, transformer_chain
from planner.models.data import cross_entropy, token_batch
from planner.models.positions import positions_of
from planner.models.sizes import BertSize
from planner.models.source import Batch

chain = transformer_chain
loss = cross_entropy
_NORM_EPS = 1e-12


class BertEmbedding(nn.Module):
    """Token, position and (always the first) segment embedding, normed."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.token = nn.Embedding(size.vocab_size, size.hidden_size)
        self.position = nn.Embedding(size.max_positions, size.hidden_size)
        self.token_type = nn.Embedding(size.num_token_types, size.hidden_size)
        self.norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, hidden]``."""
        positions = positions_of(tokens.shape[1], device=tokens.device)
        added = self.token(tokens) + self.position(positions)
        added = added + self.token_type(torch.zeros_like(positions))
        embedded: torch.Tensor = self.dropout(self.norm(added))
        return embedded


class BertBlock(nn.Module):
    """Attention and feed-forward, each added to its input and then normed."""

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.attention = SelfAttention(
            hidden_size=size.hidden_size, head_size=size.head_size, causal=False,
            dropout=size.dropout,
        )  # fmt: skip
        self.attention_dropout = nn.Dropout(size.dropout)
        self.attention_norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)
        self.ffn = FeedForward(
            hidden_size=size.hidden_size, ffn_size=4 * size.hidden_size, activation=nn.GELU()
        )
        self.ffn_dropout = nn.Dropout(size.dropout)
        self.ffn_norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to the same."""
        hidden = self.attention_norm(hidden + self.attention_dropout(self.attention(hidden)))
        normed: torch.Tensor = self.ffn_norm(hidden + self.ffn_dropout(self.ffn(hidden)))
        return normed


class BertHead(nn.Module):
    """Transform, activation, norm and projection on the vocabulary, of the masked positions.

    Made-up batches mask the first positions, so that choosing them is a slice.
    """

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.num_predictions = size.num_predictions
        self.transform = nn.Linear(size.hidden_size, size.hidden_size)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)
        self.projection = nn.Linear(size.hidden_size, size.vocab_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to ``[batch, predictions, vocab]``."""
        if self.num_predictions:
            hidden = hidden[:, : self.num_predictions]
        normed = self.norm(self.activation(self.transform(hidden)))
        logits: torch.Tensor = self.projection(normed)
        return logits


class Bert(nn.Module):
    """The whole model; the projection is the token embedding, with a bias of its own.

    A model with labels has a linear head on every position instead.
    """

    def __init__(self, size: BertSize) -> None:
        super().__init__()
        self.embedding = BertEmbedding(size)
        self.blocks = nn.ModuleList(BertBlock(size) for _ in range(size.num_layers))
        labels = size.num_labels
        self.head = nn.Linear(size.hidden_size, labels) if labels else BertHead(size)
        initialise(self)
        if isinstance(self.head, BertHead):
            self.head.projection.weight = self.embedding.token.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, vocab]`` logits."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(hidden)
        return logits


def build(name: str, size: BertSize) -> nn.Module:
    """Return the model."""
    return Bert(size)


def make_batch(size: BertSize, batch_size: int, sequence_length: int, seed: int) -> Batch:
    """Return made-up tokens, and what is predicted: the tokens, or a label per position.

    Raises
    ------
    ModelError
        If the sequence is shorter than the masked positions, or longer than the model's.
    """
    if size.num_predictions > sequence_length:
        raise ModelError(
            f"num_predictions = {size.num_predictions}: the sequence has {sequence_length} "
            "positions; predict fewer or give a longer sequence"
        )
    batch = token_batch(
        batch_size, sequence_length, seed,
        vocab_size=size.vocab_size, max_positions=size.max_positions,
    )  # fmt: skip
    tokens = batch.inputs[0]
    if size.num_labels:
        return replace(batch, targets=tokens % size.num_labels)
    return replace(batch, targets=tokens[:, : size.num_predictions or sequence_length].contiguous())
