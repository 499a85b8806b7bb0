"""Drill: a job on two hosts (two torchrun agents) goes on after one of them was lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from jobs import STRATEGIES, counting, saved
from plans import plan_of

from planner.plan import plan_to_json

LIMIT_S = 60.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start_hosts(tmp_path):
    """Return a function that starts the agents of both hosts; none is left at the end."""
    plan = tmp_path / "plan.json"
    plan.write_text(plan_to_json(plan_of(STRATEGIES["fsdp"])))
    started = []

    def start(*options):
        port = free_port()
        started.extend(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
                 "--node-rank", str(node), "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
                 "--master-port", str(port), "-m", "paraplan", "run", str(plan), "--steps", "6",
                 "--save-every", "2", "--checkpoint-dir", str(tmp_path / "saved"),
                 "--timeout", "20", "--dataset", counting(tmp_path, fault="time.sleep(0.1)"),
                 *options],
                env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for node in (0, 1)
        )  # fmt: skip
        return started[-2:]

    yield start
    for agent in started:
        agent.kill()
        agent.wait()


def ranks_of(folder):
    listed = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if f"run {folder}/plan.json" in line]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_job_on_two_hosts_goes_on_after_one_was_lost(tmp_path, start_hosts):
    first, second = start_hosts()
    deadline = time.monotonic() + LIMIT_S
    while not (tmp_path / "saved" / "step-00000002").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    assert first.wait(LIMIT_S) == 1
    assert second.wait(LIMIT_S) == -signal.SIGKILL
    assert not ranks_of(tmp_path)
    assert saved(tmp_path)[0] == "step-00000002"
    assert [agent.wait(LIMIT_S) for agent in start_hosts("--resume")] == [0, 0]
    job = json.loads((tmp_path / "job.json").read_text())
    assert job["resumed_from_step"] in (2, 4)
    assert saved(tmp_path)[-1] == "step-00000006"
