"""Made-up batches and the losses that go with them."""

from typing import Any

import torch
from torch.nn import functional

from planner.errors import ModelError
from planner.models.source import Batch


def generator(seed: int) -> torch.Generator:
    """Return a seeded source of random numbers; on the CPU, so that a seed means one batch."""
    return torch.Generator(device="cpu").manual_seed(seed)


def integers(shape: tuple[int, ...], *, below: int, source: torch.Generator) -> torch.Tensor:
    """Return uniform integers on the default device."""
    drawn = torch.randint(below, shape, generator=source, device="cpu")
    return drawn.to(torch.get_default_device())


def normals(shape: tuple[int, ...], *, source: torch.Generator) -> torch.Tensor:
    """Return standard normal numbers of the default dtype on the default device."""
    drawn = torch.randn(shape, generator=source, device="cpu", dtype=torch.float32)
    return drawn.to(device=torch.get_default_device(), dtype=torch.get_default_dtype())


def token_batch(
    batch_size: int, sequence_length: int, seed: int, *, vocab_size: int, max_positions: int = 0
) -> Batch:
    """Return token ids and, shifted by one, the tokens to predict.

    Raises
    ------
    ModelError
        If the sequence is longer than the model's learned positions.
    """
    if 0 < max_positions < sequence_length:
        raise ModelError(
            f"sequence length {sequence_length}: the model has {max_positions} positions; "
            f"shorten the sequence or add max_positions={sequence_length} to the model's options"
        )
    ids = integers((batch_size, sequence_length + 1), below=vocab_size, source=generator(seed))
    return Batch(inputs=(ids[:, :-1].contiguous(),), keywords={}, targets=ids[:, 1:].contiguous())


def cross_entropy(output: Any, targets: torch.Tensor | None) -> torch.Tensor:
    """Return the mean cross entropy, in fp32, over everything but the last dimension [nat]."""
    if targets is None:
        raise ModelError(
            "cross entropy without targets: expected class numbers in the batch; "
            "let the dataset or targets() give them"
        )
    logits = output.flatten(0, -2) if output.dim() > 2 else output  # noqa: PLR2004 (matrix)
    return functional.cross_entropy(logits.float(), targets.flatten())
