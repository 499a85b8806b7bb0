"""What joins devices: links, and the fabric they form inside and between nodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hardware_profiles.collective_costs import CollectiveCosts
from hardware_profiles.provenance import Provenance

LinkKind = Literal[
    "nvlink",
    "nvswitch",
    "pcie",
    "infiniband",
    "ethernet",
    "xgmi",
    "ici",
    "dcn",
    "fpga-network",
    "shared-memory",
    "loopback",
]
FabricTopology = Literal["switch", "full_mesh", "cube_mesh", "pcie_tree", "ring", "torus", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkProfile:
    """One kind of link, one direction."""

    name: str
    title: str
    kind: LinkKind
    bandwidth_bytes_per_s: float
    """Line rate, one direction [B/s]."""
    achievable_bandwidth_bytes_per_s: float
    """What a large transfer reaches, one direction [B/s]."""
    latency_s: float
    """One hop as the communication library sees it [s]."""
    costs: CollectiveCosts | None = None
    """What a library's collectives cost over it; None without a measurement."""
    provenance: Mapping[str, Provenance] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fabric:
    """How the devices of one domain are joined."""

    topology: FabricTopology
    link: LinkProfile
    bandwidth_bytes_per_s: float
    """Achievable by one device in a ring or all-to-all pattern, one direction [B/s]. For ``torus``:
    of one link of one axis, one direction. For ``pcie_tree``: of one device, all active."""
    latency_s: float
    """One hop [s]."""
    in_network_reduction: bool = False
    """The switch adds (NVLink SHARP)."""
    base_latency_s: float = 0.0
    """Fixed cost of one collective over this fabric, beside the hops [s]."""
    group_share: Mapping[int, float] = field(default_factory=dict)
    """Rate of so many neighbours over that of all, in a ``pcie_tree``; between them the rate falls
    by equal factors per doubling [1]."""
    torus_shape: tuple[int, ...] = ()
    """Extent of each torus axis [devices]; product equals the domain's devices."""
    torus_wraps: tuple[bool, ...] = ()
    """Whether each torus axis closes into a ring."""
