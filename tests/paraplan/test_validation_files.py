"""What --write-docs leaves: the same bytes for the same results, and residuals that are read."""

from pathlib import Path

from paraplan.validation_files import RESIDUALS, write_documents, write_residuals
from planner.validation.residual_file import table_from_json
from planner.validation.results import residual_table, results_of
from tests.planner.validation.outcomes import GIB, group_of, outcome

GRID = group_of("grid")
CASES = [
    outcome("good", predicted=1.02, memory_bytes=42 * GIB, memory_kind="device"),
    outcome("bad", predicted=1.8),
    *(
        outcome(f"g{n}", group=GRID, published=1.0 + n, predicted=1.1 + n, sweep="s")
        for n in range(4)
    ),
]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def written(folder: Path) -> dict[str, bytes]:
    (folder / RESIDUALS.parent).mkdir(parents=True)
    (folder / "docs").mkdir()
    results = results_of(CASES)
    write_residuals(results, folder=folder)
    write_documents(results, folder=folder)
    return files_of(folder)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    assert set(first) == {
        "docs/validation.md", "docs/validation.csv", "docs/images/validation-steps.svg",
        "docs/images/validation-memory.svg", "docs/images/validation-sweeps.svg",
        "planner/validation/residuals.json",
    }  # fmt: skip
    assert first == second


def test_images_of_the_page_are_there(tmp_path: Path) -> None:
    files = written(tmp_path)
    page = files["docs/validation.md"].decode()
    shown = [part.split(")")[0] for part in page.split("](")[1:] if part.startswith("images/")]
    assert len(shown) == 3
    assert all(f"docs/{name}" in files for name in shown)


def test_the_residuals_are_those_of_the_results(tmp_path: Path) -> None:
    table = table_from_json(written(tmp_path)[str(RESIDUALS)].decode())
    assert sorted(r.log_ratio for r in table.residuals) == sorted(
        r.log_ratio for r in residual_table(CASES).residuals
    )
