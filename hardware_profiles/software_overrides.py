"""What-if changes to a software profile, written after the question mark of its name."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hardware_profiles.document import Table
from hardware_profiles.errors import ProfileError
from hardware_profiles.units import SI_UNIT, Dimension, parse_quantity_text

_OVERRIDE = {"source": "override", "kind": "assumed"}
_USUAL_UNIT: dict[Dimension, str] = {"time": "us", "ratio": "%"}


def overridden(
    document: Table,
    overrides: Mapping[str, str],
    *,
    quantities: Mapping[str, Dimension],
    words: Iterable[str],
) -> Table:
    """Return a profile's document with entries replaced, to be checked like any other.

    Parameters
    ----------
    document : Table
        As read from the file.
    overrides : mapping of str to str
        Key of the file -> value as written: ``10us`` for a quantity, ``true`` for a switch.
    quantities : mapping of str to str
        Keys that hold quantities, with their dimension.
    words : iterable of str
        Keys that hold a word, a number or a switch.

    Raises
    ------
    ProfileError
        If a key is none of these, or a quantity has no number with a unit of its dimension.
    """
    words = tuple(words)
    data: dict[str, Any] = dict(document.data)
    for key, value in overrides.items():
        if key in words:
            data[key] = _word(value)
        elif key in quantities:
            data[key] = _quantity(document, key, value, dimension=quantities[key])
        else:
            raise ProfileError(
                f"{document.where}: no option {key!r}; expected one of "
                f"{', '.join(sorted((*quantities, *words)))}"
            )
    return replace(
        document, data=data, sources={**document.sources, "override": "given by the user"}
    )


def _quantity(table: Table, key: str, value: str, *, dimension: Dimension) -> dict[str, Any]:
    """Return the entry of a quantity, in SI."""
    try:
        number = parse_quantity_text(value, dimension=dimension)
    except ProfileError:
        unit = _USUAL_UNIT.get(dimension, SI_UNIT[dimension])
        raise table.fail(
            key, f"is {value!r}; expected a number with its unit, as 10{unit}"
        ) from None
    return {"value": number, "unit": SI_UNIT[dimension], **_OVERRIDE}


def _word(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdecimal() else value
