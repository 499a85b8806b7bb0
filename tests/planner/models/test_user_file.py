"""Models from a user's own file."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from planner.errors import ModelError
from planner.models.resolve import resolve_model

GOOD = """
import torch
from torch import nn

sequence_length = 12

def build(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))

def inputs(batch_size, sequence_length):
    return torch.randn(batch_size, 4)

def targets(batch_size, sequence_length):
    return torch.randint(3, (batch_size,))

def loss(output, targets):
    return nn.functional.cross_entropy(output, targets)
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_factory_with_inputs_targets_and_loss(tmp_path: Path) -> None:
    source = resolve_model(f"{write(tmp_path, GOOD)}:build")
    model = source.build()
    batch = source.make_batch(5, 12, 0)
    assert source.default_sequence_length == 12
    assert batch.inputs[0].shape == (5, 4)
    expected = torch.nn.functional.cross_entropy(model(*batch.inputs), batch.targets)
    assert torch.equal(source.loss(model(*batch.inputs), batch.targets), expected)
    assert source.chain(model) == ("0", "1", "2")
    assert torch.equal(batch.inputs[0], source.make_batch(5, 12, 0).inputs[0])
    assert not torch.equal(batch.inputs[0], source.make_batch(5, 12, 1).inputs[0])


def test_options_become_arguments_and_part_of_the_key(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    wide = resolve_model(f"{path}:build?width=16")
    assert wide.build()[0].out_features == 16
    assert wide.key != resolve_model(f"{path}:build").key


def test_a_changed_file_has_another_key(tmp_path: Path) -> None:
    before = resolve_model(f"{write(tmp_path, GOOD)}:build").key
    after = resolve_model(f"{write(tmp_path, GOOD + chr(10))}:build").key
    assert before != after


def test_example_inputs_give_shapes_only(tmp_path: Path) -> None:
    text = (
        "import torch\nfrom torch import nn\n"
        "def build():\n    m = nn.Linear(6, 2)\n"
        "    m.example_inputs = torch.zeros(1, 6)\n    return m\n"
    )
    source = resolve_model(f"{write(tmp_path, text)}:build")
    batch = source.make_batch(3, 1, 0)
    assert batch.inputs[0].shape == (3, 6)
    assert batch.inputs[0].abs().sum() > 0
    output = source.build()(*batch.inputs)
    assert torch.equal(source.loss(output, None), output.square().mean())
    assert source.chain(source.build()) is None


def test_it_builds_and_runs_without_memory(tmp_path: Path) -> None:
    source = resolve_model(f"{write(tmp_path, GOOD)}:build")
    with FakeTensorMode():
        batch = source.make_batch(2, 1, 0)
        source.loss(source.build()(*batch.inputs), batch.targets).backward()


@pytest.mark.parametrize(
    ("text", "factory", "expected"),
    [
        (GOOD, "biuld", "no function 'biuld'; did you mean build?"),
        ("x = 1\n", "build", "the file defines no function; add one that returns a Module"),
        ("def build(:\n", "build", "mine.py:1: importing it raised SyntaxError"),
        ("import sys\nsys.exit(4)\n", "build", "mine.py:2: importing it raised SystemExit: 4"),
        ("def build(width): ...\n", "build", "missing a required argument: 'width'; give arg"),
        ("def build(width): ...\n", "build?height=2", "build(width): missing a required argument"),
        ("\nimport nothing_of_the_kind\n", "build", "mine.py:2: importing it raised ModuleNotFou"),
    ],
)
def test_bad_files_are_told_when_resolved(
    tmp_path: Path, text: str, factory: str, expected: str
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_model(f"{write(tmp_path, text)}:{factory}")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def build():\n    return 3\n", "build() returned int; expected a torch.nn.Module"),
        (
            "def build():\n    x = 1\n    raise KeyError('width')\n",
            "mine.py:3: build() raised KeyError: 'width'",
        ),
        ("def build():\n    raise SystemExit(3)\n", "mine.py:2: build() raised SystemExit: 3"),
    ],
)
def test_bad_factories_are_told_when_built(tmp_path: Path, text: str, expected: str) -> None:
    source = resolve_model(f"{write(tmp_path, text)}:build")
    with pytest.raises(ModelError) as caught:
        source.build()
    assert expected in str(caught.value)


def test_inputs_of_the_wrong_batch_or_missing(tmp_path: Path) -> None:
    wrong = GOOD.replace("torch.randn(batch_size, 4)", "torch.randn(7, 4)")
    with pytest.raises(ModelError, match=r"a tensor of shape \(7, 4\); expected 5 samples first"):
        resolve_model(f"{write(tmp_path, wrong)}:build").make_batch(5, 1, 0)
    none = "from torch import nn\ndef build():\n    return nn.Linear(2, 2)\n"
    with pytest.raises(ModelError, match=r"nothing tells what the model takes; define 'def inputs"):
        resolve_model(f"{write(tmp_path, none)}:build").make_batch(5, 1, 0)


def test_a_missing_file_and_a_missing_function_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no\.py: No such file or directory; expected a Python"):
        resolve_model(f"{tmp_path}/no.py:build")
    with pytest.raises(ModelError, match=r"as in mine\.py:build_model"):
        resolve_model("mine.py")
