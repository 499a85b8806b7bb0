"""Experts spread over ranks compute what one process computes, and exchange what the plan says."""

from types import SimpleNamespace

import pytest
from dry_runs import dry_run_here, plan_for
from plans import plan_of

from executor.errors import RunError
from executor.expert_parallel import expert_modules, spread_experts
from executor.run import run_plan
from planner.models.resolve import resolve_model

MIXTRAL = (
    "hf:mixtral?num_hidden_layers=2&hidden_size=32&intermediate_size=48&num_attention_heads=4"
    "&num_key_value_heads=2&vocab_size=64&num_local_experts=4&num_experts_per_tok=2"
)
LAYERS, MICROBATCHES = 2, 2
TIMEOUT_S = 30.0
GRADIENT_DIFFERENCE = 1e-6
"""As in test_equality: sums in another order differ by some 1e-8."""


def experts_of(text):
    model = resolve_model(text).build()
    return expert_modules(model.named_modules())


@pytest.mark.distributed
@pytest.mark.parametrize(
    "strategy",
    [
        "dp=2,ep=2,microbatch=2,sharding=parameters,recompute=full",
        "dp=4,ep=2,microbatch=1",
    ],
)
def test_spread_experts_train_as_in_one_process(strategy):
    result = run_plan(plan_of(strategy, model=MIXTRAL), timeout_s=TIMEOUT_S, steps=2)
    assert result.passed
    assert result.max_gradient_difference < GRADIENT_DIFFERENCE
    assert result.losses[0] != result.losses[1]
    moved = result.collectives_issued["ep"]["all_to_all"]
    # per layer: token counts, there and back; in backward back and there; recomputed once more
    times = 8 if "recompute" in strategy else 5
    assert moved["count"] == times * LAYERS * MICROBATCHES


@pytest.mark.distributed
def test_experts_that_are_not_scaled_by_the_data_ranks_are_caught(tmp_path):
    saboteur = tmp_path / "saboteur.py"
    saboteur.write_text(
        "import os, sys\n"
        "from planner.models.resolve import resolve_model\n"
        f"source = resolve_model({MIXTRAL!r})\n"
        "def model():\n"
        "    training = sys.modules.get('executor.training')\n"
        "    if training is not None and 'RANK' in os.environ:\n"
        "        training.average_over_data_ranks = lambda *args, **kwargs: None\n"
        "    return source.build()\n"
        "def inputs(batch_size, sequence_length):\n"
        "    return source.make_batch(batch_size, sequence_length, 7).inputs\n"
        "def loss(output, targets):\n"
        "    return output.logits.float().square().mean() * 1e3\n"
    )
    plan = plan_of("dp=2,ep=2,microbatch=4", model=f"{saboteur}:model")
    result = run_plan(plan, timeout_s=TIMEOUT_S, steps=1)
    assert not result.passed
    assert ".experts." in result.worst_gradient


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "strategy",
    [
        "dp=4,ep=2,microbatch=1",
        "dp=4,ep=4,microbatch=1,sharding=gradients,recompute=full",
        "dp=8,ep=2,microbatch=1,sharding=parameters",
    ],
)
def test_a_dry_run_counts_the_all_to_alls_of_the_plan(strategy):
    result = dry_run_here(plan_for(MIXTRAL, strategy))
    assert result.differences == ()
    issued = result.ranks[0].issued["ep", "all_to_all"]
    simulated = result.ranks[0].simulated["ep", "all_to_all"]
    token_counts = [known.change for known in result.ranks[0].known if known.axis == "ep"]
    assert simulated.num_bytes > 0
    assert issued.count == simulated.count + sum(change.count for change in token_counts)


@pytest.mark.parametrize(
    ("text", "count"),
    [(MIXTRAL, 2), ("gpt2?num_layers=1&hidden_size=32&num_heads=4&vocab_size=64", 0)],
)
def test_layers_that_stack_experts_are_found_and_routers_are_not(text, count):
    found = experts_of(text)
    assert len(found) == count
    assert all(path.endswith(".experts") for path, _ in found)


def test_what_cannot_be_spread_is_refused_with_the_reason():
    three = SimpleNamespace(size=lambda: 3)
    with pytest.raises(RunError, match=r"4 experts do not divide by ep=3"):
        spread_experts(experts_of(MIXTRAL), mesh=three)
    with pytest.raises(RunError, match=r"no layer stacks its experts .*; plan with ep=1"):
        spread_experts([], mesh=three)
    plan = plan_of("dp=2,ep=2,tp=2,microbatch=1", model=MIXTRAL)
    with pytest.raises(RunError, match="ep=2 beside tp=2 cannot be run"):
        run_plan(plan)
