"""A job that goes on from a checkpoint, on its own plan or another, trains as if never cut off."""

import shutil

import pytest
import torch
from jobs import counting, saved, steps_logged, train
from plans import TINY_GPT, plan_of
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from executor.checkpoint_files import file_record, finish, read_manifest, unfinished_of
from executor.job_log import read_log
from executor.model_parts import build_model
from planner.models.resolve import resolve_model

CLIP = 0.5
SAME = 1e-6
SHIFTED_BY_STATE = 1e-4
BATCH_NORM = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

def inputs(batch_size, sequence_length):
    return torch.randn(batch_size, 8)

def targets(batch_size, sequence_length):
    return torch.randn(batch_size, 4)

def loss(output, targets):
    return (output - targets).square().mean()
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a function: strategy -> folder and losses of a whole job, each run once."""
    known = {}

    def whole(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            result = train(name, folder, dataset=counting(folder), clip_norm=CLIP)
            known[name] = folder, result.losses
        return known[name]

    return whole


def cut_off(folder, into):
    """Copy a job as it was after step 2."""
    shutil.copytree(folder, into, dirs_exist_ok=True)
    shutil.rmtree(into / "saved" / "step-00000004")
    return into


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("before", "after"),
    [("dp", "dp"), ("dp", "tp"), ("fsdp", "pp"), ("fsdp", "one"), ("dp", "interleaved")],
)
def test_losses_after_a_resume_are_those_of_the_uninterrupted_job(
    uninterrupted, tmp_path, before, after
):
    folder, losses = uninterrupted(before)
    cut_off(folder, tmp_path)
    result = train(after, tmp_path, start="resume", dataset=counting(tmp_path), clip_norm=CLIP)
    assert result.resumed_from_step == 2
    assert result.losses == pytest.approx(losses[2:], abs=SAME)
    assert saved(tmp_path) == ["step-00000002", "step-00000004"]
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 3, 4]
    records = read_log(tmp_path / "job.jsonl")
    assert [r.gradient_norm for r in records[4:]] == pytest.approx(
        [r.gradient_norm for r in records[2:4]], rel=1e-4
    )


@pytest.mark.distributed
def test_without_the_optimizer_s_state_losses_would_differ(uninterrupted, tmp_path):
    folder, losses = uninterrupted("dp")
    cut_off(folder, tmp_path)
    step = tmp_path / "saved" / "step-00000002"
    metadata = FileSystemReader(step).read_metadata().state_dict_metadata
    state = {name: torch.zeros(about.size) for name, about in metadata.items()}
    load(state, storage_reader=FileSystemReader(step), no_dist=True)
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            tensor.zero_()
    about = read_manifest(step)["about"]
    shutil.rmtree(step)
    save(state, storage_writer=FileSystemWriter(unfinished_of(step)), no_dist=True)
    files = {path.name: file_record(path) for path in unfinished_of(step).iterdir()}
    finish(step, files=files, about=about)
    result = train("dp", tmp_path, start="resume", dataset=counting(tmp_path), clip_norm=CLIP)
    assert result.losses[0] == pytest.approx(losses[2], abs=SAME)
    assert abs(result.losses[1] - losses[3]) > SHIFTED_BY_STATE


@pytest.mark.distributed
def test_the_norm_of_gradients_is_that_of_torch_in_one_process(uninterrupted):
    folder, losses = uninterrupted("fsdp")
    source = resolve_model(TINY_GPT)
    model = build_model(source, seed=0)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()[:8]
    lines = torch.stack([(torch.arange(17) * (1 + i % 3) + i) % 64 for i in order])
    loss = source.loss(model(lines[:, :-1]), lines[:, 1:])
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    assert losses[0] == pytest.approx(loss.item(), abs=SAME)
    found = read_log(folder / "job.jsonl")[0].gradient_norm
    assert found == pytest.approx(float(norm), rel=1e-4)
    assert found > CLIP


def running_batches(folder, *, step):
    state = {"buffer.1.num_batches_tracked": torch.zeros((), dtype=torch.long)}
    reader = FileSystemReader(folder / "saved" / f"step-{step:08d}")
    load(state, storage_reader=reader, no_dist=True)
    return int(state["buffer.1.num_batches_tracked"])


@pytest.mark.distributed
def test_momentum_and_running_statistics_go_on(tmp_path):
    path = tmp_path / "normed.py"
    path.write_text(BATCH_NORM)
    model = f"{path}:model"
    dp = plan_of("dp=2,microbatch=4", model=model, optimizer="momentum", sequence=1)
    pp = plan_of("pp=2,microbatch=4,schedule=gpipe", model=model, chain=("0", "1", "2", "3"),
                 optimizer="momentum", sequence=1)  # fmt: skip
    whole = train("", tmp_path, plan=dp, steps=3)
    shutil.rmtree(tmp_path / "saved" / "step-00000003")
    resumed = train("", tmp_path, plan=pp, steps=3, start="resume")
    assert resumed.losses == pytest.approx(whole.losses[2:], abs=SAME)
    assert running_batches(tmp_path, step=2) == 2
    assert running_batches(tmp_path, step=3) == 4  # two microbatches in the third step


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("changed", "words"),
    [({"seed": 1}, "saved with seed=0, this run has 1"),
     ({"optimizer": "sgd"}, "saved with optimizer='adam', this run has 'sgd'")],
)  # fmt: skip
def test_another_training_is_not_gone_on_with(uninterrupted, tmp_path, changed, words):
    folder, _ = uninterrupted("dp")
    cut_off(folder, tmp_path)
    with pytest.raises(ValueError, match=words):
        train("one", tmp_path, start="resume", dataset=counting(tmp_path), **changed)
    assert saved(tmp_path) == ["step-00000002"]


def test_a_start_that_would_overwrite_or_finds_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder .*; leave out --resume to begin"):
        train("dp", tmp_path, start="resume")
    step = tmp_path / "saved" / "step-00000002"
    step.mkdir(parents=True)
    with pytest.raises(ValueError, match="holds checkpoints up to step 2; go on with --resume"):
        train("dp", tmp_path)
    shutil.rmtree(step)
    with pytest.raises(ValueError, match="no checkpoint in .*; leave out --resume to begin"):
        train("dp", tmp_path, start="resume")


@pytest.mark.distributed
def test_fewer_steps_than_are_done_are_refused(uninterrupted, tmp_path):
    folder, _ = uninterrupted("dp")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="--steps is 3, but .* has done 4; ask for more"):
        train("one", tmp_path, start="resume", steps=3, dataset=counting(tmp_path))
    assert saved(tmp_path) == ["step-00000002", "step-00000004"]
