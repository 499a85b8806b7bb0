"""How far a prediction may be off, from where its terms come from.

Until validation residuals of a near family are known (``paraplan validate``), the range follows the
*kind* of each term's sources: a measured kernel or link is worth more than a datasheet, and an
assumption less. The range is wider upwards: simulators of this kind are optimistic (peers
under-predict 42 of 43 published step times).
"""

from collections.abc import Mapping

from hardware_profiles.provenance import Provenance, SourceKind
from planner.evaluation import Evaluation
from planner.problem import Problem

SHARE_OFF: Mapping[SourceKind, float] = {
    "measured": 0.10,
    "derived": 0.15,
    "datasheet": 0.20,
    "assumed": 0.30,
}
"""Assumed half-width of the 80 % range of a term by the kind of its source [1]."""
UPWARD = 1.5
"""Assumed ratio of the upward to the downward half-width [1]."""
VALIDATED_KINDS = frozenset({"gpu"})
"""Kinds of device with published step times among the validation cases."""
UNVALIDATED_OFF = 2.0 / 3.0
"""Assumed half-width for other kinds: up to a factor of two upwards. Steps on CPU processes took
1.5 to 1.8 times the prediction from calibrated kernels (``paraplan compare``) [1]."""
_COMPUTE_FIELDS = ("matmul.", "memory_efficiency", "attention_")
_COMMUNICATION = ("tensor", "data", "pipeline", "context", "expert")


def step_time_interval(
    problem: Problem, evaluation: Evaluation, *, step_time_s: float
) -> tuple[float, float]:
    """Return the range in which the step is expected to lie with 80 % probability [s]."""
    parts = evaluation.step.breakdown_s
    communication = sum(parts[term] for term in _COMMUNICATION)
    share = min(1.0, communication / step_time_s) if step_time_s > 0 else 0.0
    devices = [group.device for group in problem.cluster.node_groups]
    compute_off = max(
        SHARE_OFF[worst_kind(device.provenance, _COMPUTE_FIELDS)] for device in devices
    )
    network = {**problem.cluster.intra.link.provenance, **problem.cluster.provenance}
    network_off = SHARE_OFF[worst_kind(network, ("achievable", "intra", "inter"))]
    off = compute_off * (1.0 - share) + network_off * share
    if any(device.kind not in VALIDATED_KINDS for device in devices):
        off = max(off, UNVALIDATED_OFF)
    return step_time_s / (1.0 + off), step_time_s * (1.0 + UPWARD * off)


def worst_kind(provenance: Mapping[str, Provenance], prefixes: tuple[str, ...]) -> SourceKind:
    """Return the weakest kind of source among quantities with one of the prefixes."""
    kinds = [p.kind for name, p in provenance.items() if name.startswith(prefixes)]
    return max(kinds, key=lambda kind: SHARE_OFF[kind], default="assumed")
