"""A recurrent language model, as a chain of embedding, blocks and head."""

import torch
from torch import nn

from planner.models.attention import transformer_chain
from planner.models.data import cross_entropy, token_batch
from planner.models.sizes import LstmSize
from planner.models.source import Batch

chain = transformer_chain
loss = cross_entropy
_INIT_RANGE = 0.04
"""Weights are uniform in plus or minus this, arXiv:1409.2329 section 4.1."""


class LstmEmbedding(nn.Module):
    """Token embedding with dropout."""

    def __init__(self, size: LstmSize) -> None:
        super().__init__()
        self.token = nn.Embedding(size.vocab_size, size.hidden_size)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, hidden]``."""
        embedded: torch.Tensor = self.dropout(self.token(tokens))
        return embedded


class LstmBlock(nn.Module):
    """One recurrent layer over the whole sequence; the state starts at zero and is dropped."""

    def __init__(self, size: LstmSize) -> None:
        super().__init__()
        cells = nn.GRU if size.gated_units else nn.LSTM
        self.cells = cells(size.hidden_size, size.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to the same."""
        states, _ = self.cells(hidden)
        dropped: torch.Tensor = self.dropout(states)
        return dropped


class Lstm(nn.Module):
    """The whole model."""

    def __init__(self, size: LstmSize) -> None:
        super().__init__()
        self.embedding = LstmEmbedding(size)
        self.blocks = nn.ModuleList(LstmBlock(size) for _ in range(size.num_layers))
        self.head = nn.Linear(size.hidden_size, size.vocab_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -_INIT_RANGE, _INIT_RANGE)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence]`` ids to ``[batch, sequence, vocab]`` logits."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(hidden)
        return logits


def build(name: str, size: LstmSize) -> nn.Module:
    """Return the model."""
    return Lstm(size)


def make_batch(size: LstmSize, batch_size: int, sequence_length: int, seed: int) -> Batch:
    """Return made-up tokens."""
    return token_batch(batch_size, sequence_length, seed, vocab_size=size.vocab_size)
