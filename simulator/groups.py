"""Where the ranks of one communication group sit."""

from dataclasses import dataclass
from typing import Literal

CollectiveKind = Literal[
    "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "send"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A communication group, seen as a shape on the cluster.

    Invariants: ``num_ranks >= 1``; ``ranks_per_node`` ranks sit in each of ``num_nodes`` nodes, the
    product is at least ``num_ranks``; ``concurrent`` equal groups share each node's NICs at once,
    and its PCIe root where they are interleaved in a node.
    """

    num_ranks: int
    ranks_per_node: int
    num_nodes: int
    concurrent: int = 1


def axis_group(*, size: int, stride: int, devices_per_node: int) -> Group:
    """Return the group of a mesh axis whose ranks lie ``stride`` apart.

    Ranks are dense on nodes of ``devices_per_node``, meshes are rank-major.

    Examples
    --------
    >>> axis_group(size=8, stride=1, devices_per_node=8)
    Group(num_ranks=8, ranks_per_node=8, num_nodes=1, concurrent=1)
    >>> axis_group(size=16, stride=4, devices_per_node=8)
    Group(num_ranks=16, ranks_per_node=2, num_nodes=8, concurrent=4)
    >>> axis_group(size=4, stride=8, devices_per_node=8)
    Group(num_ranks=4, ranks_per_node=1, num_nodes=4, concurrent=8)
    >>> axis_group(size=4, stride=2, devices_per_node=8)
    Group(num_ranks=4, ranks_per_node=4, num_nodes=1, concurrent=2)
    """
    ranks_per_node = max(1, min(size, devices_per_node // stride))
    num_nodes = -(-size // ranks_per_node)
    interleaved = num_nodes > 1 or stride > 1
    concurrent = max(1, devices_per_node // ranks_per_node) if interleaved else 1
    return Group(
        num_ranks=size, ranks_per_node=ranks_per_node, num_nodes=num_nodes, concurrent=concurrent
    )
