"""What it takes to bring a tensor from one layout on an axis to another.

A layout is ``"R"`` (whole on every rank), ``"P"`` (partial sums) or ``"S:label"`` (cut along a
label). The table is that of Mesh TensorFlow (Shazeer et al. 2018, arXiv:1811.02084, section 4) and
GSPMD (Xu et al. 2021, arXiv:2105.04663, section 4.5).
"""

from simulator.groups import CollectiveKind

Layout = str
REPLICATED: Layout = "R"
PARTIAL: Layout = "P"


def shard(label: str) -> Layout:
    """Return the layout that is cut along a label."""
    return f"S:{label}"


def shard_label(layout: Layout) -> str | None:
    """Return the label of a cut layout, None for others."""
    return layout[2:] if layout.startswith("S:") else None


def reshard_kind(have: Layout, want: Layout) -> CollectiveKind | None:
    """Return the collective between two layouts, None where a rank needs no other.

    A whole tensor becomes a shard by a local slice; whole tensors and shards become partial sums
    by counting each element once.

    Parameters
    ----------
    have, want : Layout
        Layouts before and after.

    Returns
    -------
    CollectiveKind or None
        The collective.

    Examples
    --------
    >>> [reshard_kind(have, "R") for have in ("S:n", "P", "R")]
    ['all_gather', 'all_reduce', None]
    >>> [reshard_kind(have, "S:n") for have in ("S:n", "S:b", "P", "R")]
    [None, 'all_to_all', 'reduce_scatter', None]
    """
    if want in (have, PARTIAL):
        return None
    if have == PARTIAL:
        return "all_reduce" if want == REPLICATED else "reduce_scatter"
    if have == REPLICATED:
        return None
    return "all_gather" if want == REPLICATED else "all_to_all"


def message_bytes(kind: CollectiveKind, *, whole_bytes: float, axis_size: int) -> float:
    """Return the message of a collective in the convention of nccl-tests.

    Parameters
    ----------
    kind : CollectiveKind
        Collective.
    whole_bytes : float
        The tensor as one group of the axis sees it whole [B].
    axis_size : int
        Ranks of the group [1].

    Returns
    -------
    float
        The whole tensor, but for an all-to-all the buffer that one rank sends [B].

    Examples
    --------
    >>> message_bytes("all_gather", whole_bytes=1024, axis_size=4)
    1024
    >>> message_bytes("all_to_all", whole_bytes=1024, axis_size=4)
    256.0
    """
    return whole_bytes / axis_size if kind == "all_to_all" else whole_bytes
