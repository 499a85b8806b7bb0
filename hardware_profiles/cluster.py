"""A cluster: nodes of devices, the fabric inside a node, and the network between nodes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hardware_profiles.device import DeviceProfile
from hardware_profiles.interconnect import Fabric
from hardware_profiles.provenance import Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeGroup:
    """Equal nodes in a row; a mixed cluster has several groups."""

    device: DeviceProfile
    devices_per_node: int
    num_nodes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Devices in rank order: group by group, node by node, device by device.

    A TPU slice or a set of FPGA cards is one "node" where its own fabric joins all devices.
    """

    name: str
    """As the user wrote it, with count and overrides: ``dgx-a100-80g:16?nic_bandwidth=100Gb/s``."""
    title: str
    node_groups: tuple[NodeGroup, ...]
    intra: Fabric
    """Inside a node (NVLink domain, PCIe tree, torus slice)."""
    inter: Fabric | None
    """Between nodes; ``bandwidth_bytes_per_s`` is per NIC. None for one node."""
    nics_per_node: int = 1
    oversubscription: float = 1.0
    """Ratio of a leaf's device-side to its spine-side capacity; 1 is non-blocking [1]."""
    price_usd_per_hour: float | None = None
    """Price of the whole cluster [USD/h]; None where unknown."""
    provenance: Mapping[str, Provenance] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        """Number of nodes over all groups."""
        return sum(group.num_nodes for group in self.node_groups)

    @property
    def num_devices(self) -> int:
        """Number of devices over all groups."""
        return sum(group.num_nodes * group.devices_per_node for group in self.node_groups)

    @property
    def devices_per_node(self) -> int:
        """Devices of the largest node."""
        return max(group.devices_per_node for group in self.node_groups)

    @property
    def device(self) -> DeviceProfile:
        """The device of rank 0; mixed clusters have others, see :meth:`device_of`."""
        return self.node_groups[0].device

    @property
    def is_mixed(self) -> bool:
        """Whether the cluster holds more than one kind of device."""
        return len({group.device.name for group in self.node_groups}) > 1

    def device_of(self, rank: int) -> DeviceProfile:
        """Return the device profile of a rank."""
        for group in self.node_groups:
            size = group.num_nodes * group.devices_per_node
            if rank < size:
                return group.device
            rank -= size
        raise IndexError(rank)

    def node_of(self, rank: int) -> int:
        """Return the index of the node that holds a rank."""
        node = 0
        for group in self.node_groups:
            size = group.num_nodes * group.devices_per_node
            if rank < size:
                return node + rank // group.devices_per_node
            rank -= size
            node += group.num_nodes
        raise IndexError(rank)
