"""Time of the README's plans, cold and warm, and the rate of the closed form.

Run as ``python benchmarks/planning_speed.py``. Cold means a new process and an empty graph cache.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

PLANS = (
    ("gpt3-175b", "dgx-a100-80g:128", "1536", "2048"),
    ("llama3-405b", "dgx-h100:2048", "2048", "8192"),
    ("hf:mixtral", "dgx-h100:8", "256", "4096"),
)
NUM_SCORES = 2000


def timed_plan(
    model: str, cluster: str, batch: str, length: str, *, home: str
) -> tuple[float, float]:
    """Return wall and CPU time of one plan in its own process [s]."""
    command = [
        sys.executable, "-m", "paraplan", "plan", model, "--cluster", cluster, "--global-batch",
        batch, "--seq-len", length, "--software", "megatron-core", "--out", f"{home}/out", "--json",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PARAPLAN_HOME": home}
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def scores_per_second() -> float:
    """Return closed-form evaluations of GPT-3 per second, prices known."""
    from paraplan.planning import Options, make_problem
    from planner.evaluation import evaluate
    from planner.problem import PriceBook
    from planner.strategy import parse_strategy

    problem = make_problem(
        Options(model="gpt3-175b", cluster="dgx-a100-80g:128", global_batch=1536, seq_len=2048)
    )
    book = PriceBook(problem=problem)
    base = parse_strategy("dp=16,tp=8,pp=8,microbatch=1")
    layout = book.layouts(base)[0]
    flags = [
        replace(base, sharding=sharding, recompute=recompute)
        for sharding in ("none", "optimizer", "parameters")
        for recompute in ("none", "selective", "full")
    ]
    for strategy in flags:
        evaluate(book, strategy, layout)
    started = time.process_time()
    for number in range(NUM_SCORES):
        evaluate(book, flags[number % len(flags)], layout)
    return NUM_SCORES / (time.process_time() - started)


def main() -> None:
    """Print the table."""
    print(f"{'plan':<34}{'':>6}{'wall s':>9}{'CPU s':>9}")
    with tempfile.TemporaryDirectory() as home:
        for plan in PLANS:
            for kind in ("cold", "warm"):
                wall, cpu = timed_plan(*plan, home=home)
                print(
                    f"{plan[0] + ' on ' + plan[1]:<34}{kind:>6}{wall:>9.1f}{cpu:>9.1f}", flush=True
                )
    print(f"closed form: {scores_per_second():,.0f} candidates per second and core, prices known")


if __name__ == "__main__":
    main()
