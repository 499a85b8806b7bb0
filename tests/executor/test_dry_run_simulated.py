"""The listed collectives, priced, take as long as the simulator's program says."""

from dataclasses import replace

import pytest
from dry_runs import GPT, LLAMA

from executor.dry_run_simulated import simulated_calls, step_of, transfers
from hardware_profiles import load_software
from paraplan.planning import Options, make_problem
from planner.evaluation import evaluate
from planner.host_time import framework_delay
from planner.lowering import lower
from planner.problem import PriceBook
from planner.strategy import parse_strategy
from simulator.collectives import collective_time

STRATEGIES = [
    "dp=8,microbatch=1",
    "dp=8,microbatch=1,sharding=optimizer",
    "dp=8,microbatch=1,sharding=gradients",
    "dp=8,microbatch=1,sharding=parameters",
    "dp=2,tp=4,microbatch=1,sequence_parallel=on,recompute=full",
    "dp=2,tp=2,microbatch=1,sharding=parameters,sequence_parallel=on",
    "dp=2,pp=4,microbatch=1,schedule=gpipe,sharding=parameters",
    "dp=2,tp=2,pp=2,microbatch=1,schedule=interleaved,virtual_stages=2",
]
HIDING = {
    "overlap_gradient_sync": 0.0, "overlap_parameter_gather": 0.0, "overlap_pipeline": 0.0,
    "overlap_tensor_parallel": 0.0, "overlap_tensor_backward": 0.0, "sharded_unit_s": 0.0,
}  # fmt: skip


def bare_software():
    """A stack that hides nothing and adds nothing of its own to collectives."""
    software = load_software("eager")
    known = {key: value for key, value in HIDING.items() if hasattr(software, key)}
    return replace(software, **known)


def listed_s(step, pipeline_rank):
    """Time of all listed collectives of a pipeline rank, once each [s]."""
    problem, total = step.problem, {"tensor": 0.0, "data": 0.0}
    for call in simulated_calls(step):
        if call.stage % step.mesh.pp != pipeline_rank:
            continue
        tied = call.source == "tied"
        group = step.mesh.neighbour_group() if tied else step.mesh.group(*call.axes)
        seconds = collective_time(
            call.kind, call.message_bytes, group=group, cluster=problem.cluster
        )
        stream = "tensor" if call.source == "layout" else "data"
        if stream == "tensor":
            seconds += framework_delay(group, software=problem.software)
        times = 1 if call.when == "step" else step.num_microbatches
        total[stream] += seconds * call.count * times
    return total


@pytest.mark.parametrize("model", [GPT, LLAMA])
@pytest.mark.parametrize("text", STRATEGIES)
def test_listed_collectives_last_as_long_as_the_tasks_of_the_program(model, text):
    options = Options(model=model, cluster="dgx-a100-80g:1", global_batch=32, strategy=text)
    problem = replace(make_problem(options), software=bare_software())
    strategy, book = parse_strategy(text), PriceBook(problem=problem)
    layout = book.layouts(strategy)[0]
    evaluation = evaluate(book, strategy, layout)
    program = lower(evaluation.costs)
    step = step_of(
        problem, strategy, layout, starts=evaluation.stages.starts,
        num_microbatches=evaluation.num_microbatches,
    )  # fmt: skip
    for rank in range(step.mesh.pp):
        tasks = [task for task in program.tasks if task.rank == rank]
        listed = listed_s(step, rank)
        for stream in ("tensor", "data"):
            lasted = sum(task.duration_s for task in tasks if task.stream == stream)
            assert listed[stream] == pytest.approx(lasted, rel=1e-9, abs=1e-15)
        sent = sorted(task.num_bytes for task in tasks if task.name.startswith("send'"))
        expected = sorted(
            num_bytes
            for _, kind, num_bytes, count in transfers(step, pipeline_rank=rank)
            for _ in range(int(count))
            if kind == "send"
        )
        assert sent == expected
