"""What an engineer would try first: always scored, always in the table, fitting or not."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from planner.evaluation import Evaluation, evaluate, evaluate_memory
from planner.feasibility import find_rejection
from planner.layout_choice import layout_that_fits
from planner.problem import PriceBook
from planner.replay import replay_step_time
from planner.space import divisors, microbatch_sizes, packs_nodes, recomputes
from planner.strategy import Strategy


@dataclass(frozen=True, kw_only=True, eq=False)
class Baseline:
    """A named standard strategy at its best, or why it is impossible."""

    name: str
    evaluation: Evaluation | None
    step_time_s: float | None
    reason: str
    """Empty where it fits."""


GIB = 2.0**30
NAMES = ("data parallel", "FSDP", "tensor parallel", "Megatron-style")


def find_baselines(
    book: PriceBook, *, num_devices: int, only: tuple[str, ...] = NAMES
) -> tuple[Baseline, ...]:
    """Return plain data parallelism, FSDP and the best tensor-and-pipeline split.

    Where the batch does not divide over all devices, data parallelism takes as many as it does.
    """
    batch = book.problem.workload.global_batch_size
    replicas = max(d for d in divisors(batch) if d <= num_devices)
    plain = Strategy(data_parallel_size=replicas)
    node = min(book.problem.cluster.devices_per_node, num_devices)
    candidates = [
        ("data parallel", [plain]),
        ("FSDP", [replace(plain, sharding="parameters")] if replicas > 1 else []),
        ("tensor parallel", _tensor_only(book, num_devices, node)),
        ("Megatron-style", _megatron(book, num_devices, node)),
    ]
    return tuple(_best_of(book, name, tried) for name, tried in candidates if name in only)


def _tensor_only(book: PriceBook, num_devices: int, node: int) -> list[Strategy]:
    tp = _largest_tensor_size(book, num_devices, node)
    if tp == 1:
        return []
    return [Strategy(data_parallel_size=num_devices // tp, tensor_parallel_size=tp)]


def _largest_tensor_size(book: PriceBook, num_devices: int, node: int) -> int:
    limits = [limit for _, limit in book.problem.limits]
    per_node = book.problem.cluster.devices_per_node
    return max(
        tp
        for tp in divisors(num_devices)
        if tp <= node
        and packs_nodes(tp, num_devices=num_devices, devices_per_node=per_node)
        and all(limit % tp == 0 for limit in limits)
    )


def _megatron(book: PriceBook, num_devices: int, node: int) -> list[Strategy]:
    """Tensor parallel inside the node, pipeline across, data parallel for the rest."""
    tp = _largest_tensor_size(book, num_devices, node)
    repeats = max(unit.count for unit in book.problem.graph.units)
    graph = book.problem.graph
    sequence = bool(graph.sequence_labels) and tp > 1 and graph.sequence_length % tp == 0
    is_training = book.problem.workload.is_training
    return [
        Strategy(
            data_parallel_size=num_devices // (tp * pp),
            tensor_parallel_size=tp,
            pipeline_parallel_size=pp,
            sequence_parallel=sequence,
            sharding="optimizer" if is_training and num_devices > tp * pp else "none",
        )
        for pp in divisors(num_devices // tp)
        if pp <= repeats and (tp > 1 or pp > 1)
    ]


def _best_of(book: PriceBook, name: str, strategies: Iterable[Strategy]) -> Baseline:
    best: Evaluation | None = None
    nearest: Evaluation | None = None
    message = "no size above 1 divides the model and the node"
    sizes = microbatch_sizes(book.problem, fixed={})
    for base in strategies:
        for size in sizes:
            strategy = replace(base, microbatch_size=size)
            rejection = find_rejection(book.problem, strategy)
            if rejection is not None:
                message = rejection.message
                continue
            evaluation = _least_recompute(book, strategy)
            if not evaluation.fits:
                if nearest is None or evaluation.overflow_bytes < nearest.overflow_bytes:
                    nearest = evaluation
                break
            if best is None or evaluation.step.step_time_s < best.step.step_time_s:
                best = evaluation
    if best is not None:
        return Baseline(name=name, evaluation=best, step_time_s=replay_step_time(best), reason="")
    if nearest is None:
        return Baseline(name=name, evaluation=None, step_time_s=None, reason=message)
    capacity = min(nearest.capacity_bytes)
    return Baseline(
        name=name,
        evaluation=nearest,
        step_time_s=nearest.step.step_time_s,
        reason=f"needs {nearest.peak_bytes / GIB:.0f} GiB of {capacity / GIB:.0f} GiB per device",
    )


def _least_recompute(book: PriceBook, strategy: Strategy) -> Evaluation:
    """Return the strategy with as little recomputation as fits, or with all of it."""
    modes = recomputes(book.problem, fixed={})
    options = [replace(strategy, recompute=mode) for mode in modes]
    for option in options:
        layout = layout_that_fits(book, option)
        if evaluate_memory(book, option, layout)[1] <= 0:
            return evaluate(book, option, layout)
    return evaluate(book, options[-1], layout_that_fits(book, options[-1]))
