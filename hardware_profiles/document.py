"""Strict reading of profile files: TOML to checked values, each mistake told in one line."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

from hardware_profiles.errors import ProfileError
from hardware_profiles.provenance import Provenance, SourceKind
from hardware_profiles.units import UNITS, Dimension, parse_quantity

SCHEMA = 1
_SOURCE_KINDS = get_args(SourceKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """One checked quantity of a file, in SI and as it was written."""

    value: float
    """In the SI unit of its dimension."""
    written_value: float
    written_unit: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table of a profile file with all that a message about it needs."""

    where: str
    """Name of the file."""
    path: str
    """Dotted key of this table in the file; empty at the top."""
    data: Mapping[str, Any]
    sources: Mapping[str, str]
    """Title of each source of the file, by its key."""

    def key(self, name: str) -> str:
        """Return the dotted key of an entry, as the user would look for it."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, problem: str) -> ProfileError:
        """Return the error about an entry."""
        return ProfileError(f"{self.where}: {self.key(name)} {problem}")


def read_document(path: Path, *, kind: str) -> Table:
    """Read a profile file and check its head.

    Parameters
    ----------
    path : Path
        TOML file.
    kind : str
        Kind the file must declare: ``device``, ``link``, ``cluster`` or ``software``.

    Returns
    -------
    Table
        The top table of the file.

    Raises
    ------
    ProfileError
        If the file cannot be read, is not TOML, or declares another schema or kind.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{path}: not valid TOML: {error}; correct that line") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{path}: not UTF-8 text; expected a TOML profile") from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ProfileError(f"{path}: cannot be read ({reason}); give a TOML profile") from None
    where = path.name
    bare = Table(where=where, path="", data=data, sources={})
    if data.get("schema") != SCHEMA:
        raise bare.fail("schema", f"is {data.get('schema')!r}; expected {SCHEMA}")
    if data.get("kind") != kind:
        raise bare.fail("kind", f"is {data.get('kind')!r}; expected {kind!r}")
    sources = _read_sources(bare)
    return Table(where=where, path="", data=data, sources=sources)


def _read_sources(document: Table) -> dict[str, str]:
    """Return the title of each source, with the day it was read."""
    if "sources" not in document.data:
        return {}
    sources = {}
    table = sub_table(document, "sources")
    for name in table.data:
        entry = sub_table(table, name)
        check_keys(entry, required=("title",), optional=("retrieved", "url"))
        title = text(entry, "title")
        retrieved = entry.data.get("retrieved")
        if retrieved is not None and not isinstance(retrieved, date):
            raise entry.fail("retrieved", f"is {retrieved!r}; expected a date like 2026-01-15")
        sources[name] = f"{title} (retrieved {retrieved})" if retrieved is not None else title
    return sources


def check_keys(table: Table, *, required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Refuse a table with a missing or an unknown key."""
    required, known = tuple(required), {*required, *optional}
    for name in table.data:
        if name not in known:
            raise table.fail(name, f"is not a known key; expected one of {sorted(known)}")
    for name in required:
        if name not in table.data:
            raise table.fail(name, "is missing; add it")


def sub_table(table: Table, name: str) -> Table:
    """Return an entry that is itself a table."""
    value = table.data.get(name)
    if not isinstance(value, dict):
        raise table.fail(name, f"is {value!r}; expected a table")
    return Table(where=table.where, path=table.key(name), data=value, sources=table.sources)


def text(table: Table, name: str) -> str:
    """Return an entry that is a non-empty text."""
    value = table.data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise table.fail(name, f"is {value!r}; expected a non-empty text")
    return value


def integer(table: Table, name: str, *, minimum: int = 1) -> int:
    """Return an entry that is a whole number."""
    value = table.data.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise table.fail(name, f"is {value!r}; expected a whole number of at least {minimum}")
    return value


def boolean(table: Table, name: str) -> bool:
    """Return an entry that is true or false."""
    value = table.data.get(name)
    if not isinstance(value, bool):
        raise table.fail(name, f"is {value!r}; expected true or false")
    return value


def choice(table: Table, name: str, *, allowed: tuple[str, ...]) -> str:
    """Return an entry that is one of a few words."""
    value = table.data.get(name)
    if value not in allowed:
        raise table.fail(name, f"is {value!r}; expected one of {list(allowed)}")
    return str(value)


def quantity(
    table: Table,
    name: str,
    *,
    dimension: Dimension,
    allow_zero: bool = False,
    maximum: float = math.inf,
) -> Quantity:
    """Return an entry of the form ``{ value, unit, source, kind, note }`` in SI.

    Parameters
    ----------
    table : Table
        Table that holds the entry.
    name : str
        Key of the entry.
    dimension : str
        Dimension its unit must have.
    allow_zero : bool
        Whether the value may be zero; it may never be negative.
    maximum : float
        Largest value accepted, in SI.

    Returns
    -------
    Quantity
        The checked quantity.

    Raises
    ------
    ProfileError
        If a key is missing or unknown, the unit is of another dimension, the value is out of
        range or not finite, or the source is not declared in the file.
    """
    entry = sub_table(table, name)
    check_keys(entry, required=("value", "unit", "source", "kind"), optional=("note",))
    value, unit = entry.data["value"], entry.data["unit"]
    factors = UNITS[dimension]
    if not isinstance(unit, str) or unit not in factors:
        raise entry.fail("unit", f"is {unit!r}; expected one of {sorted(factors)}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise entry.fail("value", f"is {value!r}; expected a finite number")
    si_value = parse_quantity(value, unit, dimension=dimension)
    if si_value < 0 or (si_value == 0 and not allow_zero):
        bound = "at least 0" if allow_zero else "above 0"
        raise entry.fail("value", f"is {value!r}; expected a number {bound}")
    if si_value > maximum:
        raise entry.fail("value", f"is {value!r} {unit}; expected at most {maximum:g}")
    return Quantity(
        value=si_value,
        written_value=float(value),
        written_unit=unit,
        provenance=provenance_of(entry),
    )


def provenance_of(entry: Table) -> Provenance:
    """Return where the numbers of a table come from."""
    source = text(entry, "source")
    if source not in entry.sources:
        declared = sorted(entry.sources)
        raise entry.fail("source", f"is {source!r}; expected one of [sources]: {declared}")
    note = text(entry, "note") if "note" in entry.data else ""
    kind = choice(entry, "kind", allowed=_SOURCE_KINDS)
    return Provenance(source=entry.sources[source], kind=kind, note=note)  # type: ignore[arg-type]


def whole_quantity(table: Table, name: str) -> tuple[int, Provenance]:
    """Return a quantity that counts something."""
    found = quantity(table, name, dimension="ratio")
    if found.value != int(found.value):
        raise table.fail(f"{name}.value", f"is {found.value!r}; expected a whole number")
    return int(found.value), found.provenance
