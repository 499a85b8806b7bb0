"""Cluster profiles: a file and a count to a value object."""

from dataclasses import dataclass, replace
from math import prod
from typing import get_args

from hardware_profiles.cluster import Cluster, NodeGroup
from hardware_profiles.device import DeviceProfile
from hardware_profiles.device_file import device_from_table, load_device
from hardware_profiles.document import (
    Table,
    boolean,
    check_keys,
    choice,
    integer,
    quantity,
    sub_table,
    text,
    whole_quantity,
)
from hardware_profiles.errors import ProfileError
from hardware_profiles.interconnect import Fabric, FabricTopology, LinkProfile
from hardware_profiles.link_file import collective_costs, link_from_table, load_link
from hardware_profiles.provenance import Provenance
from hardware_profiles.torus import (
    SliceRule,
    slice_rule_from_table,
    slice_shape,
    slice_wraps,
    slices_of,
)

_REQUIRED = ("schema", "kind", "name", "title", "node_group", "intra")
_OPTIONAL = (
    "sources", "count", "default_count", "devices", "links", "inter", "slice",
    "nics_per_node", "oversubscription", "price",
)  # fmt: skip
_COUNTS = ("nodes", "devices")
_CUBE_MESH_DEVICES = 8
_FEWEST = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What the text after the name asks for; None keeps what the file says."""

    count: int | None = None
    devices_per_node: int | None = None


def cluster_from_document(document: Table, *, scale: Scale) -> Cluster:
    """Build a cluster of the size asked for from a cluster file.

    Parameters
    ----------
    document : Table
        Top table of the file.
    scale : Scale
        Count after the name and devices per node, where given.

    Returns
    -------
    Cluster
        The cluster, its network between nodes still present where the file has one.

    Raises
    ------
    ProfileError
        If the file breaks a rule or cannot be scaled as asked.
    """
    check_keys(document, required=_REQUIRED, optional=_OPTIONAL)
    provenance: dict[str, Provenance] = {}
    rule = None
    if "slice" in document.data:
        rule = slice_rule_from_table(sub_table(document, "slice"))
    written = _node_groups(document)
    groups = _scaled(document, written, scale=scale, rule=rule)
    cluster = Cluster(
        name=text(document, "name"),
        title=text(document, "title"),
        node_groups=groups,
        intra=_intra(document, groups, rule=rule, provenance=provenance),
        inter=_fabric(document, "inter", provenance) if "inter" in document.data else None,
        nics_per_node=_nics(document, groups, provenance),
        oversubscription=_oversubscription(document, provenance),
        price_usd_per_hour=_price(document, written, groups, provenance),
        provenance=provenance,
    )
    if cluster.num_nodes > 1 and cluster.inter is None:
        raise document.fail("inter", f"is missing but there are {cluster.num_nodes} nodes; add it")
    return cluster


def _node_groups(document: Table) -> tuple[NodeGroup, ...]:
    """Read the node groups as the file has them."""
    entries = document.data["node_group"]
    if not isinstance(entries, list) or not entries:
        raise document.fail("node_group", "is not a list; expected [[node_group]] tables")
    groups = []
    for index, entry in enumerate(entries):
        key = f"node_group[{index}]"
        if not isinstance(entry, dict):
            raise document.fail(key, f"is {entry!r}; expected a table")
        table = Table(where=document.where, path=key, data=entry, sources=document.sources)
        check_keys(table, required=("device", "devices_per_node", "num_nodes"))
        groups.append(
            NodeGroup(
                device=_device(document, text(table, "device")),
                devices_per_node=integer(table, "devices_per_node"),
                num_nodes=integer(table, "num_nodes"),
            )
        )
    return tuple(groups)


def _device(document: Table, name: str) -> DeviceProfile:
    """Return a device embedded in the file, else the one of the catalogue."""
    if "devices" in document.data and name in sub_table(document, "devices").data:
        return device_from_table(sub_table(sub_table(document, "devices"), name))
    return load_device(name)


def _link(document: Table, name: str) -> LinkProfile:
    """Return a link embedded in the file, else the one of the catalogue."""
    if "links" in document.data and name in sub_table(document, "links").data:
        return link_from_table(sub_table(sub_table(document, "links"), name))
    return load_link(name)


def _link_here(table: Table, link: LinkProfile) -> LinkProfile:
    """Return the link with the costs of collectives measured on this fabric, where given."""
    costs, origin = collective_costs(table)
    if costs is None:
        return link
    return replace(link, costs=costs, provenance={**link.provenance, **origin})


def _scaled(
    document: Table, groups: tuple[NodeGroup, ...], *, scale: Scale, rule: SliceRule | None
) -> tuple[NodeGroup, ...]:
    """Return the node groups of the size asked for."""
    if len(groups) > 1:
        return _scaled_mixed(document, groups, scale=scale)
    (group,) = groups
    count = scale.count
    if count is None and "default_count" in document.data:
        count = integer(document, "default_count")
    per_node = scale.devices_per_node or group.devices_per_node
    counted = "nodes"
    if "count" in document.data:
        counted = choice(document, "count", allowed=_COUNTS)
    if count is None or counted == "nodes":
        num_nodes = count or group.num_nodes
    elif scale.devices_per_node is not None:
        if count % per_node:
            raise ProfileError(
                f"devices_per_node={per_node} does not divide {count} devices; choose a divisor"
            )
        num_nodes = count // per_node
    elif rule is not None:
        num_nodes, per_node = slices_of(count, rule=rule)
    else:
        num_nodes, per_node = 1, count
    return (NodeGroup(device=group.device, devices_per_node=per_node, num_nodes=num_nodes),)


def _scaled_mixed(
    document: Table, groups: tuple[NodeGroup, ...], *, scale: Scale
) -> tuple[NodeGroup, ...]:
    """Return several groups as the file has them, perhaps with other devices per node."""
    if scale.count is not None:
        raise ProfileError(
            f"{document.where} has {len(groups)} node groups and takes no count; "
            "set num_nodes of each group in the file"
        )
    if scale.devices_per_node is None:
        return groups
    return tuple(
        NodeGroup(
            device=group.device,
            devices_per_node=scale.devices_per_node,
            num_nodes=group.num_nodes,
        )
        for group in groups
    )


def _intra(
    document: Table,
    groups: tuple[NodeGroup, ...],
    *,
    rule: SliceRule | None,
    provenance: dict[str, Provenance],
) -> Fabric:
    """Read the fabric inside a node, with the shape of its torus."""
    per_node = max(group.devices_per_node for group in groups)
    shape: tuple[int, ...] | None = None
    if rule is not None:
        shape = slice_shape(per_node, rule=rule)
    fabric = _fabric(document, "intra", provenance, rule=rule, shape=shape)
    if fabric.topology == "torus" and prod(fabric.torus_shape) != per_node:
        table = sub_table(document, "intra")
        found = "x".join(map(str, fabric.torus_shape)) or "empty"
        raise table.fail("torus_shape", f"is {found}; expected a product of {per_node} devices")
    if fabric.topology == "cube_mesh" and per_node > _CUBE_MESH_DEVICES:
        table = sub_table(document, "intra")
        raise table.fail(
            "topology", f"is 'cube_mesh' with {per_node} devices; expected at most 8 per node"
        )
    return fabric


def _fabric(
    document: Table,
    name: str,
    provenance: dict[str, Provenance],
    *,
    rule: SliceRule | None = None,
    shape: tuple[int, ...] | None = None,
) -> Fabric:
    """Read one of the two fabrics."""
    table = sub_table(document, name)
    check_keys(
        table,
        required=("topology", "link", "bandwidth", "latency"),
        optional=(
            "base_latency", "in_network_reduction", "torus_shape", "torus_wraps", "collectives",
            "group_bandwidth",
        ),
    )  # fmt: skip
    link = _link_here(table, _link(document, text(table, "link")))
    bandwidth = quantity(
        table, "bandwidth", dimension="bandwidth", maximum=link.bandwidth_bytes_per_s
    )
    latency = quantity(table, "latency", dimension="time", maximum=10.0)
    provenance[f"{name}.bandwidth_bytes_per_s"] = bandwidth.provenance
    provenance[f"{name}.latency_s"] = latency.provenance
    base_latency_s = 0.0
    if "base_latency" in table.data:
        base = quantity(table, "base_latency", dimension="time", allow_zero=True, maximum=10.0)
        base_latency_s, provenance[f"{name}.base_latency_s"] = base.value, base.provenance
    reduces = "in_network_reduction" in table.data and boolean(table, "in_network_reduction")
    if rule is not None and shape is not None:
        wraps = slice_wraps(shape, rule=rule)
    else:
        shape, wraps = _written_torus(table)
    return Fabric(
        topology=choice(  # type: ignore[arg-type]
            table, "topology", allowed=get_args(FabricTopology)
        ),
        link=link,
        bandwidth_bytes_per_s=bandwidth.value,
        latency_s=latency.value,
        in_network_reduction=reduces,
        base_latency_s=base_latency_s,
        group_share=_group_share(table, name, bandwidth.value, provenance),
        torus_shape=shape,
        torus_wraps=wraps,
    )


def _group_share(
    table: Table, name: str, whole_bytes_per_s: float, provenance: dict[str, Provenance]
) -> dict[int, float]:
    """Read what groups of few neighbours reach, over what all devices reach [1]."""
    if "group_bandwidth" not in table.data:
        return {}
    entry = sub_table(table, "group_bandwidth")
    shares = {}
    for key in entry.data:
        if not key.isdecimal() or int(key) < _FEWEST:
            raise entry.fail(key, f"is not a group; expected a number of ranks from {_FEWEST}")
        found = quantity(entry, key, dimension="bandwidth")
        shares[int(key)] = found.value / whole_bytes_per_s
        provenance[f"{name}.group_bandwidth.{key}"] = found.provenance
    return shares


def _written_torus(table: Table) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Read the shape of a torus that the file spells out."""
    shape = table.data.get("torus_shape", [])
    wraps = table.data.get("torus_wraps", [False] * len(shape) if isinstance(shape, list) else [])
    if not isinstance(shape, list) or not all(type(x) is int and x > 0 for x in shape):
        raise table.fail("torus_shape", f"is {shape!r}; expected a list of whole numbers")
    if (
        not isinstance(wraps, list)
        or len(wraps) != len(shape)
        or not all(isinstance(wrap, bool) for wrap in wraps)
    ):
        raise table.fail("torus_wraps", f"is {wraps!r}; expected one true or false per axis")
    return tuple(shape), tuple(wraps)


def _nics(document: Table, groups: tuple[NodeGroup, ...], provenance: dict[str, Provenance]) -> int:
    """Read the NICs per node; a slice has one per host."""
    if "slice" in document.data:
        table = sub_table(document, "slice")
        if "devices_per_host" in table.data:
            per_host = integer(table, "devices_per_host")
            provenance["nics_per_node"] = Provenance(
                source="devices per host of the slice", kind="derived", note="one NIC per host"
            )
            return -(-groups[0].devices_per_node // per_host)
    if "nics_per_node" not in document.data:
        return 1
    nics, provenance["nics_per_node"] = whole_quantity(document, "nics_per_node")
    return nics


def _oversubscription(document: Table, provenance: dict[str, Provenance]) -> float:
    """Read the oversubscription of the network, 1 where the file is silent."""
    if "oversubscription" not in document.data:
        return 1.0
    found = quantity(document, "oversubscription", dimension="ratio")
    provenance["oversubscription"] = found.provenance
    return found.value


def _price(
    document: Table,
    written: tuple[NodeGroup, ...],
    groups: tuple[NodeGroup, ...],
    provenance: dict[str, Provenance],
) -> float | None:
    """Return the price of all devices, from the file or from the device prices [USD/h]."""
    num_devices = sum(group.devices_per_node * group.num_nodes for group in groups)
    if "price" in document.data:
        found = quantity(document, "price", dimension="price", allow_zero=True)
        provenance["price_usd_per_hour"] = found.provenance
        num_written = sum(group.devices_per_node * group.num_nodes for group in written)
        return found.value * (num_devices / num_written)
    total = 0.0
    for group in groups:
        if group.device.price_usd_per_hour is None:
            return None
        total += group.device.price_usd_per_hour * group.devices_per_node * group.num_nodes
    provenance["price_usd_per_hour"] = Provenance(
        source="prices of the devices", kind="derived", note="device price x number of devices"
    )
    return total
