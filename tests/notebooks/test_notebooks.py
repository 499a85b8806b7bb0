"""Every notebook runs from top to bottom, is kept without outputs, and obeys its laws."""

import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
CELL_TIMEOUT_S = 280
SEARCH_NOISE = 0.05
"""The search replays only the leaders of its closed form, which is off by a few per cent [1]."""

PROBE = """
import json as _json, sys as _sys
print(_json.dumps({
    "executable": _sys.executable,
    "between": list(BETWEEN),
    "inside": list(INSIDE),
    "winners": winners,
    "found": [[*point, p["step_time_s"], *p["step_time_interval_s"], p["strategy"]]
              for point, p in found.items()],
    "scored": [[strategy, *point, p["step_time_s"]] for (strategy, point), p in scored.items()],
    "sums": [sum(p["breakdown_s"].values()) / p["step_time_s"] for p in scored.values()],
    "curves": {inside: curve["step_ms"].tolist() for inside, curve in curves.items()},
    "memory": memory[["step_ms", "peak_GiB"]].reset_index().values.tolist(),
}))
"""


PROBES = {"what_if_bandwidth.ipynb": PROBE}
"""Notebook -> a last cell that prints what its laws look at."""


@functools.cache
def executed(path: Path) -> Any:
    """Run a copy in a kernel of this interpreter; a cell that fails raises with its traceback."""
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    if path.name in PROBES:
        notebook.cells.append(nbformat.v4.new_code_cell(PROBES[path.name]))  # type: ignore[no-untyped-call]
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    return client.execute()


def outputs(notebook: Any, kind: str) -> list[Any]:
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs
            if out.output_type == kind]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.timeout(2 * CELL_TIMEOUT_S)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_and_draws(path: Path) -> None:
    notebook = executed(path)
    assert not outputs(notebook, "error")
    assert any("image/png" in out.data for out in outputs(notebook, "display_data"))


@pytest.fixture(scope="module")
def bandwidth() -> dict[str, Any]:
    path = next(path for path in NOTEBOOKS if path.name == "what_if_bandwidth.ipynb")
    text = "".join(out.text for out in executed(path).cells[-1].outputs if out.name == "stdout")
    return dict(json.loads(text))


@pytest.mark.slow
@pytest.mark.timeout(2 * CELL_TIMEOUT_S)
def test_runs_in_this_interpreter(bandwidth: dict[str, Any]) -> None:
    assert Path(bandwidth["executable"]) == Path(sys.executable)


@pytest.mark.slow
def test_a_fixed_split_is_never_slower_on_a_faster_network(bandwidth: dict[str, Any]) -> None:
    step_s = {(s, inside, total): t for s, inside, total, t in bandwidth["scored"]}
    slow, fast = bandwidth["inside"]
    assert len(bandwidth["winners"]) > 1, "the walk shows nothing if one split wins everywhere"
    for strategy in bandwidth["winners"]:
        for inside in (slow, fast):
            times = [step_s[strategy, inside, total] for total in bandwidth["between"]]
            assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(times)), strategy
        for total in bandwidth["between"]:
            assert step_s[strategy, fast, total] <= step_s[strategy, slow, total] * (1 + 1e-9)


@pytest.mark.slow
def test_the_plotted_best_never_rises_with_bandwidth(bandwidth: dict[str, Any]) -> None:
    slow, fast = (bandwidth["curves"][inside] for inside in bandwidth["inside"])
    for curve in (slow, fast):
        assert curve == sorted(curve, reverse=True)
    assert slow[0] > 1.01 * fast[-1], "bandwidth must matter for this model"
    assert all(f <= s for s, f in zip(slow, fast, strict=True))


@pytest.mark.slow
def test_the_search_agrees_with_simulate_and_overlooks_little(bandwidth: dict[str, Any]) -> None:
    step_s = {(s, inside, total): t for s, inside, total, t in bandwidth["scored"]}
    for inside, total, found_s, low_s, high_s, strategy in bandwidth["found"]:
        assert found_s == pytest.approx(step_s[strategy, inside, total], rel=1e-9)
        assert low_s < found_s < high_s
        best_s = min(step_s[s, inside, total] for s in bandwidth["winners"])
        assert best_s <= found_s <= best_s * (1 + SEARCH_NOISE)


@pytest.mark.slow
def test_parts_of_a_step_add_up_to_it(bandwidth: dict[str, Any]) -> None:
    assert bandwidth["sums"] == pytest.approx([1.0] * len(bandwidth["sums"]), rel=1e-9)


@pytest.mark.slow
def test_less_memory_is_never_faster_and_always_respected(bandwidth: dict[str, Any]) -> None:
    rows = [(float(size.removesuffix("GiB")), ms, used) for size, ms, used in bandwidth["memory"]]
    assert all(used <= size for size, _, used in rows)
    for (_, more_ms, _), (_, less_ms, _) in itertools.pairwise(rows):
        assert less_ms >= more_ms * (1 - SEARCH_NOISE)
    assert rows[-1][1] > rows[0][1], "the smallest memory must cost time, or the cell shows nothing"
