"""What-if changes to a software profile, written after the question mark of its name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hardware_profiles.document import Table
from hardware_profiles.errors import ProfileError

_QUANTITY = re.compile(r"(?P<value>[-+.\de]*\d)\s*(?P<unit>[A-Za-z/%]*)")
_OVERRIDE = {"source": "override", "kind": "assumed"}


def split_overrides(text: str) -> tuple[str, dict[str, str]]:
    """Split a software's text into its name and the changes after ``?``.

    Raises
    ------
    ProfileError
        If a change has no value or is given twice.

    Examples
    --------
    >>> split_overrides("eager?flash_version=1&host_call=10us")
    ('eager', {'flash_version': '1', 'host_call': '10us'})
    """
    name, _, query = text.partition("?")
    overrides: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not (equals and value) or key in overrides:
            problem = "is given twice" if key in overrides else "has no value"
            raise ProfileError(f"{text}: {key!r} {problem}; write {key}=VALUE once")
        overrides[key] = value
    return name, overrides


def overridden(
    document: Table,
    overrides: Mapping[str, str],
    *,
    quantities: Iterable[str],
    words: Iterable[str],
) -> Table:
    """Return a profile's document with entries replaced, to be checked like any other.

    Parameters
    ----------
    document : Table
        As read from the file.
    overrides : mapping of str to str
        Key of the file -> value as written: ``10us`` for a quantity, ``true`` for a switch.
    quantities, words : iterable of str
        Keys that hold quantities, and those that hold a word, a number or a switch.

    Raises
    ------
    ProfileError
        If a key is none of these, or a quantity has no number.
    """
    quantities, words = tuple(quantities), tuple(words)
    data: dict[str, Any] = dict(document.data)
    for key, value in overrides.items():
        if key in words:
            data[key] = _word(value)
        elif key in quantities:
            match = _QUANTITY.fullmatch(value)
            if match is None:
                raise ProfileError(
                    f"{document.where}: {key}={value}; expected a number with its unit, as 10us"
                )
            data[key] = {
                "value": float(match["value"]), "unit": match["unit"] or "1", **_OVERRIDE
            }  # fmt: skip
        else:
            raise ProfileError(
                f"{document.where}: no option {key!r}; expected one of "
                f"{', '.join(sorted((*quantities, *words)))}"
            )
    return replace(
        document, data=data, sources={**document.sources, "override": "given by the user"}
    )


def _word(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdecimal() else value
