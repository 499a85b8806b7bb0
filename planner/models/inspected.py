"""What a built model tells of itself, without weights: its configuration and its block's class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planner.models.source import ModelSource


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedModel:
    """A model as its code names it."""

    configuration: dict[str, Any]
    """Fields of a transformers configuration; empty for other models."""
    block_classes: tuple[str, ...]
    """Class names of the modules asked for, each once, in order."""


def inspect_model(source: ModelSource, *, block_paths: Sequence[str]) -> InspectedModel:
    """Build a model on the meta device, which allocates nothing, and read its names.

    Parameters
    ----------
    source : ModelSource
        The model.
    block_paths : sequence of str
        Module paths whose classes are wanted; each must be in the model.

    Raises
    ------
    ModelError
        If the model cannot be built.
    """
    import torch

    with torch.device("meta"):
        module = source.build()
    configuration: Any = getattr(module, "config", None)
    fields = configuration.to_dict() if hasattr(configuration, "to_dict") else {}
    classes = dict.fromkeys(type(module.get_submodule(path)).__name__ for path in block_paths)
    return InspectedModel(configuration=fields, block_classes=tuple(classes))
