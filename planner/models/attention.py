"""The parts that our transformers share."""

import torch
from torch import nn
from torch.nn import functional

INIT_STD = 0.02
"""Standard deviation of weights, GPT-2 and BERT [1]."""


class AttentionCore(nn.Module):
    """Attention proper, without weights, over whatever heads it is handed.

    Inputs are ``[batch, sequence, heads, head_size]``; the output has the heads flattened,
    ``[batch, sequence, heads * head_size]``. Fewer key-value heads than query heads are grouped
    queries. Being a module of its own, it is where a plan may exchange positions for heads.
    """

    def __init__(self, *, causal: bool, dropout: float) -> None:
        super().__init__()
        self.causal = causal
        self.dropout = dropout

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Return the attended values."""
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
            enable_gqa=query.shape[2] != key.shape[2],
        )
        return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention with separate query, key and value projections, all with biases.

    Heads are counted from the projection's output (a view with -1), so that a module whose
    projections were cut to some of the heads still works.
    """

    def __init__(self, *, hidden_size: int, head_size: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.head_size = head_size
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.core = AttentionCore(causal=causal, dropout=dropout)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what each position gathers from the others."""
        heads = (*hidden.shape[:2], -1, self.head_size)
        query = self.query(hidden).view(heads)
        key = self.key(hidden).view(heads)
        value = self.value(hidden).view(heads)
        attended: torch.Tensor = self.output(self.core(query, key, value))
        return attended


class FeedForward(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, *, hidden_size: int, ffn_size: int, activation: nn.Module) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, ffn_size)
        self.activation = activation
        self.down = nn.Linear(ffn_size, hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Widen, activate, narrow."""
        narrowed: torch.Tensor = self.down(self.activation(self.up(hidden)))
        return narrowed


def initialise(model: nn.Module) -> None:
    """Draw matrices and embeddings from N(0, 0.02) and clear biases; fake tensors allow it."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def transformer_chain(model: nn.Module) -> tuple[str, ...]:
    """Return ``embedding``, every block and ``head`` in order."""
    blocks = model.get_submodule("blocks")
    return ("embedding", *(f"blocks.{name}" for name, _ in blocks.named_children()), "head")
