"""The ``key=value&key=value`` after the question mark of a cluster, a stack or a model."""

from collections.abc import Callable

from hardware_profiles.errors import ParaplanError, ProfileError


def refused_override(part: str, problem: str) -> ProfileError:
    """Return the error about a change to a profile that cannot be read."""
    key = part.partition("=")[0] or "KEY"
    return ProfileError(f"override {part!r} {problem}; write {key}=VALUE once")


def read_pairs(
    text: str, *, refuse: Callable[[str, str], ParaplanError] = refused_override
) -> dict[str, str]:
    """Return the value of each key, in the order given.

    Parameters
    ----------
    text : str
        What follows the question mark; empty for no pairs.
    refuse : callable
        Makes the error of a pair and its problem: that it has no value, or is given twice.

    Returns
    -------
    dict of str to str
        Value per key, as written.

    Raises
    ------
    ParaplanError
        The error that ``refuse`` makes.

    Examples
    --------
    >>> read_pairs("flash_version=1&host_call=10us")
    {'flash_version': '1', 'host_call': '10us'}
    """
    pairs: dict[str, str] = {}
    for part in text.split("&") if text else []:
        key, _, value = part.partition("=")
        if not (key and value):
            raise refuse(part, "has no value")
        if key in pairs:
            raise refuse(key, "is given twice")
        pairs[key] = value
    return pairs
