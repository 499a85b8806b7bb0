"""The command line in process: status, standard output, standard error."""

from pathlib import Path

import pytest

from paraplan.cli import run_command_line
from tests.paraplan.answers import Answer, Call


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""

    def run(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        try:
            status = run_command_line([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        seen = capsys.readouterr()
        return Answer(status=status, out=seen.out, err=seen.err)

    return run


@pytest.fixture
def refused(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a call that must be refused: one line of error, no output, no file."""
    folder = tmp_path / "refused"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str | Path, status: int = 2) -> Answer:
        answer = call(*arguments)
        assert answer.status == status, answer
        assert answer.out == ""
        assert answer.err.count("\n") == 1, answer.err
        assert answer.err.startswith("paraplan")
        assert "Traceback" not in answer.err
        assert list(folder.iterdir()) == []
        return answer

    return run
