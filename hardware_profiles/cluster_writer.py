"""A cluster as one self-contained TOML file, for calibrated machines and for keeping."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from hardware_profiles.cluster import Cluster
from hardware_profiles.collective_costs import costs_to_lines
from hardware_profiles.device import DeviceProfile
from hardware_profiles.device_file import (
    MATMUL_OPTIONS,
    NEUTRAL,
    OPTIONAL_QUANTITIES,
    QUANTITIES,
)
from hardware_profiles.document import SCHEMA
from hardware_profiles.errors import ProfileError
from hardware_profiles.interconnect import Fabric, LinkProfile
from hardware_profiles.provenance import Provenance
from hardware_profiles.units import SI_UNIT, Dimension

_RETRIEVED = re.compile(r"(.*) \(retrieved (\d{4}-\d{2}-\d{2})\)", re.DOTALL)
_Profile = TypeVar("_Profile", DeviceProfile, LinkProfile)
_UNSTATED = Provenance(source="not stated", kind="assumed")


@dataclass(kw_only=True, slots=True)
class _Writer:
    """Lines written so far and the sources they name."""

    lines: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def table(self, name: str) -> None:
        """Begin a table."""
        self.lines += ["", f"[{name}]"]

    def plain(self, key: str, value: str | int) -> None:
        """Write an entry that is no quantity."""
        self.lines.append(f"{key} = {_plain(value)}")

    def quantity(
        self, key: str, value: float, dimension: Dimension, provenance: Provenance | None
    ) -> None:
        """Write a quantity in the SI unit of its dimension, with its source."""
        origin = provenance or _UNSTATED
        source = self.sources.setdefault(origin.source, f"source{len(self.sources) + 1}")
        parts = [
            f"value = {value!r}",
            f'unit = "{SI_UNIT[dimension]}"',
            f'source = "{source}"',
            f'kind = "{origin.kind}"',
        ]
        if origin.note:
            parts.append(f"note = {_text(origin.note)}")
        self.lines.append(f"{key} = {{ {', '.join(parts)} }}")


def cluster_to_toml(cluster: Cluster) -> str:
    r"""Write a cluster as a TOML file that holds its devices and links itself.

    :func:`hardware_profiles.load_cluster` reads the file back as an equal cluster, whatever
    the catalogue says by then. A quantity without provenance is written as assumed.

    Parameters
    ----------
    cluster : Cluster
        Any cluster, changed by overrides or measured.

    Returns
    -------
    str
        Text of the file, quantities in SI units, with a newline at its end.

    Raises
    ------
    ProfileError
        If two different devices, or two different links, share a name.

    Examples
    --------
    >>> from hardware_profiles.clusters import load_cluster
    >>> print(*cluster_to_toml(load_cluster("dgx-h100:2")).splitlines()[:4], sep="\n")
    schema = 1
    kind = "cluster"
    name = "dgx-h100:2"
    title = "NVIDIA DGX H100"
    """
    writer = _Writer()
    _write_head(writer, cluster)
    for group in cluster.node_groups:
        writer.lines += ["", "[[node_group]]"]
        writer.plain("device", group.device.name)
        writer.plain("devices_per_node", group.devices_per_node)
        writer.plain("num_nodes", group.num_nodes)
    fabrics = {"intra": cluster.intra, "inter": cluster.inter}
    present = {name: fabric for name, fabric in fabrics.items() if fabric is not None}
    for name, fabric in present.items():
        _write_fabric(writer, name, fabric, cluster.provenance)
    for device in _by_name("device", [group.device for group in cluster.node_groups]):
        _write_device(writer, device)
    for link in _by_name("link", [fabric.link for fabric in present.values()]):
        _write_link(writer, link)
    for title, key in writer.sources.items():
        writer.table(f"sources.{key}")
        match = _RETRIEVED.fullmatch(title)
        writer.plain("title", match.group(1) if match else title)
        if match:
            writer.lines.append(f"retrieved = {match.group(2)}")
    return "\n".join(writer.lines) + "\n"


def _write_head(writer: _Writer, cluster: Cluster) -> None:
    """Write what belongs to the cluster as a whole."""
    writer.plain("schema", SCHEMA)
    writer.plain("kind", "cluster")
    writer.plain("name", cluster.name)
    writer.plain("title", cluster.title)
    origin = cluster.provenance
    if cluster.nics_per_node != 1 or "nics_per_node" in origin:
        nics = origin.get("nics_per_node")
        writer.quantity("nics_per_node", cluster.nics_per_node, "ratio", nics)
    if cluster.oversubscription != 1.0 or "oversubscription" in origin:
        known = origin.get("oversubscription")
        writer.quantity("oversubscription", cluster.oversubscription, "ratio", known)
    if cluster.price_usd_per_hour is not None:
        known = origin.get("price_usd_per_hour")
        writer.quantity("price", cluster.price_usd_per_hour, "price", known)


def _write_fabric(
    writer: _Writer, name: str, fabric: Fabric, origin: Mapping[str, Provenance]
) -> None:
    """Write one of the two fabrics."""
    writer.table(name)
    writer.plain("topology", fabric.topology)
    writer.plain("link", fabric.link.name)
    known = origin.get(f"{name}.bandwidth_bytes_per_s")
    writer.quantity("bandwidth", fabric.bandwidth_bytes_per_s, "bandwidth", known)
    writer.quantity("latency", fabric.latency_s, "time", origin.get(f"{name}.latency_s"))
    base = origin.get(f"{name}.base_latency_s")
    if fabric.base_latency_s or base:
        writer.quantity("base_latency", fabric.base_latency_s, "time", base)
    if fabric.in_network_reduction:
        writer.lines.append("in_network_reduction = true")
    if fabric.torus_shape:
        writer.lines.append(f"torus_shape = {list(fabric.torus_shape)}")
        wraps = ", ".join(_plain(wrap) for wrap in fabric.torus_wraps)
        writer.lines.append(f"torus_wraps = [{wraps}]")
    if fabric.group_share:
        writer.table(f"{name}.group_bandwidth")
        for ranks, share in fabric.group_share.items():
            known = origin.get(f"{name}.group_bandwidth.{ranks}")
            rate = share * fabric.bandwidth_bytes_per_s
            writer.quantity(str(ranks), rate, "bandwidth", known)


def _write_device(writer: _Writer, device: DeviceProfile) -> None:
    """Write an embedded device."""
    path = f"devices.{_text(device.name)}"
    origin = device.provenance
    writer.table(path)
    for key in ("name", "title", "vendor"):
        writer.plain(key, getattr(device, key))
    writer.plain("device_kind", device.kind)
    writer.plain("year", device.year)
    for key, (name, dimension, _) in QUANTITIES.items():
        writer.quantity(key, getattr(device, name), dimension, origin.get(name))
    for key, (name, dimension, _) in OPTIONAL_QUANTITIES.items():
        if origin.get(name, NEUTRAL) != NEUTRAL:
            writer.quantity(key, getattr(device, name), dimension, origin.get(name))
    units = origin.get("num_compute_units")
    writer.quantity("compute_units", device.num_compute_units, "ratio", units)
    if device.price_usd_per_hour is not None:
        known = origin.get("price_usd_per_hour")
        writer.quantity("price", device.price_usd_per_hour, "price", known)
    writer.table(f"{path}.peak_flops")
    for precision, peak in device.peak_flops_per_s.items():
        known = origin.get(f"peak_flops_per_s.{precision}")
        writer.quantity(precision, peak, "flops_rate", known)
    _write_efficiencies(writer, device, path)


def _write_efficiencies(writer: _Writer, device: DeviceProfile, path: str) -> None:
    """Write how much of its peaks a device reaches in products and attention."""
    origin = device.provenance
    writer.table(f"{path}.matmul")
    for key in ("sustained_efficiency", "half_k", "tile_m", "tile_n"):
        value = getattr(device.matmul, key)
        writer.quantity(key, value, "ratio", origin.get(f"matmul.{key}"))
    for key, (name, dimension, _) in MATMUL_OPTIONS.items():
        if origin.get(f"matmul.{name}", NEUTRAL) != NEUTRAL:
            value = getattr(device.matmul, name)
            writer.quantity(key, value, dimension, origin.get(f"matmul.{name}"))
    if device.matmul.precision_shares:
        writer.table(f"{path}.matmul.precision_share")
    for precision, share in device.matmul.precision_shares.items():
        known = origin.get(f"matmul.precision_shares.{precision}")
        writer.quantity(precision, share, "ratio", known)
    if device.element_times_s:
        writer.table(f"{path}.element_times")
    for key, seconds in device.element_times_s.items():
        writer.quantity(_text(key), seconds, "time", origin.get(f"element_times_s.{key}"))
    for version, kernel in device.attention_kernels.items():
        writer.table(f"{path}.attention.flash{version}")
        for key in ("forward", "backward", "half_width"):
            known = origin.get(f"attention_kernels.flash{version}.{key}")
            writer.quantity(key, getattr(kernel, key), "ratio", known)


def _write_link(writer: _Writer, link: LinkProfile) -> None:
    """Write an embedded link."""
    origin = link.provenance
    writer.table(f"links.{_text(link.name)}")
    writer.plain("name", link.name)
    writer.plain("title", link.title)
    writer.plain("link_kind", link.kind)
    known = origin.get("bandwidth_bytes_per_s")
    writer.quantity("bandwidth", link.bandwidth_bytes_per_s, "bandwidth", known)
    writer.quantity(
        "achievable_bandwidth",
        link.achievable_bandwidth_bytes_per_s,
        "bandwidth",
        origin.get("achievable_bandwidth_bytes_per_s"),
    )
    writer.quantity("latency", link.latency_s, "time", origin.get("latency_s"))
    if link.costs is not None:
        known = origin.get("costs") or _UNSTATED
        writer.table(f"links.{_text(link.name)}.collectives")
        number = f"source{len(writer.sources) + 1}"
        writer.plain("source", writer.sources.setdefault(known.source, number))
        writer.plain("kind", known.kind)
        if known.note:
            writer.plain("note", known.note)
        writer.lines += costs_to_lines(link.costs)


def _by_name(kind: str, profiles: list[_Profile]) -> list[_Profile]:
    """Return each profile once; one name may not stand for two."""
    found: dict[str, _Profile] = {}
    for profile in profiles:
        if found.setdefault(profile.name, profile) != profile:
            raise ProfileError(
                f"two different {kind}s are called {profile.name!r}; give each its own name"
            )
    return list(found.values())


def _plain(value: str | int) -> str:
    """Return a value in TOML notation."""
    if isinstance(value, bool):
        return str(value).lower()
    return _text(value) if isinstance(value, str) else str(value)


def _text(value: str) -> str:
    """Return a text in TOML notation, which is that of JSON but for one control character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
