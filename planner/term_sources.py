"""Where the parts of a predicted step come from: measured, derived, datasheet or assumed."""

from collections.abc import Iterable, Mapping

from hardware_profiles.provenance import Provenance, SourceKind
from planner.graph import OperatorKind
from planner.problem import Problem

TRUST: tuple[SourceKind, ...] = ("measured", "derived", "datasheet", "assumed")
"""Kinds of sources, the best first; a part is worth as much as the weakest of its quantities."""
_KERNELS: Mapping[str, tuple[tuple[OperatorKind, ...], tuple[str, ...]]] = {
    "matrix products": (
        ("matmul",), ("matmul.sustained_efficiency", "matmul.sustained_clock", "matmul.half_k"),
    ),
    "attention": (("attention",), ("attention_forward_eff", "attention_backward_eff")),
    "convolutions": (
        ("convolution",), ("matmul.sustained_efficiency", "convolution_gain", "convolution_share"),
    ),
    "memory-bound kernels": (
        ("elementwise", "normalization", "softmax", "pooling"), ("memory_efficiency",),
    ),
}  # fmt: skip
"""Kinds of operators, and the rates that decide their time."""
_MEMORY = ("memory_efficiency",)
_NETWORK_TERMS = ("tensor", "data", "pipeline", "context", "expert")


def term_sources(problem: Problem, breakdown_s: Mapping[str, float]) -> dict[str, SourceKind]:
    """Return the weakest kind of source of what each part of a step rests on.

    Parameters
    ----------
    problem : Problem
        What is planned.
    breakdown_s : mapping
        Parts of the step by name [s].

    Returns
    -------
    dict
        Compute by kind of kernel, communication and optimizer by part of the step where they take
        time; ``overlap`` stands for the shares that hide communication behind compute.
    """
    devices = [group.device.provenance for group in problem.cluster.node_groups]
    kinds = {operator.kind for _, operator in problem.graph.graph.nodes(data="operator")}
    found = {
        words: weakest(worst_kind(device, rates) for device in devices)
        for words, (operators, rates) in _KERNELS.items()
        if not kinds.isdisjoint(operators)
    }
    if breakdown_s.get("optimizer", 0.0) > 0:
        found["optimizer"] = weakest(worst_kind(device, _MEMORY) for device in devices)
    exchanges = [term for term in _NETWORK_TERMS if breakdown_s.get(term, 0.0) > 0]
    found |= dict.fromkeys(exchanges, worst_kind(_network(problem), ("intra.", "inter.")))
    if exchanges:
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
