"""The ``name?key=value&key=value`` form of a model, and how it is told when it is wrong."""

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar

from hardware_profiles.nearest import nearest_names
from hardware_profiles.pairs import read_pairs
from planner.errors import ModelError
from planner.models.sizes import Size

SCALE_DOWN = "scale_down"
"""The option that every preset and transformers model takes beside its own sizes."""

_AnySize = TypeVar("_AnySize", bound=Size)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Split a model's text in what stands before ``?`` and its options.

    Raises
    ------
    ModelError
        If an option has no value or is given twice.

    Examples
    --------
    >>> split_options("gpt2?num_layers=4&tied=false")
    ('gpt2', {'num_layers': '4', 'tied': 'false'})
    """
    name, _, query = text.partition("?")

    def refused(part: str, problem: str) -> ModelError:
        return ModelError(f"{text}: option {part!r} {problem}; expected key=value once")

    return name, read_pairs(query, refuse=refused)


def join_options(name: str, options: dict[str, str]) -> str:
    """Return the text that :func:`split_options` splits.

    Examples
    --------
    >>> join_options("gpt2", {"tied": "false"}), join_options("gpt2", {})
    ('gpt2?tied=false', 'gpt2')
    """
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return f"{name}?{query}" if query else name


def parse_value(text: str) -> Any:
    """Read a value as JSON where it is JSON, else as the string it is.

    Examples
    --------
    >>> parse_value("4"), parse_value("false"), parse_value("gelu_new")
    (4, False, 'gelu_new')
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a tail of a message that offers the nearest of the known words.

    Examples
    --------
    >>> nearest("gpt3-176b", ["gpt3-175b", "vgg16"])
    'did you mean gpt3-175b?'
    >>> nearest("GPT2", ["gpt2", "vgg16"])
    'did you mean gpt2?'
    >>> nearest("x", ["a", "b"])
    'expected one of a, b'
    """
    names = sorted(known)
    close = nearest_names(word, names)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"expected one of {', '.join(names)}"


def scale_divisor(text: str, options: dict[str, str]) -> int:
    """Take the scale-down divisor out of the options; 1 where there is none.

    Examples
    --------
    >>> scale_divisor("gpt2", {"scale_down": "8"})
    8
    """
    value = options.get(SCALE_DOWN, "1")
    if not value.isdecimal() or int(value) < 1:
        raise ModelError(f"{text}: scale_down = {value!r}; expected a whole number from 1 up")
    return int(value)


def override(size: _AnySize, options: dict[str, str], *, text: str) -> _AnySize:
    """Replace fields of a size by options, checked by the type of the present value.

    Raises
    ------
    ModelError
        If a field is unknown or its value is of another kind.
    """
    names = {item.name for item in fields(size)}
    changes: dict[str, Any] = {}
    for key, value in options.items():
        if key == SCALE_DOWN:
            continue
        if key not in names:
            raise ModelError(f"{text}: no option {key!r}; {nearest(key, names | {SCALE_DOWN})}")
        changes[key] = _converted(value, like=getattr(size, key), where=f"{text}: {key}")
    try:
        return replace(size, **changes)
    except ModelError as error:
        raise ModelError(f"{text}: {error}") from None


def _converted(value: str, *, like: Any, where: str) -> Any:
    parsed = parse_value(value)
    if isinstance(like, bool):
        accepted, expected = isinstance(parsed, bool), "true or false"
    elif isinstance(like, int):
        accepted = isinstance(parsed, int) and not isinstance(parsed, bool) and parsed > 0
        expected = "a whole number from 1 up"
    elif isinstance(like, float):
        accepted = isinstance(parsed, int | float) and not isinstance(parsed, bool)
        expected = "a number"
    else:
        accepted = isinstance(parsed, list) and all(
            isinstance(item, int) and item > 0 for item in parsed
        )
        expected = "a list of whole numbers such as [3,4,6,3]"
    if not accepted:
        raise ModelError(f"{where} = {value!r}; expected {expected}")
    return tuple(parsed) if isinstance(parsed, list) else parsed
