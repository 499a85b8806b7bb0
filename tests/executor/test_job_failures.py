"""Drills: a rank is killed, the disk fills, a checkpoint is damaged; nothing saved is lost."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import STRATEGIES, TIMEOUT_S, counting, saved, steps_logged, train
from plans import plan_of

from executor.checkpoint_files import first_damage, folder_of, read_manifest
from executor.errors import RunError
from executor.job import run_job
from executor.job_settings import JobSettings
from executor.learning_rate import LearningRate
from executor.settings import run_precision
from planner.plan import plan_to_json

AFTER_STEP_2 = "(HERE / 'saved' / 'step-00000002').exists()"
ON_RANK_1 = "os.environ['RANK'] == '1'"
KILL = f"if {AFTER_STEP_2} and {ON_RANK_1} and once('hit'): os.kill(os.getpid(), signal.SIGKILL)"
FULL = f"if {AFTER_STEP_2}: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, -1))"
KILL_IN_SAVE = """
        import executor.checkpoint
        def die(folder, **more):
            os.kill(os.getpid(), signal.SIGKILL)
        later = (HERE / 'saved' / 'step-00000002').exists()
        if later and os.environ['RANK'] == '0' and once('hit'):
            executor.checkpoint.finish = die
"""
EXPLODING = """
import torch
from torch import nn

def model():
    return nn.Linear(4, 4)

def inputs(batch_size, sequence_length):
    return torch.ones(batch_size, 4)

def loss(output, targets):
    return output.square().mean() * float("inf")
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A whole job of four steps: its folder and losses."""
    folder = tmp_path_factory.mktemp("good")
    return folder, train("fsdp", folder, dataset=counting(folder)).losses


def processes_of(folder):
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                line = Path(entry.path, "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if f"{folder}/paraplan-run-" in line:
                found.append(int(entry.name))
    return found


@pytest.fixture
def no_orphan(tmp_path, monkeypatch):
    """Put the run's folder below the test's, so that its processes can be told by their name."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield
    deadline = time.monotonic() + 5.0
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(tmp_path)
    assert not list(tmp_path.glob("paraplan-run-*"))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.distributed
@pytest.mark.parametrize("fault", [KILL, KILL_IN_SAVE], ids=["in a step", "in a save"])
def test_a_killed_rank_is_made_good_by_a_restart(good, tmp_path, no_orphan, fault):
    told = []
    result = train("fsdp", tmp_path, dataset=counting(tmp_path, fault=fault), restarts=1,
                   progress=lambda what, done, total: told.append(what))  # fmt: skip
    assert result.resumed_from_step == 2
    assert result.losses == pytest.approx(good[1][2:], abs=1e-6)
    assert len(result.restarts) == 1
    assert "was killed by signal 9 (SIGKILL)" in result.restarts[0]
    assert any("restart 1 of 1" in what for what in told)
    assert saved(tmp_path) == ["step-00000002", "step-00000004"]
    assert (tmp_path / "hit").exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_silent_rank_costs_the_timeout_and_a_restart(good, tmp_path, no_orphan):
    fault = f"if {AFTER_STEP_2} and {ON_RANK_1} and once('hit'): time.sleep(600)"
    result = train("fsdp", tmp_path, dataset=counting(tmp_path, fault=fault), restarts=1,
                   timeout_s=12.0)  # fmt: skip
    assert result.losses == pytest.approx(good[1][2:], abs=1e-6)
    (cause,) = result.restarts
    assert "rank 0 waited in vain; silent were: rank 1 at File" in cause
    assert "counting.py" in cause
    assert "in __getitem__" in cause


@pytest.mark.distributed
def test_torchrun_starts_a_killed_rank_again(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(plan_to_json(plan_of(STRATEGIES["fsdp"])))
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", "-m", "paraplan", "run", str(plan), "--steps", "4",
         "--save-every", "2", "--checkpoint-dir", str(tmp_path / "saved"), "--timeout", "40",
         "--dataset", counting(tmp_path, fault=KILL)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=120, capture_output=True,
        text=True,
    )  # fmt: skip
    assert "going on after step 2" in ended.stderr
    assert steps_logged(tmp_path) == [1, 2, 3, 4]
    assert saved(tmp_path) == ["step-00000002", "step-00000004"]
    assert json.loads((tmp_path / "job.json").read_text())["resumed_from_step"] == 2


@pytest.mark.distributed
def test_without_restarts_one_line_says_what_is_saved(tmp_path, no_orphan):
    with pytest.raises(RunError) as caught:
        train("fsdp", tmp_path, dataset=counting(tmp_path, fault=KILL))
    line = one_line(caught)
    assert "rank 1 was killed by signal 9 (SIGKILL)" in line
    assert "step 2 is saved: go on with --resume" in line
    assert caught.value.exit_status == 1
    assert saved(tmp_path) == ["step-00000002"]


@pytest.mark.distributed
def test_a_full_disk_stops_the_job_and_leaves_the_last_checkpoint(tmp_path, no_orphan):
    started = time.monotonic()
    with pytest.raises(RunError) as caught:
        train("fsdp", tmp_path, dataset=counting(tmp_path, fault=FULL), restarts=3)
    line = one_line(caught)
    assert "step-00000004: cannot be written (File too large)" in line
    assert "step-00000002 is whole; make room and use --resume" in line
    assert time.monotonic() - started < TIMEOUT_S
    assert saved(tmp_path) == ["step-00000002"]
    folder = folder_of(tmp_path / "saved", 2)
    files = read_manifest(folder)["files"]
    assert not first_damage(folder, files, files)
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


@pytest.mark.distributed
def test_a_rank_that_leaves_without_a_word_is_named_before_those_that_miss_it(tmp_path, no_orphan):
    with pytest.raises(RunError) as caught:
        train("dp", tmp_path, dataset=counting(tmp_path, fault=f"if {ON_RANK_1}: os._exit(3)"))
    assert "rank 1 ended with 3 and without a word" in one_line(caught)


def harmed(good, tmp_path, step, harm):
    shutil.copytree(good[0] / "saved", tmp_path / "saved", dirs_exist_ok=True)
    harm(tmp_path / "saved" / f"step-{step:08d}")


def cut(folder):
    path = next(folder.glob("__0_*"))
    path.write_bytes(path.read_bytes()[:1000])


def flip(folder):
    path = next(folder.glob("__1_*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unlist(folder):
    (folder / "paraplan.json").unlink()


def halve(folder):
    next(folder.glob("__1_*")).unlink()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("harm", "words"),
    [(cut, "has 1000 of"), (flip, "changed after it was written"), (unlist, "no paraplan.json"),
     (halve, "No such file")],
)  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over(good, tmp_path, harm, words):
    harmed(good, tmp_path, 4, harm)
    unfinished = tmp_path / "saved" / "step-00000004.tmp"
    unfinished.mkdir()
    (unfinished / "__0_0.distcp").write_bytes(b"half")
    result = train("one", tmp_path, start="resume", dataset=counting(tmp_path))
    assert result.resumed_from_step == 2
    assert result.losses == pytest.approx(good[1][2:], abs=1e-6)
    assert any(words in note for note in result.notes)
    assert saved(tmp_path) == ["step-00000002", "step-00000004", "step-00000004.damaged"]


@pytest.mark.distributed
def test_a_job_of_damaged_checkpoints_only_stops_and_changes_nothing(good, tmp_path):
    harmed(good, tmp_path, 4, cut)
    harmed(good, tmp_path, 2, flip)
    shutil.rmtree(tmp_path / "saved" / "step-00000004")
    before = sorted(str(path) for path in (tmp_path / "saved").rglob("*"))
    with pytest.raises(RunError, match="no whole checkpoint: step-00000002 is damaged") as caught:
        train("one", tmp_path, start="resume", dataset=counting(tmp_path))
    assert "begin again without --resume" in one_line(caught)
    left = {str(path) for path in (tmp_path / "saved").rglob("*")} - {
        str(tmp_path / "saved" / ".lock")
    }
    assert left == set(before) - {str(tmp_path / "saved" / ".lock")}


@pytest.mark.distributed
def test_a_loss_that_is_no_number_stops_before_it_is_saved(tmp_path):
    path = tmp_path / "exploding.py"
    path.write_text(EXPLODING)
    plan = plan_of("dp=1,microbatch=8", model=f"{path}:model", sequence=1)
    with pytest.raises(RunError, match="step 1: the loss is inf; nothing was saved"):
        train("", tmp_path, plan=plan, restarts=2)
    assert saved(tmp_path) == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"save_every": 5, "checkpoint_dir": ""}, "--save-every needs a place"),
     ({"start": "resume", "save_every": 0, "checkpoint_dir": ""}, "--resume needs a place"),
     ({"keep": 0}, "--keep is 0; expected at least 1"),
     ({"clip_norm": -1.0}, "--clip-norm is -1.0"),
     ({"learning_rate": LearningRate(peak=0.0)}, "--learning-rate is 0.0"),
     ({"learning_rate": LearningRate(peak=1.0, kind="step")}, "--lr-schedule is 'step'; expected"),
     ({"learning_rate": LearningRate(peak=1.0, warmup_steps=9)}, "--warmup-steps is 9"),
     ({"dataset": "nowhere.py:dataset"}, "no file nowhere.py")],
)  # fmt: skip
def test_a_job_that_cannot_be_meant_is_refused(tmp_path, wanted, words):
    settings = {"learning_rate": LearningRate(peak=1e-3), "checkpoint_dir": str(tmp_path / "saved"),
                **wanted}  # fmt: skip
    with pytest.raises(RunError, match=words) as caught:
        run_job(plan_of("dp=1,microbatch=8"), JobSettings(**settings), steps=4, timeout_s=TIMEOUT_S)
    one_line(caught)
    assert saved(tmp_path) == []


def test_precisions_without_execution_are_refused_with_the_way_out():
    with pytest.raises(RunError, match="the plan's precision is fp16.*add --precision bf16 or"):
        run_precision("fp16", None)


def test_a_second_job_in_the_same_folder_is_refused(tmp_path):
    (tmp_path / "saved").mkdir()
    with (tmp_path / "saved" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another job is at work there"):
            train("dp", tmp_path)
