"""Weights that two pipeline stages hold: their gradients are summed between the two."""

import pytest

from paraplan.planning import Options, make_problem, rank_strategy


def step_terms(model: str, strategy: str) -> dict[str, float]:
    problem = make_problem(
        Options(model=model, cluster="dgx-a100-80g:2", global_batch=64, seq_len=256,
                precision="fp16", software="megatron-2021", strategy=strategy)
    )  # fmt: skip
    _, ranked = rank_strategy(problem, strategy)
    return dict(ranked.evaluation.step.breakdown_s)


SHAPE = "gpt2?num_layers=8&vocab_size=51200"


@pytest.mark.parametrize("strategy", ["pp=2", "pp=4", "tp=2,pp=2"])
def test_a_pipeline_pays_for_tied_weights(strategy: str) -> None:
    # Replicas there are none: what "data" holds without tied weights is unequal optimizer steps.
    tied = step_terms(f"{SHAPE}&tied=true", strategy)
    free = step_terms(f"{SHAPE}&tied=false", strategy)
    assert tied["data"] > 5 * free["data"]


def test_one_stage_holds_them_once() -> None:
    assert step_terms(f"{SHAPE}&tied=true", "tp=2")["data"] == 0.0
