"""A run that cannot work is refused; one that breaks ends at once, in one line, leaving nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plans import megatron_layout, plan_of

from executor.errors import RunError
from executor.result import write_atomically
from executor.run import run_plan
from executor.run_folder import run_folder
from planner.errors import PlanError
from planner.plan import load_plan, plan_to_json

TIMEOUT_S = 30.0
FAULTY = """
import os, signal, time, torch
from torch import nn

class Faulty(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if os.environ.get("RANK") == "1" and self.calls == 2:
            {fault}
        return self.layer(x)

def model():
    return Faulty()

def inputs(batch_size, sequence_length):
    return torch.ones(batch_size, 4)

def loss(output, targets):
    return output.square().mean()
"""


def faulty_plan(tmp_path, fault):
    path = tmp_path / "faulty.py"
    path.write_text(FAULTY.replace("{fault}", fault))
    return plan_of("dp=2,microbatch=4", model=f"{path}:model", sequence=1)


def processes_naming(text):
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                line = Path(entry.path, "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def no_process_of(parent):
    return not processes_naming(f"{parent}/paraplan-run-")


def ends_soon(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise ValueError('the cat is on the keyboard')",
         "rank 1: ValueError: the cat is on the keyboard"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "rank 1 was killed by signal 9 (SIGKILL)"),
    ],
)  # fmt: skip
def test_a_broken_rank_ends_the_run_in_one_line(tmp_path, monkeypatch, fault, words):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    output = tmp_path / "run.json"
    started = time.monotonic()
    with pytest.raises(RunError) as caught:
        run_plan(faulty_plan(tmp_path, fault), timeout_s=TIMEOUT_S, output=output)
    assert time.monotonic() - started < TIMEOUT_S
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    assert ends_soon(lambda: no_process_of(tmp_path))
    assert not list(tmp_path.glob("paraplan-run-*"))


@pytest.mark.distributed
def test_a_silent_rank_costs_the_timeout_and_no_more(tmp_path):
    started = time.monotonic()
    with pytest.raises(RunError, match="rank"):
        run_plan(faulty_plan(tmp_path, "time.sleep(600)"), timeout_s=4.0)
    assert time.monotonic() - started < 25.0


@pytest.mark.distributed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_launcher(tmp_path, monkeypatch, number):
    plan = tmp_path / "plan.json"
    plan.write_text(plan_to_json(faulty_plan(tmp_path, "time.sleep(600)")))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "executor", str(plan), "--output", str(tmp_path / "run.json")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background
    )  # fmt: skip
    try:
        assert ends_soon(lambda: len(processes_naming(f"{tmp_path}/paraplan-run-")) >= 3, 20.0)
        launcher.send_signal(number)
        launcher.wait(timeout=10)
        assert ends_soon(lambda: no_process_of(tmp_path))
        assert not (tmp_path / "run.json").exists()
        left = list(tmp_path.glob("paraplan-run-*"))
        if number == signal.SIGKILL:  # the next run removes what this one could not
            os.utime(left[0] / "owner.lock", times=(0, 0))
            monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
            with run_folder() as mine:
                assert list(tmp_path.glob("paraplan-run-*")) == [mine]
                with run_folder() as other:  # one at work stays
                    os.utime(mine / "owner.lock", times=(0, 0))
                    with run_folder():
                        assert mine.is_dir()
                        assert other.is_dir()
        else:
            assert not left
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()


def test_torchrun_with_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RunError, match="plan wants 8 processes, torchrun started 4"):
        run_plan(plan_of("dp=8,microbatch=1"))


@pytest.mark.distributed
def test_torchrun_runs_one_rank_per_process(tmp_path):
    plan, output = tmp_path / "plan.json", tmp_path / "run.json"
    plan.write_text(plan_to_json(plan_of("dp=2,microbatch=4")))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "0", "-m", "executor", str(plan), "--steps", "1", "--timeout", "30",
         "--output", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=90, capture_output=True,
    )  # fmt: skip
    data = json.loads(output.read_text())
    assert data["passed"] is True
    assert data["num_processes"] == 2


def test_experts_that_a_model_lacks_are_refused_with_the_way_out():
    with pytest.raises(RunError, match=r"ep=2: no layer stacks its experts .* plan with ep=1"):
        run_plan(plan_of("dp=2,ep=2"))


def test_a_layout_that_cannot_run_is_refused_with_its_reason():
    layout = megatron_layout(2).model_copy(
        update={"executable": False, "not_executable_because": "convolution split by height"}
    )
    with pytest.raises(RunError, match="convolution split by height"):
        run_plan(plan_of("tp=2,microbatch=8", layout=layout))


def test_a_corrupt_plan_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(plan_of("dp=2"))[:-40])
    with pytest.raises(PlanError, match="not JSON"):
        load_plan(path)
    data = json.loads(plan_to_json(plan_of("dp=2")))
    data["mesh"] = {"axis": []}
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match="mesh"):
        load_plan(path)


@pytest.mark.distributed
def test_a_plan_for_a_model_that_changed_is_refused():
    layout = megatron_layout(2, num_layers=5)
    with pytest.raises(RunError, match="the model changed since: make the plan anew"):
        run_plan(plan_of("tp=2,microbatch=8", layout=layout), timeout_s=TIMEOUT_S)


def test_rounds_that_torch_cannot_deal_out_are_refused():
    plan = plan_of("pp=2,microbatch=1,schedule=interleaved,virtual_stages=2", batch=5)
    with pytest.raises(RunError, match="choose a global batch with 4 microbatches"):
        run_plan(plan)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(RunError, match="global batch 6 does not divide"):
        run_plan(plan_of("dp=4,microbatch=1", batch=6))


def test_a_result_that_cannot_be_written_is_told_in_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written") as caught:
        write_atomically(blocked / "run.json", "{}")
    assert "\n" not in str(caught.value)
