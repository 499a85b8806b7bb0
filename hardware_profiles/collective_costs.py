"""What a communication library pays to move the bytes of a collective over a kind of link.

All numbers are relative to the fabric the link forms (its base latency, its hop, its bandwidth), so
that a faster or slower fabric of the same kind keeps them. They are fitted to measured collectives
by ``benchmarks/fit_collectives.py``; a link without a table of its own has NCCL's constants.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from hardware_profiles.document import Table, check_keys, sub_table

Protocol = Literal["simple", "ll128", "ll"]
"""NCCL's wire protocols: plain copies, flagged 128 B lines, flagged 8 B words."""
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferCosts:
    """One way of moving bytes, relative to the fabric."""

    base: float = 1.0
    """Fixed cost over the fabric's base latency [1]."""
    hop: float = 1.0
    """A hop over the fabric's hop [1]."""
    share: float = 1.0
    """Rate reached over the fabric's bandwidth [1]."""
    ramp: float = 0.7
    """Weight of the pipelining term between latency and transfer [1]."""


_SIMPLE = 8.4 / 6.6
_LL128 = 14 / 6.6


def _nccl_rings() -> dict[Protocol, TransferCosts]:
    """Return NCCL's ring constants: base and hop latencies of ``tuning.cc``, 2.30."""
    return {
        "simple": TransferCosts(base=_SIMPLE, hop=3.2),
        "ll128": TransferCosts(base=_LL128, hop=1.8, share=0.92),
        "ll": TransferCosts(share=0.38),
    }


def _nccl_trees() -> dict[Protocol, TransferCosts]:
    """Return NCCL's tree constants: rate 0.92 of a ring's, hop per level."""
    return {
        "simple": TransferCosts(base=_SIMPLE, hop=20.9 / 5, share=0.92),
        "ll128": TransferCosts(base=_LL128, hop=20.9 / 5, share=0.85),
        "ll": TransferCosts(share=0.07),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class CollectiveCosts:
    """All ways of moving bytes over one kind of link."""

    ring: Mapping[Protocol, TransferCosts] = field(default_factory=_nccl_rings)
    """Rings, per protocol; a hop is one step over this link."""
    tree: Mapping[Protocol, TransferCosts] = field(default_factory=_nccl_trees)
    """Trees over nodes, per protocol; a hop is one level of the tree."""
    in_switch: TransferCosts = TransferCosts(hop=16.0, share=0.72)
    """Sums in the switch; inside a node the hop counts once, between nodes once per level."""
    exchange: TransferCosts = TransferCosts(base=_SIMPLE, hop=3.2, share=0.92)
    """All-to-all; the hop counts once."""
    exchange_small: TransferCosts = TransferCosts(hop=3.2, share=0.1)
    """All-to-all of small messages."""
    send: TransferCosts = TransferCosts()
    """A message to one peer; the hop counts once."""
    message: float = 0.3
    """Posting one more message of an all-to-all, in hops of the fabric [1]."""
    few_two_passes: float = 0.5
    """An all-reduce of ``g`` ranks in a node reaches ``1 - few / g**2`` of the rate [1]."""
    few_one_pass: float = 1.1
    """The same for an all-gather or reduce-scatter [1]."""
    few_exchanging: float = 0.65
    """The same for an all-to-all [1]."""
    tree_crossings: float = 2.0
    """Times the buffer passes the NICs in a tree over two nodes. Each could be the root of one
    tree, and the buffer pass once; NCCL's tuner takes trees to pass it twice, so it runs rings [1].
    """
    congestion: float = 0.0
    """What each doubling of nodes beyond two adds to the transfer time, as a share [1]."""


PLAIN_COSTS = CollectiveCosts(
    ring={"simple": TransferCosts()}, tree={"simple": TransferCosts()}, exchange=TransferCosts(),
    exchange_small=TransferCosts(), message=0.1, few_two_passes=0.0, few_one_pass=0.0,
    few_exchanging=0.0,
)  # fmt: skip
"""Messages without protocols: TPU, FPGA, gloo."""
NCCL_COSTS = CollectiveCosts()
"""NCCL's own constants (2.30, ``src/graph/tuning.cc``), for links without a measurement."""
NCCL_NETWORK_COSTS = replace(
    NCCL_COSTS,
    ring={
        "simple": TransferCosts(base=_SIMPLE, hop=14 / 5),
        "ll128": TransferCosts(base=_LL128, hop=4 / 5, share=0.92),
        "ll": TransferCosts(hop=2.7 / 5, share=0.08),
    },
    in_switch=TransferCosts(hop=20.9 / 5),
    exchange=TransferCosts(base=_SIMPLE, hop=14 / 5),
    exchange_small=TransferCosts(hop=14 / 5, share=0.1),
)
"""The same over a network, where a hop of 5 us is a tree's in the LL protocol."""
_FAMILIES = ("ring", "tree")
_SINGLE = ("in_switch", "exchange", "exchange_small", "send")
_NUMBERS = (
    "message",
    "few_two_passes",
    "few_one_pass",
    "few_exchanging",
    "tree_crossings",
    "congestion",
)
_LOWEST = {"few_two_passes": -2.0, "few_one_pass": -2.0, "few_exchanging": -2.0}
_HIGHEST = {
    "share": 4.0,
    "tree_crossings": 2.0,
    "few_two_passes": 2.0,
    "few_one_pass": 2.0,
    "few_exchanging": 2.0,
}


def costs_from_table(table: Table) -> CollectiveCosts:
    """Build the costs from the ``collectives`` table of a link file.

    Parameters
    ----------
    table : Table
        Numbers relative to the fabric; what it leaves out keeps NCCL's constant.

    Returns
    -------
    CollectiveCosts
        The costs [1].

    Raises
    ------
    ProfileError
        If a key is unknown or a number is out of range.
    """
    check_keys(
        table,
        required=("source", "kind"),
        optional=("note", *_FAMILIES, *_SINGLE, *_NUMBERS),
    )
    found: dict[str, object] = {}
    for name in _FAMILIES:
        if name in table.data:
            family = sub_table(table, name)
            check_keys(family, required=(), optional=PROTOCOLS)
            usual: Mapping[Protocol, TransferCosts] = getattr(NCCL_COSTS, name)
            found[name] = {
                protocol: _transfer(family, protocol, usual[protocol]) for protocol in PROTOCOLS
            }
    for name in _SINGLE:
        found[name] = _transfer(table, name, getattr(NCCL_COSTS, name))
    for name in _NUMBERS:
        found[name] = _number(table, name, getattr(NCCL_COSTS, name))
    return CollectiveCosts(**found)  # type: ignore[arg-type]


def _transfer(table: Table, name: str, usual: TransferCosts) -> TransferCosts:
    """Read one way of moving bytes."""
    if name not in table.data:
        return usual
    entry = sub_table(table, name)
    check_keys(entry, required=(), optional=[one.name for one in fields(TransferCosts)])
    numbers = {
        one.name: _number(entry, one.name, getattr(usual, one.name))
        for one in fields(TransferCosts)
    }
    if numbers["share"] <= 0:
        raise entry.fail("share", f"is {numbers['share']!r}; expected a number above 0")
    return TransferCosts(**numbers)


def _number(table: Table, name: str, usual: float) -> float:
    """Read a plain number within its range."""
    value = table.data.get(name, usual)
    low, high = _LOWEST.get(name, 0.0), _HIGHEST.get(name, 1e4)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise table.fail(name, f"is {value!r}; expected a number from {low:g} to {high:g}")
    return float(value)


def costs_to_lines(costs: CollectiveCosts) -> list[str]:
    """Write the costs as entries of a ``collectives`` table.

    Parameters
    ----------
    costs : CollectiveCosts
        The costs.

    Returns
    -------
    list of str
        Lines of TOML, without the head of the table.

    Examples
    --------
    >>> costs_to_lines(NCCL_COSTS)[2]
    'ring.ll = { base = 1.0, hop = 1.0, share = 0.38, ramp = 0.7 }'
    """
    lines = [
        f"{name}.{protocol} = {_inline(getattr(costs, name)[protocol])}"
        for name in _FAMILIES
        for protocol in PROTOCOLS
        if protocol in getattr(costs, name)
    ]
    lines += [f"{name} = {_inline(getattr(costs, name))}" for name in _SINGLE]
    return lines + [f"{name} = {getattr(costs, name)!r}" for name in _NUMBERS]


def _inline(costs: TransferCosts) -> str:
    """Return one way of moving bytes as an inline table."""
    parts = ", ".join(f"{one.name} = {getattr(costs, one.name)!r}" for one in fields(costs))
    return f"{{ {parts} }}"
