"""Jobs for tests: a small model on a task that can be learned, short steps, short timeouts."""

import json
from pathlib import Path

from plans import plan_of

from executor.job import run_job
from executor.job_settings import JobSettings
from executor.learning_rate import LearningRate

TIMEOUT_S = 40.0
STRATEGIES = {
    "one": "dp=1,microbatch=4", "dp": "dp=2,microbatch=2", "tp": "tp=2,microbatch=4",
    "fsdp": "dp=2,microbatch=4,sharding=parameters",
    "pp": "pp=2,microbatch=2,schedule=1f1b",
    "interleaved": "pp=2,microbatch=2,schedule=interleaved,virtual_stages=2",
}  # fmt: skip
COUNTING = '''
import os, signal, resource, time, torch
from pathlib import Path

HERE = Path(__file__).parent

def once(name):
    """True the first time over all processes and attempts."""
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

class Counting:
    """Sequences that count up from where they begin, some steps wide."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        {fault}
        line = (torch.arange(17) * (1 + index % 3) + index) % 64
        return line[:-1], line[1:]

def dataset():
    return Counting()
'''


def counting(folder, *, fault="pass"):
    """Write a dataset of 24 samples; three steps of 8 are an epoch."""
    path = Path(folder) / "counting.py"
    path.write_text(COUNTING.replace("{fault}", fault))
    return f"{path}:dataset"


def train(name, folder, *, steps=4, start="new", optimizer="adam", plan=None, restarts=0,
          progress=None, seed=0, timeout_s=TIMEOUT_S, **wanted):  # fmt: skip
    """Run a job whose checkpoints and log are in a folder."""
    folder = Path(folder)
    job = JobSettings(
        learning_rate=LearningRate(peak=1e-2, kind="cosine", warmup_steps=1),
        **{"checkpoint_dir": str(folder / "saved"), "save_every": 2, "keep": 3,
           "log_path": str(folder / "job.jsonl"), "start": start, **wanted},
    )  # fmt: skip
    return run_job(
        plan or plan_of(STRATEGIES[name], optimizer=optimizer), job, steps=steps, seed=seed,
        timeout_s=timeout_s, max_restarts=restarts, progress=progress,
    )  # fmt: skip


def steps_logged(folder):
    lines = (Path(folder) / "job.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def saved(folder):
    return sorted(entry.name for entry in (Path(folder) / "saved").glob("step-*"))
