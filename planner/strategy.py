"""The compact, human form of a split: ``dp=8,tp=8,pp=16,microbatch=1,schedule=1f1b``."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from planner.errors import StrategyError
from simulator.zero_bubble import ZBV_STAGES, splits_backward

Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble", "zbv"]
Sharding = Literal["none", "optimizer", "gradients", "parameters"]
Recompute = Literal["none", "selective", "selective_op", "full"]
Layout = Literal["tensor", "mixed"]
SPLIT_RECOMPUTE_MODES: tuple[Recompute, ...] = ("none", "selective")
"""Recomputation beside a split backward pass: a checkpoint of a block would run again for every
weight whose gradient is made later (torch keeps nothing between passes over a graph)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strategy:
    """A point of the strategy space; sizes of 1 and defaults mean "off".

    Invariants: ``dp * tp * pp * cp`` devices are used; ``ep`` divides ``dp * cp``;
    ``virtual_stages`` above 1 needs ``schedule="interleaved"`` or ``"zero_bubble"``; ``"zbv"`` has
    always 2, which its text leaves out.
    """

    data_parallel_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    context_parallel_size: int = 1
    expert_parallel_size: int = 1
    microbatch_size: int = 1
    schedule: Schedule = "1f1b"
    virtual_stages: int = 1
    sharding: Sharding = "none"
    sharding_replicas: int = 1
    """Copies of what is sharded: each is sharded over ``dp * cp / replicas`` neighbouring ranks
    (hybrid sharding, Zhao et al. 2023, arXiv:2304.11277, section 3.2.2; ZeRO++'s and MiCS's
    groups)."""
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    layout: Layout = "tensor"
    """``tensor``: every operator of the tensor group splits model dimensions (Megatron). ``mixed``:
    each operator chooses, the batch included (Krizhevsky's mix)."""

    @property
    def num_devices(self) -> int:
        """Devices the strategy uses."""
        return (
            self.data_parallel_size
            * self.tensor_parallel_size
            * self.pipeline_parallel_size
            * self.context_parallel_size
        )

    def __str__(self) -> str:
        """Return the canonical text; :func:`parse_strategy` reads it back."""
        parts = []
        for key, field in _SIZES.items():
            value = getattr(self, field)
            if value != 1 or key == "dp":
                parts.append(f"{key}={value}")
        parts.append(f"microbatch={self.microbatch_size}")
        if self.pipeline_parallel_size > 1:
            parts.append(f"schedule={self.schedule}")
        is_told = self.virtual_stages != 1 or self.schedule == "zero_bubble"
        if is_told and self.schedule != "zbv" and self.pipeline_parallel_size > 1:
            parts.append(f"virtual_stages={self.virtual_stages}")
        if self.sharding != "none":
            parts.append(f"sharding={self.sharding}")
        if self.sharding_replicas != 1:
            parts.append(f"replicas={self.sharding_replicas}")
        if self.recompute != "none":
            parts.append(f"recompute={self.recompute}")
        if self.sequence_parallel:
            parts.append("sequence_parallel=on")
        if self.layout != "tensor":
            parts.append(f"layout={self.layout}")
        return ",".join(parts)


_SIZES = {
    "dp": "data_parallel_size",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_parallel_size",
}
_COUNTS = {
    **_SIZES,
    "microbatch": "microbatch_size",
    "virtual_stages": "virtual_stages",
    "replicas": "sharding_replicas",
}
_WORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "schedule": ("schedule", get_args(Schedule)),
    "sharding": ("sharding", get_args(Sharding)),
    "recompute": ("recompute", get_args(Recompute)),
    "sequence_parallel": ("sequence_parallel", ("on", "off")),
    "layout": ("layout", get_args(Layout)),
}
FIELD_OF_KEY = {**_COUNTS, **{key: field for key, (field, _) in _WORDS.items()}}
"""Field of :class:`Strategy` by key of the text."""
STRATEGY_KEYS = tuple(FIELD_OF_KEY)


def parse_partial_strategy(text: str) -> dict[str, Any]:
    """Return the fields that a strategy text fixes, by field name.

    Examples
    --------
    >>> parse_partial_strategy("tp=8,sequence_parallel=on")
    {'tensor_parallel_size': 8, 'sequence_parallel': True}
    >>> parse_partial_strategy("tpp=8")
    Traceback (most recent call last):
    planner.errors.StrategyError: strategy 'tpp=8': unknown key 'tpp'; expected one of dp, tp, pp, cp, ep, microbatch, virtual_stages, replicas, schedule, sharding, recompute, sequence_parallel, layout
    """
    fields: dict[str, Any] = {}
    parsed: int | bool | str
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise StrategyError(f"strategy '{text}': '{part}' has no '='; write key=value")
        if key in _COUNTS:
            name, parsed = _COUNTS[key], _parse_count(text, key, value)
        elif key in _WORDS:
            name, words = _WORDS[key]
            if value not in words:
                raise StrategyError(
                    f"strategy '{text}': {key}={value!r}; expected one of {', '.join(words)}"
                )
            parsed = (value == "on") if key == "sequence_parallel" else value
        else:
            raise StrategyError(
                f"strategy '{text}': unknown key '{key}'; "
                f"expected one of {', '.join(STRATEGY_KEYS)}"
            )
        if name in fields:
            raise StrategyError(f"strategy '{text}': key '{key}' is given twice; keep one")
        fields[name] = parsed
    if fields.get("schedule") == "zbv":
        fields.setdefault("virtual_stages", ZBV_STAGES)
    return fields


def _parse_count(text: str, key: str, value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise StrategyError(
            f"strategy '{text}': {key}={value!r}; expected a whole number of at least 1"
        )
    return int(value)


def parse_strategy(text: str) -> Strategy:
    """Return the strategy that a text names; keys left out are 1 or off.

    Examples
    --------
    >>> str(parse_strategy("pp=2,dp=4,schedule=gpipe"))
    'dp=4,pp=2,microbatch=1,schedule=gpipe'
    >>> parse_strategy("pp=2,schedule=zbv").virtual_stages
    2
    """
    return check_strategy(Strategy(**parse_partial_strategy(text)))


def check_strategy(strategy: Strategy) -> Strategy:
    """Return the strategy if it keeps its own invariants.

    Raises
    ------
    StrategyError
        With the invariant that is broken and the way out.
    """
    _check_schedule(strategy)
    ranks = strategy.data_parallel_size * strategy.context_parallel_size
    if ranks % strategy.expert_parallel_size:
        raise StrategyError(
            f"ep={strategy.expert_parallel_size} does not divide dp*cp={ranks}; "
            "expert parallelism reuses data-parallel ranks"
        )
    copies = strategy.sharding_replicas
    if copies > 1 and strategy.sharding == "none":
        raise StrategyError(
            f"replicas={copies} with sharding=none; nothing is sharded: leave it out"
        )
    if copies > 1 and (ranks % copies or ranks == copies):
        raise StrategyError(
            f"replicas={copies} leaves no equal shards of dp*cp={ranks} ranks; "
            "give a divisor below it"
        )
    if strategy.sequence_parallel and strategy.tensor_parallel_size == 1:
        raise StrategyError("sequence_parallel=on with tp=1; give tp=2 or more, or leave it out")
    return strategy


def _check_schedule(strategy: Strategy) -> None:
    """Refuse a schedule without a pipeline, and virtual stages that it does not have."""
    schedule, chunks = strategy.schedule, strategy.virtual_stages
    if chunks > 1 and schedule not in ("interleaved", "zero_bubble", "zbv"):
        raise StrategyError(
            f"virtual_stages={chunks} with schedule={schedule}; "
            "only schedule=interleaved and zero_bubble have virtual stages"
        )
    if schedule == "interleaved" and chunks == 1:
        raise StrategyError(
            "schedule=interleaved with virtual_stages=1; give virtual_stages=2 or more"
        )
    if schedule == "zbv" and chunks != ZBV_STAGES:
        raise StrategyError(
            f"schedule=zbv with virtual_stages={chunks}; it has always {ZBV_STAGES}, leave it out"
        )
    if schedule in ("interleaved", "zero_bubble", "zbv") and strategy.pipeline_parallel_size == 1:
        raise StrategyError(f"schedule={schedule} with pp=1; give pp=2 or more, or leave it out")
    if splits_backward(schedule) and strategy.recompute not in SPLIT_RECOMPUTE_MODES:
        raise StrategyError(
            f"schedule={schedule} with recompute={strategy.recompute}; a block would be computed "
            "again for every weight whose gradient waits: use recompute=none or selective"
        )
