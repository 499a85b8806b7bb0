"""Where profiles lie: the catalogue inside the package and the user's own folder."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from hardware_profiles.errors import ProfileError
from hardware_profiles.nearest import nearest_names

ProfileKind = Literal["device", "link", "cluster", "software"]

_CATALOG = Path(__file__).parent / "catalog"
_FOLDERS: dict[ProfileKind, str] = {
    "device": "devices",
    "link": "links",
    "cluster": "clusters",
    "software": "software",
}

MEASURED_SOFTWARE = "local-software.toml"
"""File beside the machine's own cluster: the stack ``local`` as ``paraplan calibrate`` timed it."""


def paraplan_home() -> Path:
    """Return the folder of the user's own profiles and caches.

    The environment variable ``PARAPLAN_HOME`` wins over the platform's data folder.

    Returns
    -------
    Path
        The folder; it need not exist.

    Examples
    --------
    >>> isinstance(paraplan_home(), Path)
    True
    """
    given = os.environ.get("PARAPLAN_HOME")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("paraplan"))


@cache
def catalog_names(kind: ProfileKind) -> tuple[str, ...]:
    """Return the names of all shipped profiles of one kind, sorted.

    Parameters
    ----------
    kind : str
        ``"device"``, ``"link"``, ``"cluster"`` or ``"software"``.

    Returns
    -------
    tuple of str
        Names as the loaders take them.

    Examples
    --------
    >>> "dgx-a100-80g" in catalog_names("cluster")
    True
    """
    return tuple(sorted(path.stem for path in (_CATALOG / _FOLDERS[kind]).glob("*.toml")))


def is_path(name_or_path: str | Path) -> bool:
    """Tell whether an argument means a file and not a catalogue name."""
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text


def profile_path(name_or_path: str | Path, *, kind: ProfileKind) -> Path:
    """Return the file of a profile, shipped or the user's own.

    Parameters
    ----------
    name_or_path : str or Path
        Catalogue name, or path of a TOML file.
    kind : str
        Kind of profile a name is looked up in.

    Returns
    -------
    Path
        The file; a shipped one exists, the user's is checked when it is read.

    Raises
    ------
    ProfileError
        If the name is not in the catalogue; the message offers the nearest names.

    Examples
    --------
    >>> profile_path("h100-sxm", kind="device")
    Traceback (most recent call last):
    hardware_profiles.errors.ProfileError: unknown device 'h100-sxm'; did you mean 'h100-sxm5...
    """
    if is_path(name_or_path):
        return Path(name_or_path).expanduser()
    measured = paraplan_home() / "profiles" / MEASURED_SOFTWARE
    if (kind, name_or_path) == ("software", "local") and measured.is_file():
        return measured
    path = shipped_path(str(name_or_path), kind=kind)
    if path.is_file():
        return path
    name = str(name_or_path)
    hint = nearest_hint(name, names=catalog_names(kind))
    raise ProfileError(f"unknown {kind} {name!r}; {hint}")


def shipped_path(name: str, *, kind: ProfileKind) -> Path:
    """Return where the catalogue would hold a profile of this name.

    Examples
    --------
    >>> shipped_path("local", kind="software").name
    'local.toml'
    """
    return _CATALOG / _FOLDERS[kind] / f"{name}.toml"


def nearest_hint(name: str, *, names: Sequence[str]) -> str:
    """Return the part of a message that offers the nearest known names."""
    near = nearest_names(name, names)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"'paraplan profiles' lists the {len(names)} known ones"
