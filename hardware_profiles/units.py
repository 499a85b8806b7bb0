"""The one table of units: what a quantity may be written in, and its factor to SI.

Decimal prefixes are decimal (``GB`` is 1e9 bytes) and binary ones binary (``GiB`` is 2**30 bytes).
"""

import math
import re
from types import MappingProxyType
from typing import Literal

from hardware_profiles.errors import ProfileError

Dimension = Literal["flops_rate", "bandwidth", "size", "time", "ratio", "price"]

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_BITS_PER_BYTE = 8.0
_QUANTITY = re.compile(r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(\S.*?)?\s*")

UNITS: MappingProxyType[Dimension, MappingProxyType[str, float]] = MappingProxyType(
    {
        "flops_rate": MappingProxyType(
            {f"{p}FLOP/s": f for p, f in _DECIMAL.items()}
            | {f"{p}OP/s": f for p, f in _DECIMAL.items() if p in {"G", "T", "P"}}
        ),
        "bandwidth": MappingProxyType(
            {f"{p}B/s": f for p, f in (_DECIMAL | _BINARY).items()}
            | {f"{p}b/s": f / _BITS_PER_BYTE for p, f in _DECIMAL.items()}
        ),
        "size": MappingProxyType({f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()}),
        "time": MappingProxyType({"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}),
        "ratio": MappingProxyType({"1": 1.0, "%": 1e-2}),
        "price": MappingProxyType({"USD/h": 1.0}),
    }
)
"""Accepted units per dimension and their factor to FLOP/s, B/s, B, s, 1 and USD/h."""

SI_UNIT: MappingProxyType[Dimension, str] = MappingProxyType(
    {
        "flops_rate": "FLOP/s",
        "bandwidth": "B/s",
        "size": "B",
        "time": "s",
        "ratio": "1",
        "price": "USD/h",
    }
)
"""Unit in which the package computes, per dimension."""


def parse_quantity(value: float, unit: str, *, dimension: Dimension) -> float:
    """Convert a value with its unit to SI.

    Parameters
    ----------
    value : float
        Number as written, in ``unit``.
    unit : str
        One of the units of the dimension in :data:`UNITS`.
    dimension : str
        ``"flops_rate"``, ``"bandwidth"``, ``"size"``, ``"time"``, ``"ratio"`` or ``"price"``.

    Returns
    -------
    float
        The quantity in the SI unit of its dimension, see :data:`SI_UNIT`.

    Raises
    ------
    ProfileError
        If the unit does not belong to the dimension or the value is not finite.

    Examples
    --------
    >>> parse_quantity(312, "TFLOP/s", dimension="flops_rate")
    312000000000000.0
    >>> parse_quantity(200, "Gb/s", dimension="bandwidth")
    25000000000.0
    >>> parse_quantity(80, "GiB", dimension="size") == 80 * 2**30
    True
    >>> parse_quantity(80, "GiB", dimension="bandwidth")
    Traceback (most recent call last):
    hardware_profiles.errors.ProfileError: unit is 'GiB'; expected one of ['B/s', 'GB/s', ...]
    """
    factors = UNITS[dimension]
    if unit not in factors:
        raise ProfileError(f"unit is {unit!r}; expected one of {sorted(factors)}")
    if not math.isfinite(value):
        raise ProfileError(f"value is {value!r}; expected a finite number")
    return _scale(float(value), factors[unit])


def _scale(value: float, factor: float) -> float:
    """Multiply, dividing by whole numbers below one, so that ``2 us`` is exactly ``2e-06``."""
    if factor < 1.0:
        return value / round(1.0 / factor)
    return value * factor


def parse_quantity_text(text: str, *, dimension: Dimension) -> float:
    """Convert a quantity written as one word, such as ``100Gb/s``, to SI.

    A bare number is accepted for a ratio only; everything else needs its unit.

    Parameters
    ----------
    text : str
        Number followed by its unit, with or without a space.
    dimension : str
        As in :func:`parse_quantity`.

    Returns
    -------
    float
        The quantity in SI.

    Raises
    ------
    ProfileError
        If there is no number, or the unit is missing or of another dimension.

    Examples
    --------
    >>> parse_quantity_text("2us", dimension="time")
    2e-06
    >>> parse_quantity_text("1.5", dimension="ratio")
    1.5
    """
    match = _QUANTITY.fullmatch(text)
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or math.isnan(number):
        unit = SI_UNIT[dimension]
        raise ProfileError(f"{text!r} is not a number with a unit; expected for example '2{unit}'")
    unit = match.group(2) or ("1" if dimension == "ratio" else "")
    return parse_quantity(number, unit, dimension=dimension)
