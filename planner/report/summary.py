"""What every report tells of a plan, with absent and malformed keys left out.

The dictionaries of a plan may come from an older version or another program; a report shows what is
there and never fails for what is not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.plan import Plan
from planner.report.words import strategy_in_words, term_label
from planner.term_sources import TRUST

TIME_TERMS = (
    "compute", "tensor", "data", "pipeline", "context", "expert", "bubble", "optimizer", "input",
)  # fmt: skip
"""Keys of ``breakdown_s`` in the order in which they are told."""


def finite(mapping: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number under a key, else None.

    Examples
    --------
    >>> finite({"mfu": 0.5, "x": float("nan"), "y": "12"}, "mfu"), finite({"y": "12"}, "y")
    (0.5, None)
    """
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def amounts(value: Any) -> dict[str, float]:
    """Return the positive numbers of a mapping."""
    if not isinstance(value, Mapping):
        return {}
    found = {str(key): finite(value, key) for key in value}
    return {key: amount for key, amount in found.items() if amount is not None and amount > 0}


def records(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list."""
    if not isinstance(value, list | tuple):
        return []
    return [item for item in value if isinstance(item, Mapping)]


def words(mapping: Mapping[str, Any], key: str) -> str:
    """Return a text under a key, one line, else the empty string."""
    value = mapping.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One scored strategy: the plan itself, a runner-up or a baseline."""

    name: str
    strategy: str
    step_time_s: float | None
    step_time_interval_s: tuple[float, float] | None
    mfu: float | None
    peak_memory_bytes: float | None
    fits: bool | None
    reason: str
    cost_usd_per_hour: float | None
    num_devices: float | None
    bubble_fraction: float | None
    is_best: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether it has a step time and is not known to overflow memory."""
        return self.step_time_s is not None and self.fits is not False


@dataclass(frozen=True, kw_only=True, slots=True)
class WhatIf:
    """What one change of the hardware would buy."""

    change: str
    step_time_s: float | None
    gain: float | None
    """Part of the step time saved [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoice:
    """The split of one operator and what each alternative would cost."""

    operator: str
    module: str
    choice: str
    words: str
    alternatives: tuple[tuple[str, float], ...]
    """Label and extra seconds per step [s], cheapest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A plan as reports tell it."""

    title: str
    devices: str
    workload: str
    strategy: str
    sentence: str
    best: Option
    tokens_per_s: float | None
    samples_per_s: float | None
    hfu: float | None
    interval_basis: str
    """Which published steps the interval of the step time comes from."""
    term_sources: str
    """Which parts of the step are measured, derived, from a datasheet or assumed."""
    capacity_bytes: float | None
    cost_per_billion_tokens_usd: float | None
    cost_per_million_samples_usd: float | None
    time_s: dict[str, float]
    memory_bytes: dict[str, float]
    memory_per_stage_bytes: tuple[float, ...]
    memory_terms_per_stage_bytes: tuple[dict[str, float], ...]
    bottleneck: str
    binding_constraint: str
    runner_up: str
    runner_up_margin: float | None
    what_if: tuple[WhatIf, ...]
    layers: tuple[LayerChoice, ...]
    options: tuple[Option, ...]
    """The plan and its runners-up, best first."""
    baselines: tuple[Option, ...]
    rejected: tuple[tuple[str, int], ...]
    assumptions: tuple[str, ...]


def option_of(record: Mapping[str, Any], *, name: str = "", is_best: bool = False) -> Option:
    """Read one scored strategy."""
    fits = record.get("fits")
    return Option(
        name=words(record, "name") or name,
        strategy=words(record, "strategy"),
        step_time_s=finite(record, "step_time_s"),
        step_time_interval_s=_interval(record.get("step_time_interval_s")),
        mfu=finite(record, "mfu"),
        peak_memory_bytes=finite(record, "peak_memory_bytes"),
        fits=fits if isinstance(fits, bool) else None,
        reason=words(record, "reason"),
        cost_usd_per_hour=finite(record, "cost_usd_per_hour"),
        num_devices=finite(record, "num_devices"),
        bubble_fraction=finite(record, "bubble_fraction"),
        is_best=is_best,
    )


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list | tuple) or len(value) != 2:  # noqa: PLR2004 (low and high)
        return None
    low, high = (finite({"end": end}, "end") for end in value)
    return None if low is None or high is None else (low, high)


def summarise(plan: Plan) -> Summary:
    """Return what reports tell of a plan."""
    prediction = plan.prediction
    explanation = plan.explanation
    best = option_of({**prediction, "strategy": plan.strategy}, name="this plan", is_best=True)
    tokens_per_s, samples_per_s = (
        finite(prediction, "tokens_per_s"),
        finite(prediction, "samples_per_s"),
    )
    runner_up = explanation.get("runner_up")
    runner_up = runner_up if isinstance(runner_up, Mapping) else {}
    return Summary(
        title=f"{plan.model.name} on {plan.cluster.name}",
        devices=f"{plan.cluster.num_devices:,} × {plan.cluster.device}",
        workload=_workload(plan),
        strategy=plan.strategy,
        sentence=words(explanation, "sentence") or strategy_in_words(plan.strategy),
        best=best,
        tokens_per_s=tokens_per_s if plan.workload.sequence_length > 1 else None,
        samples_per_s=samples_per_s,
        hfu=finite(prediction, "hfu"),
        interval_basis=words(prediction, "step_time_interval_basis"),
        term_sources=_sources(prediction.get("term_sources")),
        capacity_bytes=finite(prediction, "memory_capacity_bytes"),
        cost_per_billion_tokens_usd=_cost_of(
            1e9, best.cost_usd_per_hour, tokens_per_s, plan.workload.sequence_length > 1
        ),
        cost_per_million_samples_usd=_cost_of(
            1e6, best.cost_usd_per_hour, samples_per_s, plan.workload.sequence_length <= 1
        ),
        time_s=_in_order(amounts(prediction.get("breakdown_s"))),
        memory_bytes=_largest_first(amounts(prediction.get("memory_breakdown_bytes"))),
        memory_per_stage_bytes=_numbers(prediction.get("peak_memory_bytes_per_stage")),
        memory_terms_per_stage_bytes=tuple(
            amounts(item) for item in records(prediction.get("memory_breakdown_bytes_per_stage"))
        ),
        bottleneck=words(explanation, "bottleneck"),
        binding_constraint=words(explanation, "binding_constraint"),
        runner_up=words(runner_up, "strategy"),
        runner_up_margin=finite(runner_up, "margin"),
        what_if=tuple(_what_if(item) for item in records(explanation.get("what_if"))),
        layers=tuple(_layer(item) for item in records(explanation.get("layers"))),
        options=(best, *_runners_up(plan)),
        baselines=tuple(option_of(item, name="baseline") for item in plan.baselines),
        rejected=tuple(sorted(plan.rejected.items(), key=lambda item: (-item[1], item[0]))),
        assumptions=plan.assumptions,
    )


def _workload(plan: Plan) -> str:
    work = plan.workload
    what = "training" if work.mode == "train" else "inference"
    parts = [f"{what}, {work.global_batch_size:,} samples a step"]
    if work.sequence_length > 1:
        parts.append(f"{work.sequence_length:,} tokens each")
    parts.append(work.precision)
    if work.mode == "train":
        parts.append(work.optimizer)
    parts.append(f"software {plan.software}")
    return ", ".join(parts)


def _sources(value: Any) -> str:
    """Return the parts of a step by kind of source: ``measured: compute; assumed: overlap``."""
    if not isinstance(value, Mapping):
        return ""
    kinds: dict[str, list[str]] = {kind: [] for kind in TRUST}
    for term, kind in value.items():
        kinds.setdefault(str(kind), []).append(term_label(str(term)))
    return "; ".join(f"{kind}: {', '.join(terms)}" for kind, terms in kinds.items() if terms)


def _cost_of(
    amount: float,
    usd_per_hour: float | None,
    per_s: float | None,
    applies: bool,  # noqa: FBT001 (whether the unit is one of this workload)
) -> float | None:
    if usd_per_hour is None or not per_s or not applies:
        return None
    return usd_per_hour / 3600 / per_s * amount


def _in_order(times_s: dict[str, float]) -> dict[str, float]:
    known = {term: times_s[term] for term in TIME_TERMS if term in times_s}
    return known | {term: value for term, value in times_s.items() if term not in known}


def _largest_first(found: dict[str, float]) -> dict[str, float]:
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        return ()
    found = [finite({"x": item}, "x") for item in value]
    return tuple(item for item in found if item is not None)


def _runners_up(plan: Plan) -> list[Option]:
    found = [option_of(item) for item in plan.candidates]
    return [option for option in found if option.strategy != plan.strategy]


def _what_if(record: Mapping[str, Any]) -> WhatIf:
    return WhatIf(
        change=words(record, "change") or "an unnamed change",
        step_time_s=finite(record, "step_time_s"),
        gain=finite(record, "gain"),
    )


def _layer(record: Mapping[str, Any]) -> LayerChoice:
    alternatives = record.get("alternatives")
    alternatives = alternatives if isinstance(alternatives, Mapping) else {}
    extra = {str(label): finite(alternatives, label) for label in alternatives}
    known = [(label, seconds) for label, seconds in extra.items() if seconds is not None]
    choice = record.get("choice")
    return LayerChoice(
        operator=words(record, "operator"),
        module=words(record, "module"),
        choice="replicated" if choice is None else str(choice),
        words=words(record, "words"),
        alternatives=tuple(sorted(known, key=lambda item: (item[1], item[0]))),
    )
