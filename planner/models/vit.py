"""The vision transformer, as a chain of embedding, blocks and head."""

import torch
from torch import nn

from planner.models.attention import FeedForward, SelfAttention, initialise, transformer_chain
from planner.models.data import cross_entropy
from planner.models.images import image_batch
from planner.models.sizes import VitSize

chain = transformer_chain
loss = cross_entropy
make_batch = image_batch
_NORM_EPS = 1e-6


class VitEmbedding(nn.Module):
    """Patches by a strided convolution, a class token in front, learned positions."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        num_patches = (size.image_size // size.patch_size) ** 2
        self.patches = nn.Conv2d(3, size.hidden_size, size.patch_size, stride=size.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size.hidden_size))
        self.position = nn.Parameter(torch.zeros(1, num_patches + 1, size.hidden_size))
        nn.init.normal_(self.position, std=0.02)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, 3, height, width]`` to ``[batch, 1 + patches, hidden]``."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        first = self.class_token.expand(images.shape[0], -1, -1)
        embedded: torch.Tensor = self.dropout(torch.cat((first, patches), dim=1) + self.position)
        return embedded


class VitBlock(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)
        self.attention = SelfAttention(
            hidden_size=size.hidden_size, head_size=size.head_size, causal=False,
            dropout=size.dropout,
        )  # fmt: skip
        self.ffn_norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)
        self.ffn = FeedForward(
            hidden_size=size.hidden_size, ffn_size=4 * size.hidden_size, activation=nn.GELU()
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to the same."""
        hidden = hidden + self.attention(self.attention_norm(hidden))
        added: torch.Tensor = hidden + self.ffn(self.ffn_norm(hidden))
        return added


class VitHead(nn.Module):
    """Norm, class token, classifier."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.hidden_size, eps=_NORM_EPS)
        self.classifier = nn.Linear(size.hidden_size, size.num_classes)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[batch, sequence, hidden]`` to ``[batch, classes]``."""
        logits: torch.Tensor = self.classifier(self.norm(hidden)[:, 0])
        return logits


class Vit(nn.Module):
    """The whole model."""

    def __init__(self, size: VitSize) -> None:
        super().__init__()
        self.embedding = VitEmbedding(size)
        self.blocks = nn.ModuleList(VitBlock(size) for _ in range(size.num_layers))
        self.head = VitHead(size)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``[batch, 3, height, width]`` to ``[batch, classes]``."""
        hidden = self.embedding(images)
        for block in self.blocks:
            hidden = block(hidden)
        logits: torch.Tensor = self.head(hidden)
        return logits


def build(name: str, size: VitSize) -> nn.Module:
    """Return the model."""
    return Vit(size)
