"""A profile as plain data for tables and JSON: values in SI beside the values as written."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

from hardware_profiles.catalog_index import (
    ProfileKind,
    catalog_names,
    is_path,
    nearest_hint,
    profile_path,
)
from hardware_profiles.clusters import cluster_path, load_cluster
from hardware_profiles.device_file import load_device
from hardware_profiles.document import Table, read_document
from hardware_profiles.errors import ProfileError
from hardware_profiles.link_file import load_link
from hardware_profiles.software_file import load_software

_KINDS: tuple[ProfileKind, ...] = get_args(ProfileKind)
_QUANTITY_KEYS = {"value", "unit", "source", "kind"}


def describe_profile(name: str) -> dict[str, Any]:
    """Describe any profile by name or path as plain data.

    Parameters
    ----------
    name : str
        Catalogue name of a device, link, cluster or software profile, a cluster with count and
        overrides, or the path of a TOML file.

    Returns
    -------
    dict
        ``kind``, ``name``, ``title``, ``fields`` (SI units, as the value objects have them),
        ``quantities`` (per dotted key of the file: ``value``, ``unit``, ``source``, ``kind``,
        ``note`` as written there) and ``sources`` (title per key). JSON can hold all of it.

    Raises
    ------
    ProfileError
        If nothing has that name, or the file breaks a rule.

    Examples
    --------
    >>> found = describe_profile("a100-sxm4-80gb")
    >>> found["kind"], found["quantities"]["peak_flops.bf16"]["value"]
    ('device', 312)
    >>> found["fields"]["memory_bandwidth_bytes_per_s"]
    2039000000000.0
    """
    kind = _kind_of(name)
    if kind == "cluster":
        path, profile = cluster_path(name), load_cluster(name)
    else:
        path = profile_path(name, kind=kind)
        loaders = {"device": load_device, "link": load_link, "software": load_software}
        profile = loaders[kind](name)  # type: ignore[assignment]
    document = read_document(path, kind=kind)
    return {
        "kind": kind,
        "name": profile.name,
        "title": profile.title,
        "fields": _plain(profile),
        "quantities": dict(_quantities(document.data, "")),
        "sources": dict(document.sources),
    }


def _kind_of(name: str) -> ProfileKind:
    """Find which kind of profile a name or file is."""
    base = name.partition("?")[0]
    if is_path(base):
        return _kind_of_file(base)
    for kind in _KINDS:
        if base in catalog_names(kind):
            return kind
    known = [known for kind in _KINDS for known in catalog_names(kind)]
    if base.partition(":")[0] in catalog_names("cluster") or base.startswith("local:"):
        return "cluster"
    raise ProfileError(f"unknown profile {name!r}; {nearest_hint(base, names=known)}")


def _kind_of_file(base: str) -> ProfileKind:
    """Read which kind of profile a file declares."""
    path = cluster_path(base)
    try:
        kind = tomllib.loads(path.read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError):
        kind = "device"  # the loader of any kind reports what is wrong with the file
    if kind not in _KINDS:
        bare = Table(where=path.name, path="", data={}, sources={})
        raise bare.fail("kind", f"is {kind!r}; expected one of {list(_KINDS)}")
    return kind  # type: ignore[no-any-return]


def _quantities(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every quantity table of a file with its dotted key."""
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value.keys() >= _QUANTITY_KEYS:
            yield path, {"note": "", **value}
        elif isinstance(value, dict):
            yield from _quantities(value, f"{path}.")


def _plain(value: object) -> Any:
    """Return a value object as dicts and lists, without provenance."""
    if is_dataclass(value):
        names = (item.name for item in fields(value))
        return {name: _plain(getattr(value, name)) for name in names if name != "provenance"}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
