"""Small modules as users write them, beyond the shipped models."""

import torch
import torch.nn.functional as F
from torch import nn

from planner.models.source import Batch, ModelSource


def token_source(build, *, width=64, length=16):
    return ModelSource(
        source=build.__name__,
        name=build.__name__,
        default_sequence_length=length,
        build=build,
        make_batch=lambda samples, tokens, _seed: Batch(
            inputs=(torch.randn(samples, tokens, width),), keywords={}, targets=None
        ),
        loss=lambda out, _targets: out.float().pow(2).mean(),
        chain=lambda _module: None,
    )


def image_source(build, *, size=32):
    return ModelSource(
        source=build.__name__,
        name=build.__name__,
        default_sequence_length=1,
        build=build,
        make_batch=lambda samples, _tokens, _seed: Batch(
            inputs=(torch.randn(samples, 3, size, size),),
            keywords={},
            targets=torch.randint(0, 10, (samples,)),
        ),
        loss=lambda out, targets: F.cross_entropy(out.float(), targets),
        chain=lambda _module: None,
    )


class TorchAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.output = nn.Linear(64, 64)

    def forward(self, x):
        return self.output(self.attention(x, x, x, need_weights=False)[0] + x)


class EagerAttention(nn.Module):
    """Scores, mask and softmax written out: keys get a name of their own."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        samples, tokens, width = x.shape
        query, key, value = (
            layer(x).view(samples, tokens, 4, 16).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / 4
        future = torch.ones(tokens, tokens).triu(1).bool()
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).reshape(samples, tokens, width)) + x


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Parameter(torch.randn(4, 64, 16))
        self.out = nn.Parameter(torch.randn(4, 16, 64))

    def forward(self, x):
        return torch.einsum("bhse,hed->bsd", torch.einsum("bsd,hde->bhse", x, self.into), self.out)


class SoftExperts(nn.Module):
    """Every expert sees every token; a gate weighs them."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.up = nn.Parameter(torch.randn(4, 64, 128))
        self.down = nn.Parameter(torch.randn(4, 128, 64))

    def forward(self, x):
        hidden = torch.einsum("bsd,edf->ebsf", x, self.up).relu()
        each = torch.einsum("ebsf,efd->ebsd", hidden, self.down)
        return torch.einsum("ebsd,bse->bsd", each, self.gate(x).softmax(-1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.lower = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.SiLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.head = nn.Conv2d(32, 10, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.head(torch.cat([skip, self.up(self.lower(skip))], 1)).mean((2, 3))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 16, 3, 1, 1, groups=16),
            nn.Hardswish(),
            nn.Conv2d(16, 32, 3, 1, 1, groups=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    def forward(self, x):
        return self.layers(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(64, 32, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        return self.head(self.cells(x)[0])


class LoopedExperts(nn.Module):
    """Routing by masks: shapes depend on values, which cannot be traced."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        chosen = self.gate(x).topk(2, -1).indices
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = (chosen == number).any(-1)
            out[mask] += expert(x[mask])
        return out


def torch_encoder():
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


SOURCES = {
    "torch_attention": token_source(TorchAttention),
    "eager_attention": token_source(EagerAttention),
    "einsum": token_source(Einsum),
    "soft_experts": token_source(SoftExperts),
    "torch_encoder": token_source(torch_encoder),
    "unet": image_source(UNet),
}
GROUPED = image_source(Mobile)
RECURRENT = token_source(Recurrent)
UNTRACEABLE = token_source(LoopedExperts)
