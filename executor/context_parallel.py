"""Samples cut along their positions: each rank holds some of every sample, attention goes round.

Outside of attention a model must treat every position alone, but for embeddings and rotations by
position, which are told which positions are here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from executor.errors import RunError
from executor.recording import Recorder
from executor.ring_attention import Ring, own_positions
from executor.shape import RunShape
from planner.models.bert import Bert, BertHead
from planner.models.gpt import Gpt
from planner.models.llama import Llama
from planner.models.positions import held_positions
from planner.models.source import Batch

_OURS = (Gpt, Llama, Bert)
TRANSFORMERS_TYPES = frozenset({
    "bert", "gpt2", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe",
})  # fmt: skip
"""Types that take ``position_ids`` and mix positions in attention alone; each was run."""
_POSITION_IDS = "position_ids"
_POSITIONS_DIM = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """A rank's part of the positions of every sample."""

    ring: Ring
    positions: torch.Tensor
    length: int
    """Positions of a whole sample [1]."""
    takes_ids: bool
    """Whether the model is told its positions by a keyword."""

    def own_part(self, batch: Batch) -> Batch:
        """Return this rank's positions of a batch."""

        def cut(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.dim() <= _POSITIONS_DIM:
                return value
            if value.shape[_POSITIONS_DIM] != self.length:
                return value
            return value.index_select(_POSITIONS_DIM, self.positions.to(value.device))

        told = {_POSITION_IDS: self.positions.unsqueeze(0)} if self.takes_ids else {}
        return Batch(
            inputs=tuple(cut(value) for value in batch.inputs),
            keywords={key: cut(value) for key, value in batch.keywords.items()} | told,
            targets=cut(batch.targets),
        )

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Tell embeddings and rotations which positions are here."""
        with held_positions(self.positions):
            yield


def make_context(
    model: nn.Module, *, mesh: DeviceMesh | None, shape: RunShape, recorder: Recorder
) -> Context | None:
    """Return a rank's part of the positions, and prepare the model; None where cp is 1."""
    if mesh is None:
        return None
    is_transformers = _transformers_type(model) is not None
    if is_transformers:
        from planner.models.huggingface import attend_without_masks  # imports the library

        attend_without_masks(model)
    ring = Ring(group=mesh.get_group(), recorder=recorder)
    length = shape.sequence_length
    return Context(
        ring=ring, length=length, takes_ids=is_transformers,
        positions=own_positions(length, size=ring.size, rank=mesh.get_local_rank()),
    )  # fmt: skip


def check_splits_positions(model: nn.Module, *, name: str, size: int, length: int) -> None:
    """Refuse a model that mixes positions outside of attention, or may do so.

    Parameters
    ----------
    model : Module
        On any device.
    name : str
        As its user wrote it.
    size : int
        Ranks among which positions are cut [1].
    length : int
        Positions of a sample [1].

    Raises
    ------
    RunError
        With the reason.
    """
    reason = _mixes_positions(model, length)
    if reason:
        raise RunError(f"{name}: cp={size} cannot be run: {reason}; plan with cp=1")


def _mixes_positions(model: nn.Module, length: int) -> str:
    if isinstance(model, _OURS):
        head = getattr(model, "head", None)
        some = isinstance(head, BertHead) and head.num_predictions
        return "its head reads the first positions of a sample" if some else ""
    model_type = _transformers_type(model)
    if model_type is None:
        return (
            "only the shipped gpt, llama and bert models and some of transformers' are known to "
            "mix positions in attention alone"
        )
    if model_type not in TRANSFORMERS_TYPES:
        known = ", ".join(sorted(TRANSFORMERS_TYPES))
        return f"{model_type} is not known to mix positions in attention alone, as {known} are"
    config: Any = model.config
    if config._attn_implementation not in ("sdpa", "paraplan-fused"):
        return f"its attention is {config._attn_implementation}, expected sdpa"
    window = getattr(config, "sliding_window", None)
    if window is not None and window < length and getattr(config, "use_sliding_window", True):
        return f"attention sees {window} of {length} positions through a window"
    return ""


def _transformers_type(model: nn.Module) -> str | None:
    """Return the type of a model of the transformers library, None for others."""
    is_one = type(model).__module__.startswith("transformers.")
    return str(model.config.model_type) if is_one else None  # type: ignore[union-attr]
