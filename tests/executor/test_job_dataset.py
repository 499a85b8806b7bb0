"""What a dataset hook may return, in which order it is read, and what is refused."""

import pytest
import torch
from plans import TINY_GPT

from executor.dataset import Share, make_reader
from executor.errors import RunError
from planner.models.resolve import resolve_model

HOOKS = """
import random, torch

def line(index):
    return torch.full((16,), index), torch.full((16,), index)

class Samples:
    def __init__(self, count=10):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return line(index)

def samples():
    return Samples()

def dicts():
    return [{"inputs": torch.full((16,), i), "targets": [i] * 16} for i in range(10)]

def stream():
    for index in range(10):
        yield line(index)

def batches():
    for index in range(3):
        rows = torch.arange(4 * index, 4 * index + 4)[:, None].expand(4, 16)
        yield rows, rows

def sized(global_batch_size, seed):
    return [line(global_batch_size * 10 + seed) for _ in range(8)]

class Noisy(Samples):
    def __getitem__(self, index):
        drawn = torch.randint(64, (16,)) + random.randrange(1000) * 64
        return drawn, drawn

def noisy():
    return Noisy()

def wide():
    return [(torch.zeros(17, dtype=torch.long), torch.zeros(16, dtype=torch.long))] * 8

def untold():
    return [torch.zeros(16, dtype=torch.long)] * 8

def floats():
    return [(torch.zeros(16), torch.zeros(16, dtype=torch.long))] * 8

def small():
    return [(torch.zeros(3, 16, dtype=torch.long), torch.zeros(3, 16, dtype=torch.long))] * 8

def empty():
    return []

def drained():
    return iter(())

def number():
    return 3

def broken():
    class Broken(Samples):
        def __getitem__(self, index):
            raise KeyError("the file is gone")
    return Broken()
"""


@pytest.fixture
def reader(tmp_path):
    """Return a function: hook, share -> reader of batches of 4."""
    path = tmp_path / "hooks.py"
    path.write_text(HOOKS)

    def made(name, *, index=0, count=1, seed=0):
        return make_reader(
            f"{path}:{name}", source=resolve_model(TINY_GPT), global_batch_size=4,
            sequence_length=16, seed=seed, share=Share(index=index, count=count),
        )  # fmt: skip

    return made


def firsts(batch):
    assert torch.equal(batch.inputs[0], batch.targets)
    return batch.inputs[0][:, 0].tolist()


@pytest.mark.parametrize("name", ["samples", "dicts", "stream", "batches", "noisy"])
def test_shares_of_two_ranks_are_the_whole_batch_at_every_step(reader, name):
    whole = [firsts(reader(name).read(step)) for step in range(6)]
    left, right = reader(name, index=0, count=2), reader(name, index=1, count=2)
    assert [firsts(left.read(s)) + firsts(right.read(s)) for s in range(6)] == whole
    assert whole[0] != whole[1]


@pytest.mark.parametrize("name", ["samples", "stream", "batches", "noisy"])
def test_reading_from_a_later_step_gives_what_reading_through_gives(reader, name):
    through = reader(name)
    every = [firsts(through.read(step)) for step in range(8)]
    assert [firsts(reader(name).read(step)) for step in (7, 3, 5)] == [every[s] for s in (7, 3, 5)]
    backwards = reader(name)
    assert [firsts(backwards.read(step)) for step in (5, 2)] == [every[5], every[2]]


def test_an_epoch_reads_every_sample_once_in_an_order_of_its_own(reader):
    made = reader("samples")
    read = [index for step in range(5) for index in firsts(made.read(step))]
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10] != read[10:]
    other = reader("samples", seed=1)
    assert [index for step in range(5) for index in firsts(other.read(step))] != read


def test_an_iterable_is_read_in_its_order_and_begins_again(reader):
    made = reader("stream")
    assert [firsts(made.read(step)) for step in range(3)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]
    ]  # fmt: skip


def test_the_hook_gets_the_arguments_it_names(reader):
    assert firsts(reader("sized", seed=2).read(0)) == [42] * 4


@pytest.mark.parametrize(
    ("name", "words"),
    [("wide", r"input 0 has shape \(17,\) per sample; the model takes \(16,\)"),
     ("untold", r"an item is a Tensor; expected \(input 0, targets\)"),
     ("floats", "input 0 is torch.float32; the model takes torch.int64"),
     ("small", "a batch of 3 samples; expected the global batch 4"),
     ("empty", "the dataset is empty"), ("drained", "the dataset is empty"),
     ("number", "returned a int; expected something with __len__"),
     ("broken", "raised KeyError: 'the file is gone'"),
     ("samplse", "has no function samplse")],
)  # fmt: skip
def test_what_the_model_does_not_take_is_refused_in_one_line(reader, name, words):
    with pytest.raises(RunError, match=words) as caught:
        reader(name).read(0)
    assert "\n" not in str(caught.value)
    assert "hooks.py" in str(caught.value)
