"""The recommendation model DLRM, arXiv:1906.00091: two inputs, hence no chain."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from planner.errors import ModelError
from planner.models.data import generator, integers, normals
from planner.models.sizes import DlrmSize
from planner.models.source import Batch

ROW_MULTIPLE = 64
"""Tables of at least this many rows are padded to a multiple, so that ranks can share rows."""


def padded_rows(rows: int) -> int:
    """Return the rows a table is built with.

    Examples
    --------
    >>> padded_rows(7), padded_rows(1543)
    (7, 1600)
    """
    return rows if rows < ROW_MULTIPLE else -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


class Interaction(nn.Module):
    """Dot products of all pairs of feature vectors, beside the dense features themselves."""

    def __init__(self, num_vectors: int) -> None:
        super().__init__()
        rows, columns = torch.tril_indices(num_vectors, num_vectors, offset=-1).unbind()
        self.register_buffer("pairs", rows * num_vectors + columns, persistent=False)

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        """``[batch, width]`` and ``[batch, tables, width]`` to ``[batch, width + pairs]``."""
        vectors = torch.cat((dense.unsqueeze(1), sparse), dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        return torch.cat((dense, products.index_select(1, self.get_buffer("pairs"))), dim=1)


class Dlrm(nn.Module):
    """Embedding tables, bottom MLP, interaction, top MLP."""

    def __init__(self, size: DlrmSize) -> None:
        super().__init__()
        width = size.embedding_size
        num_vectors = len(size.table_rows) + 1
        self.bottom = _mlp((size.num_dense, *size.bottom_widths, width))
        self.tables = nn.ModuleList(
            nn.Embedding(padded_rows(rows), width) for rows in size.table_rows
        )
        self.interaction = Interaction(num_vectors)
        pairs = num_vectors * (num_vectors - 1) // 2
        self.top = _mlp((width + pairs, *size.top_widths))
        self.click = nn.Linear(size.top_widths[-1], 1)
        for table, rows in zip(self.tables, size.table_rows, strict=True):
            bound = rows**-0.5
            nn.init.uniform_(table.get_parameter("weight"), -bound, bound)

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """``[batch, dense]`` numbers and ``[batch, tables]`` ids to ``[batch]`` logits."""
        rows = [table(ids[:, index]) for index, table in enumerate(self.tables)]
        features = self.interaction(self.bottom(dense), torch.stack(rows, dim=1))
        logits: torch.Tensor = self.click(self.top(features)).squeeze(1)
        return logits


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Linear(inputs, outputs))
        layers.append(nn.ReLU())
    return layers


def loss(output: Any, targets: torch.Tensor | None) -> torch.Tensor:
    """Return the mean binary cross entropy of logits, in fp32 [nat]."""
    if targets is None:
        raise ModelError(
            "binary cross entropy without targets: expected clicks in the batch; "
            "let the dataset give them"
        )
    return functional.binary_cross_entropy_with_logits(output.float(), targets.float())


def chain(model: nn.Module) -> None:
    """Return None: two inputs meet in the interaction."""
    return


def build(name: str, size: DlrmSize) -> nn.Module:
    """Return the model."""
    return Dlrm(size)


def make_batch(size: DlrmSize, batch_size: int, sequence_length: int, seed: int) -> Batch:
    """Return made-up features, ids and clicks."""
    source = generator(seed)
    dense = normals((batch_size, size.num_dense), source=source)
    columns = [integers((batch_size,), below=rows, source=source) for rows in size.table_rows]
    clicks = integers((batch_size,), below=2, source=source)
    return Batch(inputs=(dense, torch.stack(columns, dim=1)), keywords={}, targets=clicks)
