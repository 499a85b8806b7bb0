"""Dry runs for tests: ranks are forked from this process, which has torch loaded."""

from executor.dry_run import dry_run
from executor.dry_run_forks import play_in_forks
from paraplan.planning import Options, simulate

GPT = "gpt3-1.3b?num_layers=4&tied=true"
LLAMA = "llama3-8b?num_layers=4"
BERT = "bert-base?num_layers=2"
MLP = "mlp?hidden_size=64"


def plan_for(model, strategy, *, batch=48, cluster="dgx-a100-80g:1", software=None):
    options = Options(
        model=model, cluster=cluster, global_batch=batch, strategy=strategy, software=software
    )
    return simulate(options)[0]


def dry_run_here(plan):
    return dry_run(plan, play=play_in_forks)
