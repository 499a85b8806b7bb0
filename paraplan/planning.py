"""Plan and simulate as functions: options in words, results as values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from hardware_profiles import load_cluster, load_software
from hardware_profiles.cluster import Cluster
from hardware_profiles.device import DeviceProfile, Precision
from hardware_profiles.errors import ProfileError
from hardware_profiles.software import SoftwareProfile
from planner.errors import PlanError, StrategyError
from planner.evaluation import evaluate
from planner.feasibility import find_rejection
from planner.graph import ModelGraph
from planner.layout_choice import layout_that_fits
from planner.make_plan import plan_of_search, plan_of_strategy
from planner.models.resolve import resolve_model
from planner.plan import Plan, load_plan
from planner.problem import PriceBook, Problem
from planner.replay import replay_step_time, shown_timeline
from planner.scoring import Progress
from planner.search import Objective, Ranked, SearchResult, search
from planner.strategy import check_strategy, parse_partial_strategy, parse_strategy
from planner.tracing import trace_model
from planner.workload import AttentionChoice, Mode, OptimizerName, Workload
from simulator.timeline import Timeline

MATRIX_UNIT_RATIO = 4.0
"""fp16 is chosen by default where it is this much faster than fp32: there are matrix units."""
DEFAULT_SOFTWARE = {"gpu": "eager", "tpu": "maxtext", "fpga": "eager", "cpu": "eager"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the user asked for, in the words of the command line."""

    model: str
    cluster: str
    global_batch: int
    seq_len: int | None = None
    precision: str | None = None
    optimizer: str = "adam"
    mode: str = "train"
    attention: str = "auto"
    software: str | None = None
    strategy: str = ""


OPTION_NAMES = tuple(Options.__dataclass_fields__)


def trace(
    model: str, *, sequence_length: int | None = None, progress: Callable[[str], None] | None = None
) -> ModelGraph:
    """Return the traced graph of a model, from the cache where it is there."""
    at_least_one("--seq-len", sequence_length)
    source = resolve_model(model)
    return trace_model(source, sequence_length=sequence_length, progress=progress)


def make_problem(options: Options, *, graph: ModelGraph | None = None) -> Problem:
    """Return the problem that options state.

    Parameters
    ----------
    options : Options
        What the user asked for.
    graph : ModelGraph, optional
        The graph of this model and sequence length, where it is at hand.

    Raises
    ------
    ParaplanError
        If a name is unknown or a value is out of range; one line says which.
    """
    at_least_one("--global-batch", options.global_batch)
    at_least_one("--seq-len", options.seq_len)
    cluster = load_cluster(options.cluster)
    software = _software(options, cluster)
    source = resolve_model(options.model)
    workload = Workload(
        global_batch_size=options.global_batch,
        sequence_length=options.seq_len or source.default_sequence_length,
        precision=_precision(options, cluster),
        optimizer=_word("--optimizer", options.optimizer, get_args(OptimizerName)),
        mode=_word("--mode", options.mode, get_args(Mode)),
        attention=_word("--attention", options.attention, get_args(AttentionChoice)),
    )
    if graph is None:
        graph = trace_model(source, sequence_length=workload.sequence_length)
    return Problem(
        graph=graph,
        workload=replace(workload, sequence_length=graph.sequence_length),
        cluster=cluster,
        software=software,
        limits=source.tensor_parallel_limits,
    )


def at_least_one(option: str, value: int | None) -> None:
    """Refuse a count below 1; None is no count."""
    if value is not None and value < 1:
        raise StrategyError(f"{option} is {value}; expected at least 1")


def _word(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise StrategyError(f"{option} is {value!r}; expected one of {', '.join(allowed)}")
    return value


def _software(options: Options, cluster: Cluster) -> SoftwareProfile:
    if options.software is not None:
        return load_software(options.software)
    if options.cluster.split(":")[0] == "local":
        return load_software("local")
    return load_software(DEFAULT_SOFTWARE[cluster.device.kind])


def _precision(options: Options, cluster: Cluster) -> Precision:
    devices = [group.device for group in cluster.node_groups]
    if options.precision is None:
        return _common_precision(devices)
    precision: Precision = _word("--precision", options.precision, get_args(Precision))
    for device in devices:
        if precision not in device.peak_flops_per_s:
            has = ", ".join(device.peak_flops_per_s)
            raise StrategyError(
                f"--precision is {precision}; {device.name} of {cluster.name} has "
                f"{has}; choose one of these"
            )
    return precision


def _common_precision(devices: list[DeviceProfile]) -> Precision:
    """Return the default of the first kind of device whose default all others have, too."""
    defaults = [default_precision(device) for device in devices]
    usable = [p for p in defaults if all(p in device.peak_flops_per_s for device in devices)]
    return usable[0] if usable else "fp32"


def default_precision(device: DeviceProfile) -> Precision:
    """Return the usual training precision: bf16, else fp16 on matrix units, else fp32."""
    peaks = device.peak_flops_per_s
    if "bf16" in peaks and device.kind != "cpu":
        return "bf16"
    if "fp16" in peaks and peaks["fp16"] >= MATRIX_UNIT_RATIO * peaks.get("fp32", 0.0):
        return "fp16"
    return "fp32" if "fp32" in peaks else next(iter(peaks))


def plan(
    options: Options,
    *,
    objective: Objective = "time",
    progress: Progress | None = None,
) -> tuple[Plan, SearchResult]:
    """Search and return the plan with all that the search found."""
    problem = make_problem(options)
    fixed = parse_partial_strategy(options.strategy)
    result = search(problem, fixed=fixed, objective=objective, progress=progress)
    return plan_of_search(result), result


def rank_strategy(problem: Problem, text: str) -> tuple[PriceBook, Ranked]:
    """Return one strategy priced and replayed.

    Raises
    ------
    StrategyError
        If it contradicts itself or does not suit the model, workload or cluster.
    """
    book = PriceBook(problem=problem)
    return book, rank_in_book(book, text)


def rank_in_book(book: PriceBook, text: str) -> Ranked:
    """Return one strategy of a problem whose prices are shared; see :func:`rank_strategy`."""
    strategy = check_strategy(parse_strategy(text))
    rejection = find_rejection(book.problem, strategy)
    if rejection is not None:
        raise StrategyError(rejection.message)
    evaluation = evaluate(book, strategy, layout_that_fits(book, strategy))
    return Ranked(evaluation=evaluation, step_time_s=replay_step_time(evaluation), replayed=True)


def simulate(options: Options, *, detail: str = "folded") -> tuple[Plan, Timeline]:
    """Score exactly one strategy; return it as a plan with its timeline."""
    book, ranked = rank_strategy(make_problem(options), options.strategy)
    timeline, _ = shown_timeline(ranked.evaluation, detail=detail)
    return plan_of_strategy(book, ranked), timeline


def options_of_plan(plan: Plan, *, changes: Mapping[str, Any] | None = None) -> Options:
    """Return the options that would make a plan again, with changes that are not None."""
    options = Options(
        model=plan.model.source,
        cluster=plan.cluster.name,
        global_batch=plan.workload.global_batch_size,
        seq_len=plan.workload.sequence_length,
        precision=plan.workload.precision,
        optimizer=plan.workload.optimizer,
        mode=plan.workload.mode,
        attention=plan.workload.attention,
        software=plan.software,
        strategy=plan.strategy,
    )
    return replace(options, **{k: v for k, v in (changes or {}).items() if v is not None})


def simulate_plan(
    path: str | Path, *, changes: Mapping[str, Any] | None = None, detail: str = "folded"
) -> tuple[Plan, Timeline]:
    """Score a plan file again, with changed options where the user gives some.

    Raises
    ------
    PlanError
        If the model is no longer the one that was planned.
    """
    loaded = load_plan(path)
    options = options_of_plan(loaded, changes=changes)
    if options.cluster == loaded.cluster.name:
        _check_cluster_is_found(path, options.cluster)
    made, timeline = simulate(options, detail=detail)
    then, now = loaded.model.num_parameters, made.model.num_parameters
    if then != now:
        raise PlanError(
            f"{path}: planned for {loaded.model.source} with {then:,} parameters, which now has "
            f"{now:,}; make the plan anew with 'paraplan plan'"
        )
    return made, timeline


def is_plan_file(text: str) -> bool:
    """Return whether a MODEL argument names a plan file."""
    return text.endswith(".json") and not text.startswith("hf:")


def _check_cluster_is_found(path: str | Path, cluster: str) -> None:
    """Refuse a plan whose cluster was a file: a plan holds names, no paths of a machine."""
    try:
        load_cluster(cluster)
    except ProfileError as error:
        raise PlanError(
            f"{path}: its cluster cannot be found ({error}); give its file with --cluster"
        ) from None


def timeline_of_plan(path: Path, *, cluster: str | None = None) -> tuple[Plan, Timeline]:
    """Read a plan and replay it, on the file of its cluster where that is no shipped one."""
    _, timeline = simulate_plan(path, changes={"cluster": cluster})
    return load_plan(path), timeline
