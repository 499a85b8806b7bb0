"""What-if changes to a cluster, as written after the question mark of its name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hardware_profiles.cluster import Cluster, NodeGroup
from hardware_profiles.errors import ProfileError
from hardware_profiles.interconnect import Fabric
from hardware_profiles.pairs import read_pairs
from hardware_profiles.provenance import Provenance
from hardware_profiles.units import Dimension, parse_quantity_text

OVERRIDES: dict[str, Dimension] = {
    "devices_per_node": "ratio",
    "intra_bandwidth": "bandwidth",
    "intra_latency": "time",
    "memory": "size",
    "nic_bandwidth": "bandwidth",
    "nic_latency": "time",
    "nics_per_node": "ratio",
    "oversubscription": "ratio",
    "price": "price",
}
"""Key after the question mark and the dimension of its value."""
_COUNTS = {"devices_per_node", "nics_per_node"}


def parse_overrides(text: str) -> dict[str, float]:
    """Read ``key=value&key=value`` into SI values.

    Parameters
    ----------
    text : str
        Part of a cluster's name after the question mark; empty for none.

    Returns
    -------
    dict of str to float
        Value in SI per key, in the order given.

    Raises
    ------
    ProfileError
        If a key is unknown or given twice, or a value is missing, has a wrong unit or is not
        positive.

    Examples
    --------
    >>> parse_overrides("nics_per_node=4&nic_bandwidth=100Gb/s")
    {'nics_per_node': 4.0, 'nic_bandwidth': 12500000000.0}
    """
    overrides: dict[str, float] = {}
    for key, value in read_pairs(text).items():
        if key not in OVERRIDES:
            raise ProfileError(f"unknown override {key!r}; expected one of {sorted(OVERRIDES)}")
        try:
            number = parse_quantity_text(value, dimension=OVERRIDES[key])
        except ProfileError as error:
            raise ProfileError(f"override {key}: {error}") from None
        if number <= 0 or (key in _COUNTS and number != int(number)):
            expected = "a whole number of at least 1" if key in _COUNTS else "a value above 0"
            raise ProfileError(f"override {key} is {value!r}; expected {expected}")
        overrides[key] = number
    return overrides


def apply_overrides(cluster: Cluster, overrides: Mapping[str, float]) -> Cluster:
    """Return the cluster with the changes made.

    ``nic_bandwidth`` and ``intra_bandwidth`` are line rates in one direction; the share of it
    that transfers reach stays as it was. ``price`` is that of one device. ``devices_per_node``
    is a matter of the loader and ignored here.

    Parameters
    ----------
    cluster : Cluster
        Cluster as the file describes it.
    overrides : mapping of str to float
        Values in SI, as :func:`parse_overrides` returns them.

    Returns
    -------
    Cluster
        The changed cluster; each changed quantity has the source ``override``.

    Raises
    ------
    ProfileError
        If the network between nodes is to change and the cluster has none.
    """
    changes: dict[str, Callable[[Cluster, float], dict[str, Any]]] = {
        "intra_bandwidth": lambda c, v: {"intra": _with_line_rate(c.intra, v)},
        "intra_latency": lambda c, v: {"intra": replace(c.intra, latency_s=v)},
        "memory": lambda c, v: {"node_groups": _with_device(c, "memory_bytes", v)},
        "nic_bandwidth": lambda c, v: {"inter": _with_line_rate(_network(c), v)},
        "nic_latency": lambda c, v: {"inter": replace(_network(c), latency_s=v)},
        "nics_per_node": lambda _, v: {"nics_per_node": int(v)},
        "oversubscription": lambda _, v: {"oversubscription": v},
        "price": lambda c, v: {
            "node_groups": _with_device(c, "price_usd_per_hour", v),
            "price_usd_per_hour": v * c.num_devices,
        },
    }
    provenance = dict(cluster.provenance)
    for key, value in overrides.items():
        if key in changes:
            cluster = replace(cluster, **changes[key](cluster, value))
            if key in _CHANGED:
                provenance[_CHANGED[key]] = _OVERRIDE
    return replace(cluster, provenance=provenance)


_OVERRIDE = Provenance(source="override", kind="assumed", note="given by the user")
_CHANGED = {
    "intra_bandwidth": "intra.bandwidth_bytes_per_s",
    "intra_latency": "intra.latency_s",
    "nic_bandwidth": "inter.bandwidth_bytes_per_s",
    "nic_latency": "inter.latency_s",
    "nics_per_node": "nics_per_node",
    "oversubscription": "oversubscription",
    "price": "price_usd_per_hour",
}


def _network(cluster: Cluster) -> Fabric:
    """Return the network between nodes, which must exist to be changed."""
    if cluster.inter is None:
        raise ProfileError(
            f"{cluster.name} has no network between nodes to change; drop the nic_ overrides"
        )
    return cluster.inter


def _with_line_rate(fabric: Fabric, line_rate_bytes_per_s: float) -> Fabric:
    """Return a fabric of another line rate with the same achieved share."""
    link = fabric.link
    factor = line_rate_bytes_per_s / link.bandwidth_bytes_per_s
    names = ("bandwidth_bytes_per_s", "achievable_bandwidth_bytes_per_s")
    return replace(
        fabric,
        bandwidth_bytes_per_s=fabric.bandwidth_bytes_per_s * factor,
        link=replace(
            link,
            bandwidth_bytes_per_s=line_rate_bytes_per_s,
            achievable_bandwidth_bytes_per_s=link.achievable_bandwidth_bytes_per_s * factor,
            provenance={**link.provenance, **dict.fromkeys(names, _OVERRIDE)},
        ),
    )


def _with_device(cluster: Cluster, name: str, value: float) -> tuple[NodeGroup, ...]:
    """Return the node groups with one field of every device changed."""
    return tuple(
        replace(
            group,
            device=replace(
                group.device,
                **{name: value},  # type: ignore[arg-type]
                provenance={**group.device.provenance, name: _OVERRIDE},
            ),
        )
        for group in cluster.node_groups
    )
