"""What a dataset gives, turned into a batch of the model: samples or batches, checked."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from executor.errors import RunError
from planner.models.source import Batch

Item = Any
"""A tensor, a tuple ``(inputs..., targets)`` or a dict with ``inputs`` and ``targets``."""


def item_kind(item: Item, *, template: Batch, where: str) -> Literal["sample", "batch"]:
    """Tell a sample from a batch by the number of dimensions of its first input.

    Raises
    ------
    RunError
        If it is neither.
    """
    first = _inputs(_parts(item, template=template, where=where))[0]
    wanted = template.inputs[0].dim()
    if first.dim() == wanted:
        return "batch"
    if first.dim() == wanted - 1:
        return "sample"
    raise RunError(
        f"{where}: an item's input has shape {tuple(first.shape)}; the model takes "
        f"{tuple(template.inputs[0].shape[1:])} per sample"
    )


def as_batch(
    items: Sequence[Item], *, template: Batch, where: str, rows: int | None = None
) -> Batch:
    """Return samples stacked to a batch; with ``rows``, the one item that is a batch.

    Parameters
    ----------
    items : sequence
        What the dataset gave.
    template : Batch
        A made-up batch of the model, of one sample: shapes and kinds of numbers to expect.
    where : str
        The hook, for messages.
    rows : int, optional
        Samples that a batch must have [1].

    Raises
    ------
    RunError
        If an item is not what the model takes.
    """
    parts = [_parts(item, template=template, where=where) for item in items]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise RunError(f"{where}: items differ in what they hold; expected the same for all")
    wanted = _parts_of_template(template)
    made: dict[str, torch.Tensor] = {}
    for key in parts[0]:
        tensors = [part[key] for part in parts]
        whole = tensors[0] if rows is not None else _stacked(tensors, key=key, where=where)
        if rows is not None and (whole.dim() == 0 or whole.shape[0] != rows):
            found = whole.shape[0] if whole.dim() else "no"
            raise RunError(f"{where}: a batch of {found} samples; expected the global batch {rows}")
        made[key] = _checked(whole, wanted.get(key), key=key, where=where)
    return Batch(
        inputs=_inputs(made),
        keywords={key: value for key, value in made.items() if _is_keyword(key)},
        targets=made.get("targets"),
    )


def _parts(item: Item, *, template: Batch, where: str) -> dict[str, torch.Tensor]:
    """Return ``input 0``, ``input 1``, ..., ``targets`` and keywords of an item."""
    count = len(template.inputs)
    if isinstance(item, dict):
        named = dict(item)
        inputs = named.pop("inputs", ())
        found = inputs if isinstance(inputs, tuple | list) else (inputs,)
    else:
        named = {}
        found = tuple(item) if isinstance(item, tuple | list) else (item,)
        if len(found) == count + 1:
            *found, named["targets"] = found
    if len(found) != count or (template.targets is not None and "targets" not in named):
        wanted = ", ".join([*(f"input {i}" for i in range(count)), "targets"])
        raise RunError(
            f"{where}: an item is {_shown(item)}; expected ({wanted}), or a dict with "
            "'inputs' and 'targets'"
        )
    missing = template.keywords.keys() - named.keys()
    if missing:
        raise RunError(
            f"{where}: an item lacks {', '.join(sorted(missing))}, which the model takes by name; "
            "expected a dict with it"
        )
    every = {**{f"input {i}": value for i, value in enumerate(found)}, **named}
    return {key: _tensor(value, key=key, where=where) for key, value in every.items()}


def _parts_of_template(template: Batch) -> dict[str, Any]:
    parts: dict[str, Any] = {f"input {i}": value for i, value in enumerate(template.inputs)}
    parts.update(template.keywords)
    if template.targets is not None:
        parts["targets"] = template.targets
    return parts


def _tensor(value: Any, *, key: str, where: str) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise RunError(
            f"{where}: {key} of an item is a {type(value).__name__}; expected a tensor or numbers"
        ) from None


def _stacked(tensors: list[torch.Tensor], *, key: str, where: str) -> torch.Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        shown = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise RunError(f"{where}: {key} has shapes {shown} in one batch; pad or cut the samples")
    return torch.stack(tensors)


def _checked(tensor: torch.Tensor, wanted: Any, *, key: str, where: str) -> torch.Tensor:
    """Return a tensor in the dtype that the model takes; refuse another shape or kind of number."""
    if not isinstance(wanted, torch.Tensor):
        return tensor
    if tensor.shape[1:] != wanted.shape[1:]:
        raise RunError(
            f"{where}: {key} has shape {tuple(tensor.shape[1:])} per sample; "
            f"the model takes {tuple(wanted.shape[1:])}"
        )
    if tensor.is_floating_point() != wanted.is_floating_point():
        raise RunError(f"{where}: {key} is {tensor.dtype}; the model takes {wanted.dtype}")
    return tensor.to(wanted.dtype)


def _inputs(parts: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(value for key, value in parts.items() if key.startswith("input "))


def _is_keyword(key: str) -> bool:
    return key != "targets" and not key.startswith("input ")


def _shown(item: Item) -> str:
    if isinstance(item, dict):
        return f"a dict of {', '.join(map(str, item))}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)}"
    return f"a {type(item).__name__}"
