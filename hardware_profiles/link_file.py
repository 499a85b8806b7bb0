"""Link profiles: file to value object."""

from pathlib import Path
from typing import get_args

from hardware_profiles.catalog_index import profile_path
from hardware_profiles.collective_costs import CollectiveCosts, costs_from_table
from hardware_profiles.document import (
    Table,
    check_keys,
    choice,
    provenance_of,
    quantity,
    read_document,
    sub_table,
    text,
)
from hardware_profiles.interconnect import LinkKind, LinkProfile
from hardware_profiles.provenance import Provenance

HEAD_KEYS = ("name", "title", "link_kind")
"""Plain entries of a link profile."""


def load_link(name_or_path: str | Path) -> LinkProfile:
    """Load one link profile and convert it to SI units.

    Parameters
    ----------
    name_or_path : str or Path
        Catalogue name such as ``"infiniband-hdr"``, or path of a TOML file.

    Returns
    -------
    LinkProfile
        Immutable profile; bandwidths are of one direction.

    Raises
    ------
    ProfileError
        If the name is unknown or the file breaks a rule.

    Examples
    --------
    >>> link = load_link("infiniband-hdr")
    >>> link.bandwidth_bytes_per_s, link.achievable_bandwidth_bytes_per_s
    (25000000000.0, 24000000000.0)
    """
    document = read_document(profile_path(name_or_path, kind="link"), kind="link")
    return link_from_table(document, head=("schema", "kind", "sources"))


def link_from_table(table: Table, *, head: tuple[str, ...] = ()) -> LinkProfile:
    """Build a link from its table, the top of a file or one embedded in a cluster file."""
    names = ("bandwidth", "achievable_bandwidth", "latency")
    check_keys(table, required=(*HEAD_KEYS, *names), optional=("collectives", *head))
    line = quantity(table, "bandwidth", dimension="bandwidth")
    achievable = quantity(table, "achievable_bandwidth", dimension="bandwidth", maximum=line.value)
    latency = quantity(table, "latency", dimension="time", maximum=10.0)
    costs, origin = collective_costs(table)
    return LinkProfile(
        name=text(table, "name"),
        title=text(table, "title"),
        kind=choice(table, "link_kind", allowed=get_args(LinkKind)),  # type: ignore[arg-type]
        bandwidth_bytes_per_s=line.value,
        achievable_bandwidth_bytes_per_s=achievable.value,
        latency_s=latency.value,
        costs=costs,
        provenance={
            **origin,
            "bandwidth_bytes_per_s": line.provenance,
            "achievable_bandwidth_bytes_per_s": achievable.provenance,
            "latency_s": latency.provenance,
        },
    )


def collective_costs(table: Table) -> tuple[CollectiveCosts | None, dict[str, Provenance]]:
    """Read the ``collectives`` table of a link or a fabric, None where it has none."""
    if "collectives" not in table.data:
        return None, {}
    entry = sub_table(table, "collectives")
    return costs_from_table(entry), {"costs": provenance_of(entry)}
