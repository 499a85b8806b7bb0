"""From what a user writes to a model source; torch is loaded only when a model is built."""

import importlib
from typing import TYPE_CHECKING, Any

from planner.errors import ModelError
from planner.models.options import (
    SCALE_DOWN,
    join_options,
    nearest,
    override,
    scale_divisor,
    split_options,
)
from planner.models.presets import PRESETS, TRANSFORMERS_PRESETS, Preset
from planner.models.sizes import DlrmSize, LlamaSize, Size, TransformerSize, shrink_sequence
from planner.models.source import Batch, ModelSource

if TYPE_CHECKING:
    import torch


def preset_names() -> tuple[str, ...]:
    """Return the names of all shipped models, sorted.

    Examples
    --------
    >>> "gpt3-175b" in preset_names()
    True
    """
    return tuple(sorted([*PRESETS, *TRANSFORMERS_PRESETS]))


def preset_title(name: str) -> str:
    """Return one line on a shipped model.

    Examples
    --------
    >>> preset_title("vgg16")
    'VGG-16, arXiv:1409.1556 configuration D'
    """
    preset = PRESETS.get(name) or TRANSFORMERS_PRESETS.get(name)
    if preset is None:
        raise ModelError(f"{name}: no such model; {nearest(name, preset_names())}")
    return preset.title


def resolve_model(text: str) -> ModelSource:
    """Find the model that a text names.

    Parameters
    ----------
    text : str
        A preset (``gpt3-175b``, or with sizes ``gpt2?num_layers=4&scale_down=8``), a transformers
        type (``hf:llama?hidden_size=2048``) or configuration file (``hf:path/config.json``), or a
        function in a file (``path/to/file.py:factory``).

    Returns
    -------
    ModelSource
        How to build, feed and judge it. Nothing is built yet; a user's file is read already.

    Raises
    ------
    ModelError
        If there is no such preset, type, file or function, or an option does not suit it.

    Examples
    --------
    >>> source = resolve_model("llama3-8b")
    >>> source.name, source.default_sequence_length, source.tensor_parallel_limits
    ('llama3-8b', 8192, (('num_attention_heads', 32), ('num_key_value_heads', 8)))
    >>> resolve_model("vgg-16")
    Traceback (most recent call last):
    ...
    planner.errors.ModelError: vgg-16: no such model; did you mean vgg16 ...?
    """
    if text.startswith("hf:"):
        from planner.models.huggingface import resolve_transformers

        return resolve_transformers(text)
    name, options = split_options(text)
    if ".py:" in name:
        from planner.models.user_file import resolve_file

        return resolve_file(text)
    if name.endswith(".py"):
        raise ModelError(
            f"{text}: expected the name of a function after the file, as in {name}:build_model"
        )
    if name in PRESETS:
        return _from_preset(text, name, options)
    if name in TRANSFORMERS_PRESETS:
        from planner.models.huggingface import resolve_transformers_preset

        return resolve_transformers_preset(text, preset=TRANSFORMERS_PRESETS[name], name=name)
    raise ModelError(f"{text or 'MODEL'}: no such model; {_hint(name)}")


def _hint(name: str) -> str:
    """Return what to write for a name that is none: a file of some kind, or the nearest preset."""
    if name.endswith(".json"):
        return f"a transformers configuration is given as hf:{name}"
    if "/" in name or ":" in name:
        return "a file is given as FILE.py:FUNCTION or hf:FOLDER/config.json"
    return nearest(name, preset_names())


def _from_preset(text: str, name: str, options: dict[str, str]) -> ModelSource:
    preset = PRESETS[name]
    divisor = scale_divisor(text, options)
    size = override(preset.size, options, text=text)
    sequence_length = preset.sequence_length
    if divisor > 1:
        size = size.shrunk(divisor)
        sequence_length = shrink_sequence(sequence_length, divisor=divisor)
    sequence_length = min(sequence_length, getattr(size, "max_positions", sequence_length))
    family = _Family(name=name, preset=preset, size=size)

    def scale_down(by: int) -> ModelSource:
        return resolve_model(join_options(name, {**options, SCALE_DOWN: str(divisor * by)}))

    return ModelSource(
        source=text,
        name=name,
        default_sequence_length=sequence_length,
        build=family.build,
        make_batch=family.make_batch,
        loss=family.loss,
        chain=family.chain,
        scale_down=scale_down,
        key=f"{name}:{size!r}",
        tensor_parallel_limits=_limits(size),
    )


class _Family:
    """The functions of a family's module, which is imported (with torch) at the first call."""

    __slots__ = ("_module_name", "_name", "_size")

    def __init__(self, *, name: str, preset: Preset, size: Size) -> None:
        self._module_name = f"planner.models.{preset.family}"
        self._name = name
        self._size = size

    def _module(self) -> Any:
        return importlib.import_module(self._module_name)

    def build(self) -> "torch.nn.Module":
        module: torch.nn.Module = self._module().build(self._name, self._size)
        return module

    def make_batch(self, batch_size: int, sequence_length: int, seed: int) -> Batch:
        batch: Batch = self._module().make_batch(self._size, batch_size, sequence_length, seed)
        return batch

    def loss(self, output: Any, targets: "torch.Tensor | None") -> "torch.Tensor":
        scalar: torch.Tensor = self._module().loss(output, targets)
        return scalar

    def chain(self, model: "torch.nn.Module") -> tuple[str, ...] | None:
        paths: tuple[str, ...] | None = self._module().chain(model)
        return paths


def _limits(size: Size) -> tuple[tuple[str, int], ...]:
    limits: list[tuple[str, int]] = []
    if isinstance(size, TransformerSize):
        limits.append(("num_attention_heads", size.num_heads))
    if isinstance(size, LlamaSize):
        limits.append(("num_key_value_heads", size.num_kv_heads))
    if isinstance(size, DlrmSize):
        limits.append(("embedding_size", size.embedding_size))
    return tuple(limits)
