"""Reading case files; each mistake is one line that names file, case and key."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, get_args

from hardware_profiles.errors import ParaplanError
from planner.strategy import STRATEGY_KEYS
from planner.validation.cases import CaseGroup, Family, MemoryKind, Role, ValidationCase

SCHEMA = 2
_GIB = 2.0**30
_NUMBER = (int, float)
_OPTIONS: Mapping[str, Any] = {
    "model": str, "cluster": str, "global_batch": int, "seq_len": int, "precision": str,
    "optimizer": str, "mode": str, "attention": str, "software": str, "strategy": str,
}  # fmt: skip
_GROUP: Mapping[str, Any] = {
    "schema": int, "group": str, "family": str, "source": str, "tolerance": _NUMBER, "why": str,
    "memory_tolerance": _NUMBER, "defaults": dict, "case": list,
}  # fmt: skip
_CASE: Mapping[str, Any] = {
    **_OPTIONS, "id": str, "role": str, "complete": bool, "step_time_s": _NUMBER, "derived": str,
    "memory_gib": _NUMBER, "memory_kind": str, "fits": bool, "sweep": str, "free": list,
    "outlier": str, "note": str,
}  # fmt: skip
_NEEDED = ("schema", "group", "family", "source", "tolerance", "why", "case")
_NEEDED_OPTIONS = ("model", "cluster", "global_batch")
_NAMES = {
    str: "text", int: "a whole number", bool: "true or false", dict: "a table", list: "a list",
    _NUMBER: "a number",
}  # fmt: skip


class CaseFileError(ParaplanError):
    """A validation case file is malformed."""


def case_folder() -> Traversable:
    """Return the folder of the case files shipped with the package."""
    return files("planner.validation") / "cases"


def load_groups(
    folder: Traversable | None = None, *, group: str | None = None, family: str | None = None
) -> tuple[CaseGroup, ...]:
    """Return case groups by file name.

    Parameters
    ----------
    folder : Traversable or Path, optional
        Where the files are; the shipped ones by default.
    group : str, optional
        Read this group alone.
    family : str, optional
        Keep groups of this family alone.

    Raises
    ------
    CaseFileError
        If a file is malformed, or no group is left; one line names file, case and key.
    """
    entries = _entries(folder or case_folder())
    if group is not None and group not in entries:
        raise CaseFileError(f"--group is '{group}'; expected one of {', '.join(entries)}")
    if family is not None and family not in get_args(Family):
        raise CaseFileError(f"--family is '{family}'; expected one of {_words(Family)}")
    chosen = entries if group is None else {group: entries[group]}
    found = [
        read_group(entry.read_text(encoding="utf-8"), name=name) for name, entry in chosen.items()
    ]
    kept = tuple(one for one in found if family in (None, one.family))
    if not kept:
        asked = f"group '{group}' and family '{family}'" if group else f"family '{family}'"
        raise CaseFileError(f"no validation case is of {asked}; leave one of them out")
    return kept


def _entries(folder: Traversable) -> dict[str, Traversable]:
    """Return the case files of a folder by name."""
    found = (
        {
            entry.name.removesuffix(".toml"): entry
            for entry in sorted(folder.iterdir(), key=lambda item: item.name)
            if entry.name.endswith(".toml")
        }
        if folder.is_dir()
        else {}
    )
    if not found:
        raise CaseFileError(f"{folder}: no folder with case files; expected files *.toml in it")
    return found


def read_group(text: str, *, name: str) -> CaseGroup:
    """Return the group that a case file holds.

    Raises
    ------
    CaseFileError
        If a key is missing, unknown or of the wrong kind.
    """
    where = f"{name}.toml"
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CaseFileError(f"{where}: not TOML: {error}; correct that line") from None
    _check_keys(where, data, allowed=_GROUP, needed=_NEEDED)
    if data["schema"] != SCHEMA:
        raise CaseFileError(f"{where}: schema is {data['schema']}; expected {SCHEMA}")
    if data["group"] != name:
        raise CaseFileError(f"{where}: group is '{data['group']}'; expected the file's name")
    _check_word(where, "family", data["family"], Family)
    for key in ("tolerance", "memory_tolerance"):
        _check_positive(where, key, data.get(key))
    defaults = data.get("defaults", {})
    _check_keys(f"{where}: [defaults]", defaults, allowed=_OPTIONS)
    cases = tuple(
        _case(f"{where}: {_label(row, number)}", row, group=name, defaults=defaults)
        for number, row in enumerate(data["case"])
    )
    for found, count in Counter(case.id for case in cases).items():
        if count > 1:
            raise CaseFileError(
                f"{where}: case '{found}' is there {count} times; give each its own"
            )
    return CaseGroup(
        name=name,
        family=data["family"],
        source=data["source"],
        tolerance=float(data["tolerance"]),
        memory_tolerance=_number(data.get("memory_tolerance")),
        why=data["why"],
        cases=cases,
    )


def _label(row: Any, number: int) -> str:
    named = isinstance(row, dict) and isinstance(row.get("id"), str)
    return f"case '{row['id']}'" if named else f"case number {number + 1}"


def _case(where: str, row: Any, *, group: str, defaults: dict[str, Any]) -> ValidationCase:
    if not isinstance(row, dict):
        raise CaseFileError(f"{where} is {row!r}; expected a [[case]] table")
    _check_keys(where, row, allowed=_CASE, needed=("id",))
    options = defaults | {key: value for key, value in row.items() if key in _OPTIONS}
    for key in _NEEDED_OPTIONS:
        if key not in options:
            raise CaseFileError(f"{where}: '{key}' is missing; give it here or in [defaults]")
    _check_word(where, "role", row.get("role", "judge"), Role)
    for key in ("step_time_s", "memory_gib"):
        _check_positive(where, key, row.get(key))
    _check_measured(where, row)
    if not row.get("outlier", "-").strip():
        raise CaseFileError(f"{where}: 'outlier' is empty; expected the cause in one sentence")
    memory_gib = _number(row.get("memory_gib"))
    return ValidationCase(
        id=row["id"],
        group=group,
        role=row.get("role", "judge"),
        is_complete=row.get("complete", True),
        options=options,
        step_time_s=_number(row.get("step_time_s")),
        derived=row.get("derived", ""),
        memory_bytes=None if memory_gib is None else memory_gib * _GIB,
        memory_kind=row.get("memory_kind"),
        fits=row.get("fits"),
        sweep=row.get("sweep"),
        free=_free(where, row.get("free", [])),
        outlier=row.get("outlier", ""),
        note=row.get("note", ""),
    )


def _check_measured(where: str, row: dict[str, Any]) -> None:
    """Refuse a case without anything measured, and measurements that contradict each other."""
    has_step, has_memory = "step_time_s" in row, "memory_gib" in row
    if not (has_step or has_memory or "fits" in row):
        raise CaseFileError(
            f"{where}: nothing measured; expected 'step_time_s', 'memory_gib' or 'fits'"
        )
    if has_step and row.get("fits") is False:
        raise CaseFileError(f"{where}: 'fits' is false beside 'step_time_s'; keep one")
    if has_memory != ("memory_kind" in row):
        raise CaseFileError(f"{where}: 'memory_gib' and 'memory_kind' go together; give both")
    if has_memory:
        _check_word(where, "memory_kind", row["memory_kind"], MemoryKind)


def _free(where: str, keys: list[Any]) -> tuple[str, ...]:
    for key in keys:
        if key not in STRATEGY_KEYS:
            raise CaseFileError(
                f"{where}: free has {key!r}; expected keys of {', '.join(STRATEGY_KEYS)}"
            )
    return tuple(keys)


def _check_keys(
    where: str, row: dict[str, Any], *, allowed: Mapping[str, Any], needed: tuple[str, ...] = ()
) -> None:
    for key in needed:
        if key not in row:
            raise CaseFileError(f"{where}: '{key}' is missing; expected {_NAMES[allowed[key]]}")
    for key, value in row.items():
        if key not in allowed:
            raise CaseFileError(f"{where}: unknown key '{key}'; expected {', '.join(allowed)}")
        kind = allowed[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CaseFileError(f"{where}: '{key}' is {value!r}; expected {_NAMES[kind]}")


def _check_word(where: str, key: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise CaseFileError(f"{where}: '{key}' is '{value}'; expected one of {_words(allowed)}")


def _check_positive(where: str, key: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise CaseFileError(f"{where}: '{key}' is {value!r}; expected a number above 0")


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _words(allowed: Any) -> str:
    return ", ".join(get_args(allowed))
