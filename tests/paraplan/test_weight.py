"""What a call loads, and the command as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paraplan.answers import SMALL, Call

HEAVY = {"torch", "transformers", "pandas", "matplotlib", "scipy"}


def loaded_by(code: str, *, home: Path | None = None) -> set[str]:
    """Return the heavy packages that a fresh interpreter has loaded after some code."""
    tail = "\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = process("-c", code + tail, home=home)
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.rstrip().splitlines()[-1])
    assert "json" in modules
    return HEAVY & set(modules)


def process(*arguments: str, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({} if home is None else {"PARAPLAN_HOME": str(home)})
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, check=False, timeout=120, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        "import paraplan",
        "from paraplan.cli import run_command_line as r; r(['--help'])",
        "from paraplan.cli import run_command_line as r; r(['plan', '--help'])",
        "from paraplan.cli import run_command_line as r; r(['profiles'])",
        "from paraplan.cli import run_command_line as r; r(['profiles', 'dgx-h100'])",
        "import hardware_profiles, simulator.engine, simulator.collectives, simulator.operators",
    ],
)
def test_light_calls_load_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == set()


@pytest.mark.parametrize("verb", ["plan", "simulate"])
def test_planning_from_a_cached_graph_loads_no_torch(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("PARAPLAN_HOME", str(home))
    assert call("simulate", *SMALL).status == 0
    arguments = [verb, *SMALL, "--strategy", "dp=8,microbatch=8", "--out", str(tmp_path)]
    code = f"from paraplan.cli import run_command_line as r\nassert r({arguments!r}) == 0"
    assert not loaded_by(code, home=home) & {"torch", "transformers"}


def test_the_public_names_are_ten_and_all_there() -> None:
    import paraplan

    names = [name for name in paraplan.__all__ if not name.startswith("_")]
    assert len(names) == 10
    for name in names:
        if name not in ("run", "compare"):
            assert callable(getattr(paraplan, name))
    with pytest.raises(AttributeError, match="paraplan.*simulat"):
        paraplan.simulat  # noqa: B018


def test_a_mistake_in_a_process_of_its_own() -> None:
    done = process("-m", "paraplan", "simulate", "gpt22", *SMALL[1:])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("paraplan: gpt22: no such model; did you mean gpt2")
    assert done.stderr.count("\n") == 1


def test_a_package_that_is_not_installed_is_one_line() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from paraplan.cli import main; main(['trace', 'hf:llama'])"
    )
    done = process("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "paraplan: package 'transformers' is not installed; install paraplan again with all it "
        "needs\n"
    )


def test_an_answer_in_a_process_of_its_own() -> None:
    done = process("-m", "paraplan", "simulate", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["num_devices"] == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{sys.executable} -m paraplan profiles --json | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_defect_is_no_user_mistake(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    import paraplan.verbs_about

    def broken(*_: object, **__: object) -> None:
        raise ValueError("an invariant")

    monkeypatch.setattr(paraplan.verbs_about, "show_profiles", broken)
    with pytest.raises(ValueError, match="an invariant"):
        call("profiles")
