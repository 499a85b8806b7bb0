"""Real plans to hand over, each made once."""

from functools import cache
from typing import Any

from paraplan.planning import rank_strategy
from planner.make_plan import plan_of_strategy
from planner.plan import Plan
from tests.planner.problems import problem_of

NODES = "dgx-h100:4"
LLAMA = "llama3-8b"


@cache
def plan_of(strategy: str, model: str = LLAMA, cluster: str = NODES, **options: Any) -> Plan:
    """Return the plan of a strategy: Llama 3 8B, 64 samples of 2048 tokens, unless told else."""
    if model != "bert-large":
        options.setdefault("seq_len", 2048)
    options.setdefault("global_batch", 64)
    options.setdefault("precision", "bf16")
    options.setdefault("optimizer", "adamw")
    problem = problem_of(model, cluster, **options)
    return plan_of_strategy(*rank_strategy(problem, strategy))


def with_changes(plan: Plan, part: str, **changes: Any) -> Plan:
    """Return a plan whose workload, cluster or model says something else."""
    return plan.model_copy(update={part: getattr(plan, part).model_copy(update=changes)})
