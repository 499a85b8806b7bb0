"""Quantities as people read them: three digits and the unit that suits."""

import math

_DURATIONS = ((1e-6, "µs", 1e-3), (1e-3, "ms", 1.0), (1.0, "s", 600.0), (60.0, "min", 14_400.0))
"""Seconds per unit, the unit, and the duration from which the next unit is used [s]."""
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP = 1024.0
_DIGITS = 3
_THOUSAND = 1000.0


def number_text(value: float) -> str:
    """Return three significant digits without an exponent.

    Examples
    --------
    >>> number_text(98_123.4), number_text(3.14159), number_text(0.05), number_text(0)
    ('98,100', '3.14', '0.05', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = _DIGITS - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if abs(rounded) >= 10 ** (_DIGITS - 1):
        return f"{rounded:,.0f}"
    text = f"{rounded:.{max(0, decimals)}f}"
    return text.rstrip("0").rstrip(".") if abs(rounded) < 1 else text


def duration_unit(seconds: float) -> tuple[float, str]:
    """Return the seconds per unit [s] and the unit in which a duration [s] reads well.

    Examples
    --------
    >>> duration_unit(0.02)
    (0.001, 'ms')
    """
    for scale, unit, until_s in _DURATIONS:
        if abs(seconds) < until_s:
            return scale, unit
    return 3600.0, "h"


def duration_text(seconds: float) -> str:
    """Return a duration given in [s].

    Examples
    --------
    >>> duration_text(0.04567), duration_text(32.08), duration_text(2.5e-5), duration_text(7200)
    ('45.7 ms', '32.1 s', '25.0 µs', '120 min')
    """
    scale, unit = duration_unit(seconds)
    return f"{number_text(seconds / scale)} {unit}"


def interval_text(low_s: float, high_s: float, *, like_s: float) -> str:
    """Return an interval of durations [s] in the unit that suits ``like_s``.

    Examples
    --------
    >>> interval_text(0.98, 1.2, like_s=0.999)
    '980 – 1,200 ms'
    """
    scale, unit = duration_unit(like_s)
    return f"{number_text(low_s / scale)} – {number_text(high_s / scale)} {unit}"


def bytes_text(num_bytes: float) -> str:
    """Return an amount of memory given in [B], binary units.

    Examples
    --------
    >>> bytes_text(80 * 2**30), bytes_text(2.5 * 2**40), bytes_text(512)
    ('80.0 GiB', '2.50 TiB', '512 B')
    """
    value, unit = num_bytes, 0
    while abs(value) >= _THOUSAND and unit < len(_BINARY) - 1:
        value, unit = value / _STEP, unit + 1
    return f"{number_text(value)} {_BINARY[unit]}"


def percent_text(fraction: float) -> str:
    """Return a fraction of one as a percentage.

    Examples
    --------
    >>> percent_text(0.4891), percent_text(0.0051), percent_text(0), percent_text(1e-9)
    ('48.9 %', '0.5 %', '0 %', '< 0.1 %')
    """
    if fraction == 0:
        return "0 %"
    if 0 < fraction < 5e-4:  # noqa: PLR2004 (would print as 0.0 %)
        return "< 0.1 %"
    return f"{100 * fraction:.1f} %"


def money_text(usd: float) -> str:
    """Return an amount of money given in [USD].

    Examples
    --------
    >>> money_text(4096.4), money_text(1.5), money_text(0.0213), money_text(0.8)
    ('$4,100', '$1.50', '$0.0213', '$0.80')
    """
    text = number_text(usd)
    whole, point, cents = text.partition(".")
    return f"${whole}.{cents}0" if point and len(cents) == 1 and usd < 1 else f"${text}"


def ratio_text(ratio: float) -> str:
    """Return how many times as long something takes.

    Examples
    --------
    >>> ratio_text(1.0), ratio_text(1.834), ratio_text(23.4)
    ('1.00 ×', '1.83 ×', '23.4 ×')
    """
    return f"{number_text(ratio)} ×"


def signed_percent_text(fraction: float) -> str:
    """Return a change as a percentage with its sign.

    Examples
    --------
    >>> signed_percent_text(0.031), signed_percent_text(-0.12)
    ('+3.1 %', '−12.0 %')
    """
    sign = "−" if fraction < 0 else "+"
    return f"{sign}{100 * abs(fraction):.1f} %"


def extra_text(seconds: float) -> str:
    """Return a difference of durations in [s] with its sign.

    Examples
    --------
    >>> extra_text(0.083), extra_text(-0.002)
    ('+83.0 ms', '−2.00 ms')
    """
    return f"{'−' if seconds < 0 else '+'}{duration_text(abs(seconds))}"
