"""Folders of checkpoints and lines of logs: whole, told apart, none lost."""

import json
import shutil
from pathlib import Path

import pytest

from executor.checkpoint_files import (
    clear_unfinished,
    file_record,
    finish,
    first_damage,
    folder_of,
    prepare_directory,
    read_manifest,
    saved_steps,
    set_aside,
    thin_out,
    unfinished_of,
)
from executor.errors import RunError
from executor.job_log import StepRecord, append_record, begin_log, read_log

RECORD = StepRecord(
    step=1, loss=2.5, learning_rate=1e-3, gradient_norm=None, step_time_s=0.5, data_time_s=0.1,
    tokens_per_s=100.0, samples_per_s=10.0, memory_bytes=1e6, peak_memory_bytes=2e6, attempt=0,
    time="2026-11-21T12:00:00.000+00:00",
)  # fmt: skip


def checkpoint(directory, step, content=b"weights"):
    folder = folder_of(directory, step)
    unfinished_of(folder).mkdir(parents=True)
    path = unfinished_of(folder) / "__0_0.distcp"
    path.write_bytes(content)
    finish(folder, files={path.name: file_record(path)}, about={"step": step})
    return folder


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path):
    folder = folder_of(tmp_path, 5)
    unfinished_of(folder).mkdir()
    assert saved_steps(tmp_path) == ()
    shutil.rmtree(unfinished_of(folder))
    checkpoint(tmp_path, 5)
    assert saved_steps(tmp_path) == (5,)
    assert not unfinished_of(folder).exists()
    assert read_manifest(folder)["about"] == {"step": 5}
    files = read_manifest(folder)["files"]
    assert first_damage(folder, files, files) == ""


def test_every_flipped_byte_is_found(tmp_path):
    folder = checkpoint(tmp_path, 5)
    path = folder / "__0_0.distcp"
    files = read_manifest(folder)["files"]
    whole = path.read_bytes()
    for index in range(len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        assert "changed" in first_damage(folder, files, files)


def test_saving_a_step_again_keeps_what_was_there(tmp_path):
    checkpoint(tmp_path, 5, b"old")
    folder = checkpoint(tmp_path, 5, b"new")
    assert (folder / "__0_0.distcp").read_bytes() == b"new"
    aside = tmp_path / "step-00000005.damaged"
    assert (aside / "__0_0.distcp").read_bytes() == b"old"
    set_aside(folder)
    assert (tmp_path / "step-00000005.damaged-1").is_dir()
    assert saved_steps(tmp_path) == ()


def test_the_newest_stay(tmp_path):
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    (tmp_path / "step-notes").mkdir()
    thin_out(tmp_path, keep=2)
    assert saved_steps(tmp_path) == (9, 10)
    unfinished_of(folder_of(tmp_path, 11)).mkdir()
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000009", "step-00000010", "step-notes"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "cannot be read"), ("[]", "schema_version None"),
     (json.dumps({"schema_version": 2, "about": {}, "files": {}}), "schema_version 2, not 1")],
)  # fmt: skip
def test_a_manifest_that_is_not_ours_is_told(tmp_path, text, words):
    folder = checkpoint(tmp_path, 5)
    (folder / "paraplan.json").write_text(text)
    with pytest.raises(RunError, match=words):
        read_manifest(folder)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="--checkpoint-dir .*cannot be written"):
        prepare_directory(blocked / "saved")
    with pytest.raises(RunError, match="--log .*cannot be written"):
        begin_log(blocked / "job.jsonl", is_new=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_of_the_log():
    with pytest.raises(RunError, match="--log /dev/full: cannot be written .No space left"):
        append_record("/dev/full", RECORD)


def test_a_line_that_a_crash_cut_off_costs_no_other_line(tmp_path):
    path = tmp_path / "job.jsonl"
    begin_log(path, is_new=True)
    append_record(path, RECORD)
    with path.open("a") as stream:
        stream.write('{"step": 2, "los')
    begin_log(path, is_new=False)
    append_record(path, RECORD)
    assert read_log(path) == (RECORD, RECORD)


def test_a_new_job_keeps_the_log_of_the_old_one(tmp_path):
    path = tmp_path / "job.jsonl"
    for _ in range(3):
        begin_log(path, is_new=True)
        append_record(path, RECORD)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "job.jsonl", "job.jsonl.1", "job.jsonl.2"
    ]  # fmt: skip
    assert all(read_log(entry) == (RECORD,) for entry in tmp_path.iterdir())
