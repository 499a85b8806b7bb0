"""What an engineer would try first: always scored, always in the table, also where it does not fit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from planner.evaluation import Evaluation, evaluate
from planner.feasibility import find_rejection
from planner.problem import PriceBook
from planner.replay import replay_step_time
from planner.space import divisors, microbatch_sizes, recomputes
from planner.strategy import Strategy


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """A named standard strategy at its best, or why it is impossible."""

    name: str
    evaluation: Evaluation | None
    step_time_s: float | None
    reason: str
    """Empty where it fits."""


def find_baselines(book: PriceBook, *, num_devices: int) -> tuple[Baseline, ...]:
    """Return plain data parallelism, FSDP and the best tensor-and-pipeline split."""
    plain = Strategy(data_parallel_size=num_devices)
    node = min(book.problem.cluster.devices_per_node, num_devices)
    candidates: list[tuple[str, Callable[[], Iterable[Strategy]]]] = [
        ("data parallel", lambda: _with_microbatches(book, [plain])),
        ("FSDP", lambda: _with_microbatches(book, [replace(plain, sharding="parameters")])),
        ("tensor parallel", lambda: _with_microbatches(book, _tensor_only(book, num_devices, node))),
        ("Megatron-style", lambda: _with_microbatches(book, _megatron(book, num_devices, node))),
    ]
    return tuple(_best_of(book, name, make()) for name, make in candidates)


def _tensor_only(book: PriceBook, num_devices: int, node: int) -> list[Strategy]:
    tp = _largest_tensor_size(book, num_devices, node)
    if tp == 1:
        return []
    return [Strategy(data_parallel_size=num_devices // tp, tensor_parallel_size=tp)]


def _largest_tensor_size(book: PriceBook, num_devices: int, node: int) -> int:
    limits = [limit for _, limit in book.problem.limits]
    return max(
        tp
        for tp in divisors(num_devices)
        if tp <= node and all(limit % tp == 0 for limit in limits)
    )


def _megatron(book: PriceBook, num_devices: int, node: int) -> list[Strategy]:
    """Tensor parallel inside the node, pipeline across, data parallel for the rest."""
    tp = _largest_tensor_size(book, num_devices, node)
    repeats = max(unit.count for unit in book.problem.graph.units)
    sequence = bool(book.problem.graph.sequence_labels) and tp > 1
    return [
        Strategy(
            data_parallel_size=num_devices // (tp * pp),
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            sequence_parallel=sequence,
            sharding="optimizer" if num_devices > tp * pp else "none",
        )
        for pp in divisors(num_devices // tp)
        if repeats % pp == 0 and (tp > 1 or pp > 1)
    ]


def _with_microbatches(book: PriceBook, strategies: list[Strategy]) -> list[Strategy]:
    sizes = microbatch_sizes(book.problem, fixed={})
    return [replace(strategy, microbatch_size=size) for strategy in strategies for size in sizes]


def _best_of(book: PriceBook, name: str, strategies: Iterable[Strategy]) -> Baseline:
    best: Evaluation | None = None
    nearest: Evaluation | None = None
    message = f"{name}: nothing to split on one device"
    for strategy in strategies:
        rejection = find_rejection(book.problem, strategy)
        if rejection is not None:
            message = rejection.message
            continue
        evaluation = _least_recompute(book, strategy)
        if evaluation.fits:
            if best is None or evaluation.step.step_time_s < best.step.step_time_s:
                best = evaluation
        elif nearest is None or evaluation.overflow_bytes < nearest.overflow_bytes:
            nearest = evaluation
        elif best is None and evaluation.overflow_bytes > nearest.overflow_bytes:
            break
    if best is not None:
        return Baseline(
            name=name, evaluation=best, step_time_s=replay_step_time(best), reason=""
        )
    if nearest is None:
        return Baseline(name=name, evaluation=None, step_time_s=None, reason=message)
    capacity = min(nearest.capacity_bytes)
    return Baseline(
        name=name,
        evaluation=nearest,
        step_time_s=nearest.step.step_time_s,
        reason=f"needs {nearest.peak_bytes / 1e9:.0f} GB of {capacity / 1e9:.0f} GB per device",
    )


def _least_recompute(book: PriceBook, strategy: Strategy) -> Evaluation:
    """Return the strategy with as little recomputation as fits, or with all of it."""
    layout = book.layouts(strategy)[0]
    for mode in recomputes(book.problem, fixed={}):
        evaluation = evaluate(book, replace(strategy, recompute=mode), layout)
        if evaluation.fits:
            break
    return evaluation
