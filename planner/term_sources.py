"""Where the parts of a predicted step come from: measured, derived, datasheet or assumed."""

from collections.abc import Iterable, Mapping

from hardware_profiles.provenance import Provenance, SourceKind
from planner.problem import Problem

TRUST: tuple[SourceKind, ...] = ("measured", "derived", "datasheet", "assumed")
"""Kinds of sources, the best first; a part is worth as much as the weakest of its quantities."""
_COMPUTE = ("matmul.", "memory_efficiency", "attention_", "launch_latency_s")
_MEMORY = ("memory_efficiency", "memory_bandwidth")
_NETWORK_TERMS = ("tensor", "data", "pipeline", "context", "expert")


def term_sources(problem: Problem, breakdown_s: Mapping[str, float]) -> dict[str, SourceKind]:
    """Return the weakest kind of source of each part of a step that takes time.

    Parameters
    ----------
    problem : Problem
        What is planned.
    breakdown_s : mapping
        Parts of the step by name [s].

    Returns
    -------
    dict
        By part; ``overlap`` stands for the shares that hide communication behind compute.
    """
    cluster = problem.cluster
    devices = [group.device.provenance for group in cluster.node_groups]
    network = worst_kind(_network(problem), ("intra.", "inter."))
    found: dict[str, SourceKind] = {}
    for term, seconds in breakdown_s.items():
        if seconds <= 0:
            continue
        if term == "compute":
            found[term] = weakest(worst_kind(device, _COMPUTE) for device in devices)
        elif term == "optimizer":
            found[term] = weakest(worst_kind(device, _MEMORY) for device in devices)
        elif term in _NETWORK_TERMS:
            found[term] = network
    if any(breakdown_s.get(term, 0.0) > 0 for term in _NETWORK_TERMS):
        found["overlap"] = worst_kind(problem.software.provenance, ("overlap_",))
    return found


def _network(problem: Problem) -> dict[str, Provenance]:
    """Return the sources of what the fabrics in use carry, by quantity."""
    cluster = problem.cluster
    several = cluster.num_nodes > 1
    names = ("intra.", "inter.") if several else ("intra.",)
    return {name: source for name, source in cluster.provenance.items() if name.startswith(names)}


def worst_kind(provenance: Mapping[str, Provenance], prefixes: tuple[str, ...]) -> SourceKind:
    """Return the weakest kind of source among quantities with one of the prefixes."""
    return weakest(p.kind for name, p in provenance.items() if name.startswith(prefixes))


def weakest(kinds: Iterable[SourceKind]) -> SourceKind:
    """Return the kind least to be trusted; without any source it is assumed.

    Examples
    --------
    >>> weakest(["measured", "datasheet", "derived"]), weakest([])
    ('datasheet', 'assumed')
    """
    return max(kinds, key=TRUST.index, default="assumed")
