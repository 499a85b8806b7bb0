"""The page shows every case, the same for the same results; its figures are drawn."""

from planner.validation.document import document
from planner.validation.plots import memory_figure, step_time_figure, sweep_figure
from planner.validation.results import results_of
from tests.planner.validation.outcomes import GIB, group_of, outcome

GRID = group_of("grid")
CASES = [
    outcome("good", predicted=1.02, memory_bytes=42 * GIB, memory_kind="device"),
    outcome("bad", predicted=1.8, note="one|two"),
    outcome("far", predicted=0.5, outlier="host-bound", note="a note"),
    outcome("impossible", predicted=None),
    outcome("fitted", role="calibrate"),
    outcome("partly", is_complete=False, free=("microbatch",)),
    outcome("too large", published=None, fits=False, used=0.7),
    outcome("g1", group=GRID, published=1.0, predicted=1.1, sweep="s"),
    outcome("g2", group=GRID, published=1.2, predicted=1.0, sweep="s"),
    outcome("g3", group=GRID, published=1.4, predicted=1.6, sweep="s"),
]


def test_every_case_is_on_the_page() -> None:
    page = document(results_of(CASES), images=[("steps", "images/steps.svg")])
    named = ("good", "bad", "impossible", "fitted [calibrate]", "partly [incomplete]", "too large")
    assert all(f"| {name} |" in page for name in named)
    assert "| s | 3 |" in page
    assert "it cannot be" in page
    assert "one\\|two" in page
    assert "![steps](images/steps.svg)" in page
    assert "paper:bad | step time +80.0%, tolerated 10% |" in page
    assert "| paper:far | step time -50.0%, tolerated 10% | host-bound |" in page
    assert "| known outlier: host-bound; a note |" in page
    assert "paper:far |" not in page.partition("## Failing")[2].partition("\n## ")[0]
    assert page == document(results_of(CASES), images=[("steps", "images/steps.svg")])


def test_the_page_tells_no_time_of_a_clock() -> None:
    results = results_of(CASES)
    quick, quicker = (
        document(results, images=[], candidate_s=time_s) for time_s in (0.0003, 0.0002)
    )
    assert quick == quicker
    assert "| < 1 ms | < 1 ms | yes |" in quick
    assert "| < 1 ms | ≥ 1 ms | no |" in document(results, images=[], candidate_s=0.001)


def test_rows_of_a_table_have_as_many_cells_as_its_head() -> None:
    page = document(results_of(CASES), images=[])
    width = 0
    for line in page.splitlines():
        cells = line.replace("\\|", "").count("|")
        width = (width or cells) if cells else 0
        assert cells == width, line


def test_figures_show_what_there_is() -> None:
    results = results_of(CASES)
    steps, memory, sweeps = (
        draw(results) for draw in (step_time_figure, memory_figure, sweep_figure)
    )
    assert steps is not None
    assert [len(c.get_offsets()) for c in steps.axes[0].collections[:2]] == [3, 3]
    assert memory is not None
    assert len(memory.axes[0].collections[0].get_offsets()) == 1
    assert sweeps is not None
    assert "τ = 0.33" in sweeps.axes[0].get_title()


def test_nothing_measured_draws_nothing() -> None:
    empty = results_of([outcome(predicted=None)])
    assert [draw(empty) for draw in (step_time_figure, memory_figure, sweep_figure)] == [None] * 3
