"""The one way to name a cluster: ``NAME:N?key=value``, a file, or ``local``."""

from dataclasses import replace
from pathlib import Path

from hardware_profiles.catalog_index import is_path, paraplan_home, profile_path
from hardware_profiles.cluster import Cluster
from hardware_profiles.cluster_file import Scale, cluster_from_document
from hardware_profiles.document import read_document
from hardware_profiles.errors import ParaplanError, ProfileError
from hardware_profiles.overrides import apply_overrides, parse_overrides

_MAX_COUNT = 1_000_000
LOCAL = "local"


def load_cluster(text: str) -> Cluster:
    """Load a cluster from its name, with a count and what-if changes.

    ``NAME`` or the path of a TOML file comes first; ``:N`` asks for N nodes (chips of a TPU
    slice, cards of a set of FPGAs); ``?key=value&key=value`` changes quantities. ``local`` is
    the machine that ``paraplan calibrate`` measured.

    Parameters
    ----------
    text : str
        For example ``"dgx-a100-80g:16?nic_bandwidth=100Gb/s"``.

    Returns
    -------
    Cluster
        Immutable cluster in SI units. ``inter`` is None where one node is left.

    Raises
    ------
    ProfileError
        If the name is unknown, the count or an override is wrong, or a file breaks a rule.
    ParaplanError
        If ``local`` has not been measured yet.

    Examples
    --------
    >>> cluster = load_cluster("dgx-a100-80g:16?nics_per_node=4&nic_bandwidth=100Gb/s")
    >>> cluster.num_devices, cluster.nics_per_node, cluster.inter.bandwidth_bytes_per_s
    (128, 4, 12000000000.0)
    >>> load_cluster("tpu-v4:64").intra.torus_shape
    (4, 4, 4)
    >>> load_cluster("dgx-a100-80")
    Traceback (most recent call last):
    hardware_profiles.errors.ProfileError: unknown cluster 'dgx-a100-80'; did you mean 'dgx-a100-...
    """
    base, _, query = text.strip().partition("?")
    name, count = _split_count(base, text=text)
    try:
        overrides = parse_overrides(query)
    except ProfileError as error:
        raise ProfileError(f"cluster {text!r}: {error}") from None
    document = read_document(_path(name), kind="cluster")
    per_node = overrides.get("devices_per_node")
    scale = Scale(count=count, devices_per_node=int(per_node) if per_node else None)
    try:
        cluster = apply_overrides(cluster_from_document(document, scale=scale), overrides)
    except ProfileError as error:
        if str(error).startswith(document.where):
            raise
        raise ProfileError(f"cluster {text!r}: {error}") from None
    named = name if name != LOCAL and not is_path(name) else cluster.name
    suffix = text.strip()[len(name) :]
    cluster = replace(cluster, name=named + suffix)
    return cluster if cluster.num_nodes > 1 else _without_network(cluster)


def _without_network(cluster: Cluster) -> Cluster:
    """Return a single node without the network it does not use."""
    provenance = {
        key: origin for key, origin in cluster.provenance.items() if not key.startswith("inter.")
    }
    return replace(cluster, inter=None, provenance=provenance)


def cluster_path(text: str) -> Path:
    """Return the file that a cluster's text stands for.

    Examples
    --------
    >>> cluster_path("dgx-h100:4?price=2USD/h").name
    'dgx-h100.toml'
    """
    base = text.strip().partition("?")[0]
    return _path(_split_count(base, text=text)[0])


def _path(name: str) -> Path:
    """Return the file of a cluster's name without count and overrides."""
    if name != LOCAL:
        return profile_path(name, kind="cluster")
    path = paraplan_home() / "profiles" / "local.toml"
    if not path.is_file():
        raise ParaplanError(
            f"cluster 'local' is not measured yet ({path} is absent); run 'paraplan calibrate'"
        )
    return path


def _split_count(base: str, *, text: str) -> tuple[str, int | None]:
    """Split ``NAME:N`` into its parts."""
    name, colon, digits = base.rpartition(":")
    if not colon or base.endswith(".toml"):
        return base, None
    if not digits.isascii() or not digits.isdigit() or not 1 <= int(digits) <= _MAX_COUNT:
        raise ProfileError(
            f"cluster {text!r}: the count is {digits!r}; expected a whole number from 1 to "
            f"{_MAX_COUNT}"
        )
    return name, int(digits)
