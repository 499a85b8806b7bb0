"""The model of a dry run: all modules of the plan's model, tiny widths."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from executor.errors import RunError
from executor.precision import Numerics, lower_weights
from executor.shape import RING_PIECES, RunShape
from planner.models.options import join_options, split_options
from planner.models.presets import PRESETS
from planner.models.resolve import resolve_model
from planner.models.sizes import BertSize, GptSize, LlamaSize, Size, TransformerSize
from planner.models.source import ModelSource

_HEAD_SIZE = 2
"""Smallest head that rotary embeddings can turn [1]."""
_FFN_MULTIPLE = 4
_VOCABULARY = 64
_SHORT_SEQUENCE = 8
_DIVISOR = 16
"""Of the widths of models that are no transformers, whose depth then stays [1]."""
_KEPT_MULTIPLE = 4
"""Widths of those stay multiples of this [1]."""
_SHORT_IMAGE_PATCHES = 4
_MAX_PARAMETERS = 200_000_000
"""Largest model that a dry run builds whole, on the CPU, once per probed rank [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyModel:
    """A model as deep as the plan's and as narrow as its splits allow."""

    source: ModelSource
    sequence_length: int
    notes: tuple[str, ...]
    """In what it differs from the plan's."""


def tiny_model(
    text: str, *, sequence_length: int, tensor_size: int, context_size: int = 1
) -> TinyModel:
    """Return the narrow form of a model.

    Parameters
    ----------
    text : str
        The plan's model.
    sequence_length : int
        The plan's [1].
    tensor_size : int
        Ranks of the tensor axis; widths stay divisible by it [1].
    context_size : int
        Ranks among which positions are cut, two pieces each [1].

    Raises
    ------
    RunError
        If the model has no widths to shrink and is too large to build.
    """
    pieces = RING_PIECES * context_size if context_size > 1 else 1
    short = _short(sequence_length, tensor_size * pieces)
    name, options = split_options(text)
    if name in PRESETS:
        size = _size(text, name, options)
        narrow = _narrowed(size, sequence_length=short, tensor_size=tensor_size)
        changed = {
            item.name: getattr(narrow, item.name)
            for item in fields(narrow)
            if getattr(narrow, item.name) != getattr(PRESETS[name].size, item.name)
        }
        source = resolve_model(join_options(name, {k: _text(v) for k, v in changed.items()}))
    else:
        source = resolve_model(text)
    _refuse_large(source, text)
    short = min(short, sequence_length)
    if source.default_sequence_length == 1:
        short = 1
    return TinyModel(source=source, sequence_length=short, notes=(f"model {source.source}",))


def _size(text: str, name: str, options: dict[str, str]) -> Size:
    from planner.models.options import override, scale_divisor

    size = override(PRESETS[name].size, options, text=text)
    divisor = scale_divisor(text, options)
    return size.shrunk(divisor) if divisor > 1 else size


def _short(sequence_length: int, tensor_size: int) -> int:
    """Return a short sequence that divides as the plan's does."""
    wanted = tensor_size * max(1, _SHORT_SEQUENCE // tensor_size)
    return wanted if sequence_length % tensor_size == 0 else min(sequence_length, _SHORT_SEQUENCE)


def _narrowed(size: Size, *, sequence_length: int, tensor_size: int) -> Size:
    """Return the size with the same modules and heads, and narrow widths."""
    if not isinstance(size, TransformerSize):
        divides = _KEPT_MULTIPLE % tensor_size == 0
        return replace(size.shrunk(_DIVISOR), **_dropout(size)) if divides else size
    hidden = size.num_heads * _HEAD_SIZE
    narrow = replace(size, hidden_size=hidden)
    vocabulary = math.lcm(_VOCABULARY, tensor_size)
    if isinstance(narrow, LlamaSize):
        return replace(narrow, ffn_size=_FFN_MULTIPLE * hidden, vocab_size=vocabulary)
    if isinstance(narrow, GptSize | BertSize):
        return replace(narrow, vocab_size=vocabulary, max_positions=sequence_length)
    return replace(narrow, image_size=_SHORT_IMAGE_PATCHES * narrow.patch_size)


def _dropout(size: Size) -> dict[str, Any]:
    """Return the dropout as it was: the plan has an operator of it."""
    return {"dropout": size.dropout} if hasattr(size, "dropout") else {}


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def _refuse_large(source: ModelSource, text: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in source.build().parameters())
    if count > _MAX_PARAMETERS:
        raise RunError(
            f"{text}: {count:,} parameters are built whole in a dry run, expected at most "
            f"{_MAX_PARAMETERS:,}; give the model smaller widths in its options, and plan it anew"
        )


def entering_activations(
    source: ModelSource,
    *,
    shape: RunShape,
    stage_paths: tuple[tuple[str, ...], ...],
    numerics: Numerics,
) -> dict[int, torch.Tensor]:
    """Return per pipeline stage an activation like those that enter it; shapes count, not values.

    Parameters
    ----------
    source : ModelSource
        The model that runs.
    shape : RunShape
        Its microbatch and sequence.
    stage_paths : tuple of tuple of str
        Chain modules of every stage.
    numerics : Numerics
        In which stages compute and hand on.
    """
    shapes: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}
    with FakeTensorMode(), torch.no_grad(), numerics.autocast_on(torch.device("cpu"))():
        model = source.build()
        lower_weights(model.modules(), numerics, is_training=True, is_sharded=False)
        value = source.make_batch(shape.microbatch_size, shape.sequence_length, 0).inputs[0]
        value = numerics.entering(value)
        for stage, paths in enumerate(stage_paths):
            shapes[stage] = _as_sent(value.shape, shape if stage else None), value.dtype
            for path in paths:
                value = model.get_submodule(path)(value)
    return {
        stage: torch.empty(size, dtype=dtype, requires_grad=stage > 0 and dtype.is_floating_point)
        for stage, (size, dtype) in shapes.items()
    }


def _as_sent(whole: torch.Size, shape: RunShape | None) -> tuple[int, ...]:
    """Return what one rank of the stage before hands over: its own positions where it has some."""
    if shape is None:
        return tuple(whole)
    pieces = shape.size("cp") * (shape.size("tp") if shape.sequence_parallel else 1)
    return tuple(whole) if pieces == 1 else (whole[0], whole[1] // pieces, *whole[2:])
