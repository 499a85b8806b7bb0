"""The numbers of one candidate under the names that other programs rely on (DESIGN section 7)."""

from collections.abc import Mapping
from typing import Any

from planner.evaluation import Evaluation
from planner.graph_math import model_flops as model_flops_of
from planner.interval import step_time_interval
from planner.problem import Problem
from planner.stage_memory import MEMORY_TERMS
from planner.step_time import ROUNDING
from planner.term_sources import term_sources

SECONDS_PER_HOUR = 3600.0
GIVES_WAY = (
    "bubble", "data", "pipeline", "expert", "context", "tensor", "input", "optimizer", "compute",
)  # fmt: skip
"""Parts of a step in the order in which the engine may find them shorter than the closed form."""


def prediction(problem: Problem, evaluation: Evaluation, *, step_time_s: float) -> dict[str, Any]:
    """Return the ``simulate --json`` object.

    Parameters
    ----------
    problem : Problem
        What is planned.
    evaluation : Evaluation
        The candidate.
    step_time_s : float
        Its step time: the engine's where it was replayed, else the closed form's [s].
    """
    workload, strategy = problem.workload, evaluation.strategy
    devices = strategy.num_devices
    model_flops = model_flops_of(
        problem.graph, batch_size=workload.global_batch_size, training=workload.is_training
    )
    peak = _mean_peak_flops_per_s(problem, num_devices=devices)
    model_rate = model_flops / step_time_s / devices
    hardware_rate = model_rate * _hardware_share(evaluation)
    tokens = workload.global_batch_size * workload.sequence_length
    breakdown = fitted_breakdown(evaluation.step.breakdown_s, step_time_s=step_time_s)
    price = problem.cluster.price_usd_per_hour
    cost = None if price is None else price * devices / problem.cluster.num_devices
    interval = step_time_interval(problem, num_devices=devices, step_time_s=step_time_s)
    return {
        "strategy": str(strategy),
        "layout": evaluation.layout.name,
        "step_time_s": step_time_s,
        "step_time_interval_s": [interval.low_s, interval.high_s],
        "step_time_interval_basis": interval.basis,
        "tokens_per_s": tokens / step_time_s,
        "samples_per_s": workload.global_batch_size / step_time_s,
        "model_flops_per_step": model_flops,
        "model_flops_per_s_per_device": model_rate,
        "hardware_flops_per_s_per_device": hardware_rate,
        "mfu": model_rate / peak,
        "hfu": hardware_rate / peak,
        "peak_memory_bytes": evaluation.peak_bytes,
        "peak_memory_bytes_per_stage": [float(b) for b in evaluation.memory.peak_bytes],
        "peak_tensor_bytes": float(evaluation.memory.tensor_bytes.max()),
        "memory_breakdown_bytes": {
            term: evaluation.memory.breakdown_of_largest()[term] for term in MEMORY_TERMS
        },
        "memory_breakdown_bytes_per_stage": [
            {term: float(evaluation.memory.terms[term][rank]) for term in MEMORY_TERMS}
            for rank in range(evaluation.mesh.pp)
        ],
        "memory_capacity_bytes": min(evaluation.capacity_bytes),
        "fits": evaluation.fits,
        "breakdown_s": breakdown,
        "term_sources": term_sources(problem, breakdown),
        "bubble_fraction": breakdown["bubble"] / step_time_s,
        "num_devices": devices,
        "num_microbatches": evaluation.num_microbatches,
        "cost_usd_per_hour": cost,
        "cost_usd_per_step": None if cost is None else cost * step_time_s / SECONDS_PER_HOUR,
        "num_parameters": problem.graph.num_parameters,
    }


def fitted_breakdown(breakdown_s: Mapping[str, float], *, step_time_s: float) -> dict[str, float]:
    """Return the closed form's parts of a step, made to add up to the engine's step [s].

    What the engine adds is waiting. What it takes off was waiting, too, or else communication that
    hides better than the closed form grants; the order of :data:`GIVES_WAY` decides.

    Examples
    --------
    >>> parts = {"compute": 5.0, "data": 2.0, "bubble": 1.0}
    >>> fitted_breakdown(parts, step_time_s=9.0)
    {'compute': 5.0, 'data': 2.0, 'bubble': 2.0}
    >>> fitted_breakdown(parts, step_time_s=6.5)
    {'compute': 5.0, 'data': 1.5, 'bubble': 0.0}
    """
    fitted = {term: max(0.0, value) for term, value in breakdown_s.items()}
    surplus = sum(fitted.values()) - step_time_s
    if surplus <= 0:
        waiting = fitted["bubble"] - surplus
        fitted["bubble"] = waiting if waiting > ROUNDING * step_time_s else 0.0
        return fitted
    for term in GIVES_WAY:
        taken = min(surplus, fitted.get(term, 0.0))
        if taken > 0:
            fitted[term] -= taken
            surplus -= taken
    return fitted


def _mean_peak_flops_per_s(problem: Problem, *, num_devices: int) -> float:
    """Return the peak of one device, averaged over those in use where they differ [FLOP/s]."""
    cluster, precision = problem.cluster, problem.workload.precision
    if not cluster.is_mixed:
        return cluster.device.peak_flops_per_s[precision]
    peaks = (cluster.device_of(rank).peak_flops_per_s[precision] for rank in range(num_devices))
    return sum(peaks) / num_devices


def _hardware_share(evaluation: Evaluation) -> float:
    """Return executed over model FLOPs: 1 plus what is recomputed [1]."""
    stages = evaluation.stages
    if not evaluation.costs.is_training or stages.model_flops == 0:
        return 1.0
    return 1.0 + stages.recomputed_flops[evaluation.strategy.recompute] / stages.model_flops
