"""Dry runs for tests: ranks are forked from this process, which has torch loaded."""

import os
import traceback

from executor.dry_run import dry_run
from executor.dry_run_rank import PROBES_FILE, load_issued, run_probe
from paraplan.planning import Options, simulate

GPT = "gpt3-1.3b?num_layers=4&tied=true"
LLAMA = "llama3-8b?num_layers=4"
MLP = "mlp?hidden_size=64"


def plan_for(model, strategy, *, batch=48, cluster="dgx-a100-80g:1", software=None):
    options = Options(
        model=model, cluster=cluster, global_batch=batch, strategy=strategy, software=software
    )
    return simulate(options)[0]


def fork_probes(probes, run_dir, progress):
    """Play ranks one after the other, each in a fork."""
    (run_dir / PROBES_FILE).write_text(str(list(probes)), encoding="utf-8")
    for number in range(len(probes)):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.environ["RANK"] = str(number)
                run_probe(run_dir)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if status:
            raise RuntimeError(f"rank {probes[number]} failed")
    return [load_issued(run_dir, number) for number in range(len(probes))]


def dry_run_here(plan):
    return dry_run(plan, play=fork_probes)
