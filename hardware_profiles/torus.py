"""Slices of a torus: which shape N chips take and which axes close into rings."""

from dataclasses import dataclass
from math import prod

from hardware_profiles.document import Table, check_keys, integer
from hardware_profiles.errors import ProfileError

_CUBE = 4
"""Edge of the block that optical switches join into larger three-dimensional slices [chips]."""
_NUM_AXES = (2, 3)
_SLICES_BEYOND_FEWEST = 4
"""How many times the fewest possible slices are tried before a count is refused [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceRule:
    """How a generation of chips cuts its pod into slices."""

    max_shape: tuple[int, ...]
    """Extent of the whole pod per axis, ascending [chips]."""
    wrap_multiple: int
    """An axis closes into a ring when its extent is a multiple of this [chips]."""

    @property
    def max_chips(self) -> int:
        """Chips of the whole pod."""
        return prod(self.max_shape)


def slice_rule_from_table(table: Table) -> SliceRule:
    """Read the ``[slice]`` table of a cluster file."""
    check_keys(table, required=("max_shape", "wrap_multiple"), optional=("devices_per_host",))
    extents = table.data["max_shape"]
    if (
        not isinstance(extents, list)
        or len(extents) not in _NUM_AXES
        or not all(isinstance(extent, int) and extent > 0 for extent in extents)
    ):
        raise table.fail("max_shape", f"is {extents!r}; expected two or three extents")
    return SliceRule(
        max_shape=tuple(sorted(extents)), wrap_multiple=integer(table, "wrap_multiple")
    )


def slice_shape(num_chips: int, *, rule: SliceRule) -> tuple[int, ...]:
    """Return the most compact shape of a slice.

    Two-dimensional slices have power-of-two extents. Three-dimensional ones are made of whole
    4x4x4 cubes, or are a power of two inside one cube.

    Parameters
    ----------
    num_chips : int
        Chips of the slice, at least 1.
    rule : SliceRule
        Rule of the generation.

    Returns
    -------
    tuple of int
        Extent per axis, ascending; the product is ``num_chips``.

    Raises
    ------
    ProfileError
        If no slice has that many chips; the message names the nearest sizes that exist.

    References
    ----------
    .. [1] N. Jouppi et al., "TPU v4: an optically reconfigurable supercomputer for machine
       learning with hardware support for embeddings", ISCA 2023, section 2. arXiv:2304.01433.

    Examples
    --------
    >>> slice_shape(3072, rule=SliceRule(max_shape=(16, 16, 16), wrap_multiple=4))
    (12, 16, 16)
    >>> slice_shape(32, rule=SliceRule(max_shape=(16, 16), wrap_multiple=16))
    (4, 8)
    >>> slice_shape(48, rule=SliceRule(max_shape=(16, 16), wrap_multiple=16))
    Traceback (most recent call last):
    hardware_profiles.errors.ProfileError: no slice has 48 chips; the nearest sizes are 32 and 64
    """
    shape = _find_shape(num_chips, rule=rule)
    if shape is not None:
        return shape
    sizes = range(1, rule.max_chips + 1)
    below = max((n for n in sizes[: num_chips - 1] if _find_shape(n, rule=rule)), default=1)
    above = next((n for n in sizes[num_chips:] if _find_shape(n, rule=rule)), None)
    nearest = f"{below} and {above}" if above else f"{below} and less"
    raise ProfileError(f"no slice has {num_chips} chips; the nearest sizes are {nearest}")


def slice_wraps(shape: tuple[int, ...], *, rule: SliceRule) -> tuple[bool, ...]:
    """Return which axes close into rings.

    A three-dimensional slice smaller than one cube has no optical links and closes nowhere.

    Examples
    --------
    >>> rule = SliceRule(max_shape=(16, 16, 16), wrap_multiple=4)
    >>> slice_wraps((4, 4, 8), rule=rule), slice_wraps((2, 2, 4), rule=rule)
    ((True, True, True), (False, False, False))
    >>> slice_wraps((8, 16), rule=SliceRule(max_shape=(16, 16), wrap_multiple=16))
    (False, True)
    """
    wraps = tuple(extent % rule.wrap_multiple == 0 for extent in shape)
    if len(shape) == max(_NUM_AXES) and not all(wraps):
        return (False,) * len(shape)
    return wraps


def slices_of(num_chips: int, *, rule: SliceRule) -> tuple[int, int]:
    """Return number of equal slices and chips per slice; more than a pod takes several slices.

    Raises
    ------
    ProfileError
        If more than a pod does not make a few equal slices that exist.

    Examples
    --------
    >>> slices_of(6144, rule=SliceRule(max_shape=(16, 16, 16), wrap_multiple=4))
    (2, 3072)
    """
    if num_chips <= rule.max_chips:
        return 1, num_chips
    fewest = -(-num_chips // rule.max_chips)
    for num_slices in range(fewest, _SLICES_BEYOND_FEWEST * fewest + 1):
        size, rest = divmod(num_chips, num_slices)
        if rest == 0 and _find_shape(size, rule=rule) is not None:
            return num_slices, size
    raise ProfileError(
        f"{num_chips} chips are more than one pod of {rule.max_chips} and make no equal slices; "
        f"use a multiple of {rule.max_chips} or set devices_per_node"
    )


def _find_shape(num_chips: int, *, rule: SliceRule) -> tuple[int, ...] | None:
    """Return the most compact allowed shape, or None."""
    candidates = _planes(num_chips) if len(rule.max_shape) == min(_NUM_AXES) else _blocks(num_chips)
    fitting = [
        shape
        for shape in candidates
        if all(extent <= most for extent, most in zip(shape, rule.max_shape, strict=True))
    ]
    return min(fitting, key=lambda shape: (sum(shape), shape), default=None)


def _planes(num_chips: int) -> list[tuple[int, ...]]:
    """Return the two-dimensional shapes with power-of-two extents."""
    if num_chips & (num_chips - 1):
        return []
    sides = [2**power for power in range(num_chips.bit_length())]
    return [(side, num_chips // side) for side in sides if side * side <= num_chips]


def _blocks(num_chips: int) -> list[tuple[int, ...]]:
    """Return the three-dimensional shapes: whole cubes, or a power of two inside one."""
    if num_chips < _CUBE**3:
        return _boxes(num_chips, most=_CUBE) if num_chips & (num_chips - 1) == 0 else []
    if num_chips % _CUBE**3:
        return []
    cubes = _boxes(num_chips // _CUBE**3, most=num_chips)
    return [(_CUBE * a, _CUBE * b, _CUBE * c) for a, b, c in cubes]


def _boxes(volume: int, *, most: int) -> list[tuple[int, ...]]:
    """Return all ascending factorisations into three extents of at most ``most``."""
    boxes: list[tuple[int, ...]] = []
    for a in range(1, round(volume ** (1 / 3)) + 2):
        if volume % a:
            continue
        rest = volume // a
        boxes += [
            (a, b, rest // b)
            for b in range(a, int(rest**0.5) + 1)
            if rest % b == 0 and rest // b <= most
        ]
    return boxes
