"""The picture of a cluster's network: machines as boxes, links by kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hardware_profiles.topology_graph import cluster_graph

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hardware_profiles.cluster import Cluster

_MOST_VERTICES = 60
"""Machines are left out beyond this, the first never [1]."""
_MOST_DEVICES_DRAWN = 256
_MOST_RANKS_NAMED, _MOST_IN_A_ROW = 32, 16
_INTRA_COLOR, _INTER_COLOR = "#4C78A8", "#F58518"
_KIND_COLORS = {"device": "#4C78A8", "switch": "#8E6C8A", "host": "#9D755D", "nic": "#F58518"}
_KIND_MARKERS = {"device": "s", "switch": "D", "host": "h", "nic": "o"}
_GAP, _RISE = 1.2, 1.1
_WIDTH_INCHES = 8.0
_DEPTH_X, _DEPTH_Y = 0.42, 0.34
"""How far the depth of a three-dimensional torus shifts a chip right and up."""
_GIGA = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """Where everything of a picture stands."""

    positions: dict[str, tuple[float, float]]
    boxes: tuple[tuple[float, float, float, float], ...]
    """Left, bottom, width and height of each machine."""
    width: float
    height: float


def network_figure(cluster: Cluster) -> Figure | None:
    """Draw the topology of a cluster; None where one machine holds too many devices to tell apart.

    Parameters
    ----------
    cluster : Cluster
        Of any topology; of many machines the first few are drawn.
    """
    from matplotlib.figure import Figure

    if cluster.devices_per_node > _MOST_DEVICES_DRAWN:
        return None
    graph = cluster_graph(cluster, max_nodes=_MOST_VERTICES)
    place = _arrange(graph, cluster)
    scale = _WIDTH_INCHES / max(place.width, 14.0)
    height = min(4.6, max(1.6, scale * place.height + 0.8))
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    for left, bottom, width, tall in place.boxes:
        _draw_box(axes, left, bottom, width, tall)
    _draw_links(axes, graph, place, cluster)
    _draw_vertices(axes, graph, place)
    axes.set_aspect("equal")
    _add_legend(axes, graph, cluster)
    return figure


def network_facts(cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """Return what the picture shows as label and text, for tables.

    Examples
    --------
    >>> from hardware_profiles.clusters import load_cluster
    >>> network_facts(load_cluster("dgx-1v-32g"))[0]
    ('machines', '8 devices')
    """
    intra, inter = cluster.intra, cluster.inter
    each = f"{cluster.devices_per_node:,} devices"
    facts = [("machines", each if cluster.num_nodes == 1 else f"{cluster.num_nodes:,} × {each}")]
    shape = " × ".join(str(extent) for extent in intra.torus_shape)
    topology = intra.topology.replace("_", " ") + (f" {shape}" if shape else "")
    if any(intra.torus_wraps):
        closed = zip("xyz", intra.torus_wraps, strict=False)
        topology += f" with axes closed into rings: {' '.join(x for x, wraps in closed if wraps)}"
    facts.append(
        ("inside", f"{intra.link.title}, {topology}, {_rate(intra.bandwidth_bytes_per_s)} a device")
    )
    if inter is not None:
        text = f"{cluster.nics_per_node} × {inter.link.title}"
        text += f", {_rate(inter.bandwidth_bytes_per_s)} each"
        facts.append(("between", text))
        if cluster.oversubscription != 1:
            facts.append(("oversubscription", f"{cluster.oversubscription:g} : 1"))
    return tuple(facts)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / _GIGA:.3g} GB/s"


def _arrange(graph: nx.Graph[str], cluster: Cluster) -> _Place:
    """Put machines side by side, then NICs, leaves and the spine above them."""
    positions: dict[str, tuple[float, float]] = {}
    boxes = []
    left = top = 0.0
    for node in range(graph.graph["num_nodes_drawn"]):
        devices = [name for name, data in graph.nodes(data=True) if data.get("node") == node]
        inside = _arrange_machine(graph, cluster, [x for x in devices if x[:6] == "device"], node)
        width = max(x for x, _ in inside.values())
        low, high = min(y for _, y in inside.values()), max(y for _, y in inside.values())
        positions |= {name: (left + x, y) for name, (x, y) in inside.items()}
        boxes.append((left - 0.6, low - 0.5, width + 1.2, high - low + 1.0))
        nics = [name for name in devices if name.startswith("nic")]
        positions |= _row(nics, left=left, width=width, y=high + _RISE)
        top = max(top, high + (_RISE if nics else 0.0))
        left += width + _GAP + 0.6
    leaves = [name for name in graph if name.startswith("leaf")]
    span = left - _GAP - 0.6
    positions |= _row(leaves, left=0.0, width=span, y=top + 1.6 * _RISE)
    if "spine:0" in graph:
        positions["spine:0"] = (span / 2, top + 2.8 * _RISE)
    highest = max(y for _, y in positions.values())
    lowest = min(bottom for _, bottom, _, _ in boxes)
    return _Place(
        positions=positions, boxes=tuple(boxes), width=span + 1.0, height=highest - lowest
    )


def _row(
    names: list[str], *, left: float, width: float, y: float
) -> dict[str, tuple[float, float]]:
    """Spread vertices evenly over a width."""
    step = width / len(names) if names else 0.0
    return {name: (left + step * (index + 0.5), y) for index, name in enumerate(names)}


def _arrange_machine(
    graph: nx.Graph[str], cluster: Cluster, devices: list[str], node: int
) -> dict[str, tuple[float, float]]:
    topology = cluster.intra.topology
    if topology == "torus":
        return _torus(devices, cluster.intra.torus_shape)
    if topology in ("full_mesh", "cube_mesh", "ring"):
        return _circle(devices)
    if len(devices) > _MOST_IN_A_ROW:
        inside = _circle(devices)
        radius = max(x for x, _ in inside.values()) / 2
        return inside | {name: (radius, 0.0) for name in graph if name in _centres(node)}
    inside = {name: (float(index), 0.0) for index, name in enumerate(devices)}
    for name in graph:
        kind, _, rest = name.partition(":")
        if kind == "switch" and rest.partition(".")[0] == str(node):
            below = [inside[x][0] for x in graph.neighbors(name) if x in inside and x in devices]
            inside[name] = (sum(below) / len(below), -_RISE)
    if f"host:{node}" in graph:
        depth = -2 * _RISE if len(inside) > len(devices) else -_RISE
        inside[f"host:{node}"] = ((len(devices) - 1) / 2, depth)
    return inside


def _centres(node: int) -> tuple[str, str]:
    return f"switch:{node}", f"host:{node}"


def _circle(devices: list[str]) -> dict[str, tuple[float, float]]:
    radius = max(1.6, len(devices) / 5)
    turn = 2 * math.pi / len(devices)
    return {
        name: (
            radius + radius * math.sin(turn * (index + 0.5)),
            radius * math.cos(turn * (index + 0.5)),
        )
        for index, name in enumerate(devices)
    }


def _torus(devices: list[str], shape: tuple[int, ...]) -> dict[str, tuple[float, float]]:
    """Place chips on a grid; a third axis goes into the depth. The last axis counts fastest."""
    extents = (1,) * (3 - len(shape)) + shape
    places = {}
    for index, name in enumerate(devices):
        across = index % extents[2]
        up = index // extents[2] % extents[1]
        deep = index // (extents[2] * extents[1])
        places[name] = (across * 1.0 * extents[0] ** 0.5 + _DEPTH_X * deep, -up - _DEPTH_Y * deep)
    return places


def _draw_box(axes: Axes, left: float, bottom: float, width: float, height: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.25",
            facecolor="none", edgecolor="#8A8F98", linewidth=0.9, linestyle=(0, (4, 3)),
        )
    )  # fmt: skip


def _draw_links(axes: Axes, graph: nx.Graph[str], place: _Place, cluster: Cluster) -> None:
    """Draw links, thicker the faster; wrap-around links of a torus are told, not drawn."""
    from matplotlib.collections import LineCollection

    fastest = max((data["bandwidth_bytes_per_s"] for *_, data in graph.edges(data=True)), default=1)
    lines, colors, widths = [], [], []
    for first, second, data in graph.edges(data=True):
        ends = place.positions[first], place.positions[second]
        if cluster.intra.topology == "torus" and _is_wrap(ends, first, second):
            continue
        share = math.log10(1 + 99 * data["bandwidth_bytes_per_s"] / fastest) / 2
        lines.append(ends)
        widths.append(0.5 + 1.7 * share)
        colors.append(_INTER_COLOR if _is_outside(first, second) else _INTRA_COLOR)
    axes.add_collection(LineCollection(lines, colors=colors, linewidths=widths, alpha=0.75))


def _is_wrap(ends: tuple[tuple[float, float], ...], first: str, second: str) -> bool:
    if not (first.startswith("device") and second.startswith("device")):
        return False
    (x1, y1), (x2, y2) = ends
    return math.hypot(x2 - x1, y2 - y1) > 2.3  # noqa: PLR2004 (longer than any step of the grid)


def _is_outside(first: str, second: str) -> bool:
    return any(name.partition(":")[0] in ("nic", "leaf", "spine") for name in (first, second))


def _draw_vertices(axes: Axes, graph: nx.Graph[str], place: _Place) -> None:
    crowd = graph.number_of_nodes()
    area = 150.0 if crowd <= _MOST_VERTICES else 45.0
    for kind, marker in _KIND_MARKERS.items():
        found = [name for name, data in graph.nodes(data=True) if data["kind"] == kind]
        points = [place.positions[name] for name in found]
        if points:
            size = 0.45 * area if kind == "nic" else area
            across, up = zip(*points, strict=True)
            axes.scatter(
                across, up, s=size, marker=marker, color=_KIND_COLORS[kind], zorder=3, linewidths=0
            )
    devices = [name for name in place.positions if name.startswith("device")]
    if len(devices) <= _MOST_RANKS_NAMED:
        for name in devices:
            axes.text(
                *place.positions[name], name.partition(":")[2], ha="center", va="center",
                fontsize=7, color="white", zorder=4,
            )  # fmt: skip


def _add_legend(axes: Axes, graph: nx.Graph[str], cluster: Cluster) -> None:
    from matplotlib.lines import Line2D

    names = {"device": cluster.device.name, "nic": "network card"}
    kinds = {data["kind"] for _, data in graph.nodes(data=True)}
    handles = [
        Line2D([], [], linestyle="", marker=_KIND_MARKERS[kind], markersize=6,
               color=_KIND_COLORS[kind], label=names.get(kind, kind))
        for kind in _KIND_MARKERS if kind in kinds
    ]  # fmt: skip
    handles.append(Line2D([], [], color=_INTRA_COLOR, label=cluster.intra.link.name))
    if cluster.inter is not None and "nic" in kinds:
        handles.append(Line2D([], [], color=_INTER_COLOR, label=cluster.inter.link.name))
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, -0.02), frameon=False, fontsize=8,
        ncols=len(handles), columnspacing=1.4, handletextpad=0.5, borderaxespad=-1.6,
    )  # fmt: skip
