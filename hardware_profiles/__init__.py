"""What a machine is: devices, links, clusters and software as data with units and sources."""

from hardware_profiles.catalog_index import ProfileKind, catalog_names, paraplan_home
from hardware_profiles.cluster import Cluster, NodeGroup
from hardware_profiles.cluster_writer import cluster_to_toml
from hardware_profiles.clusters import load_cluster
from hardware_profiles.describe import describe_profile
from hardware_profiles.device import DeviceKind, DeviceProfile, MatmulEfficiency, Precision
from hardware_profiles.device_file import load_device
from hardware_profiles.errors import ParaplanError, ProfileError
from hardware_profiles.interconnect import Fabric, FabricTopology, LinkKind, LinkProfile
from hardware_profiles.link_file import load_link
from hardware_profiles.provenance import Provenance, SourceKind
from hardware_profiles.software import AttentionKernel, SoftwareProfile
from hardware_profiles.software_file import load_software
from hardware_profiles.topology_graph import cluster_graph
from hardware_profiles.units import Dimension, parse_quantity

__all__ = [
    "AttentionKernel",
    "Cluster",
    "DeviceKind",
    "DeviceProfile",
    "Dimension",
    "Fabric",
    "FabricTopology",
    "LinkKind",
    "LinkProfile",
    "MatmulEfficiency",
    "NodeGroup",
    "ParaplanError",
    "Precision",
    "ProfileError",
    "ProfileKind",
    "Provenance",
    "SoftwareProfile",
    "SourceKind",
    "catalog_names",
    "cluster_graph",
    "cluster_to_toml",
    "describe_profile",
    "load_cluster",
    "load_device",
    "load_link",
    "load_software",
    "paraplan_home",
    "parse_quantity",
]
