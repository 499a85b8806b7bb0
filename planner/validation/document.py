"""The validation page: tables in Markdown, the same for the same results."""

import math
from collections.abc import Iterable, Iterator, Sequence

from planner.validation.aims import GOOD_TAU, aims
from planner.validation.coverage import Coverage
from planner.validation.document_cases import all_cases
from planner.validation.markdown import percent, signed, table
from planner.validation.outcome import Outcome
from planner.validation.results import Results, Row
from planner.validation.summaries import GOOD_REGRET, SHARES, FitTable, SweepSummary, median

_INTRODUCTION = """\
# Validation

Predicted beside published: training runs that others measured and wrote down, cases as files in
`planner/validation/cases/` with their citation. This page, its figures and the residuals that
intervals come from are written by

    paraplan validate --write-docs

`paraplan validate` prints the same; `--group` and `--family` choose cases, `--json` and `--csv`
give all numbers. It ends with 1 where a case leaves the tolerance of its group and is not marked
in its file as a known outlier with the cause, and where a marked case keeps its tolerance.
"""
_READING = """\
## How to read it

- *Error* is predicted over published, minus 1: negative is optimistic. *Mean error* is the mean of
  its absolute value, *bias* of its signed value.
- Step times are those of `paraplan simulate`: costs by the closed form, replayed on the engine.
- **No number was fitted to these rows.** Profiles of devices, links and software are fitted on
  measured kernels, on measured collectives and on the cases of role `calibrate`, which stand apart
  and count in no other table. The rows were in sight while the model was built: some structural
  terms (what a stack fuses, gathers, overlaps) were added after they showed where to look, and
  where a source names its stack loosely the profile was chosen knowing the residuals; the case
  files say what is recalled and not stated.
- *Measured*: published step times and peaks. *Derived*: step times by arithmetic from a published
  throughput or rate; the case file says how. *Assumed*: what a source does not state. A case with
  an assumed input stands apart; where that is a key of the strategy, the planner's best is taken.
- A *grid* is a group whose runs are sweeps over strategies: it tests ranking more than level, and
  one grid has more rows than all other groups, so families are told with and without it.
- A *known outlier* is outside the tolerance of its group for a cause that its file states. It stays
  in every table, mean, bias, worst case and interval; the mark only lets the command end with 0.
"""


def document(
    results: Results, *, images: Sequence[tuple[str, str]], candidate_s: float | None = None
) -> str:
    """Return the page.

    Parameters
    ----------
    results : Results
        A whole validation.
    images : sequence of (title, path)
        Figures to show under the families, as paths from the page.
    candidate_s : float, optional
        Measured time of the closed form for one candidate [s].
    """
    parts = [_INTRODUCTION, _READING, *_aims(results, candidate_s), *_families(results)]
    parts += [f"![{title}]({path})\n" for title, path in images]
    parts += _groups("## Groups\n", results.groups)
    parts += _sweeps(results.sweeps)
    parts += _memory(results)
    parts += _intervals(results.coverage)
    parts += _worst(results.worst)
    parts += _known(results.known)
    parts += _failures(results.failures)
    parts += _groups(
        "## An input is not stated\n\nNot in the tables above. Keys of the strategy that the "
        "source does not state are the planner's choice.\n",
        results.incomplete,
    )
    parts += _sweep_table(results.incomplete_sweeps)
    parts += _groups(
        "## Cases that profiles may be fitted on\n\nNot in the tables above.\n", results.calibrate
    )
    parts += all_cases(results)
    return "\n".join(parts)


_HEAD = (
    "cases", "mean error", "bias", *(f"within {share:.0%}" for share in SHARES), "worst",
)  # fmt: skip


def _aims(results: Results, candidate_s: float | None) -> Iterator[str]:
    found = aims(results, candidate_s=candidate_s)
    if found:
        yield "## Reach\n"
        yield table(
            ("of", "cases", "aim", "reached", "met"),
            (
                (aim.subject, f"{aim.number}", aim.aim, aim.reached, "yes" if aim.is_met else "no")
                for aim in found
            ),
        )


def _families(results: Results) -> Iterator[str]:
    yield "## Families\n"
    if results.overall is not None:
        overall = results.overall
        yield (
            f"{overall.number} complete step times outside grids: mean error "
            f"**{percent(overall.mean_absolute_error)}**, bias **{signed(overall.bias)}**.\n"
        )
    yield table(("family", *_HEAD), _summary_rows(results.families))


def _groups(heading: str, rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        yield heading
        yield table(("group", *_HEAD), _summary_rows(rows))


def _summary_rows(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        for suffix, summary in (("", row.steps), (", memory", row.memory)):
            if summary is None:
                continue
            yield (
                f"{row.name}{suffix}",
                f"{summary.number}",
                percent(summary.mean_absolute_error),
                signed(summary.bias),
                *(f"{share:.0%}" for share in summary.within),
                f"{signed(summary.worst)} {summary.worst_name.split(':')[-1]}",
            )


def _sweeps(sweeps: Sequence[SweepSummary]) -> Iterator[str]:
    if not sweeps:
        return
    yield (
        "## Ranking strategies\n\nIn a sweep the same model runs on the same machine under several "
        "strategies. Kendall's τ compares the two orders; *regret* is how much slower than the "
        "best measured the strategy runs that we would pick.\n"
    )
    yield from _sweep_table(sweeps)


def _sweep_table(sweeps: Sequence[SweepSummary]) -> Iterator[str]:
    if not sweeps:
        return
    yield table(
        ("group", "sweeps", "median τ", f"τ ≥ {GOOD_TAU}", "pick is the best",
         f"regret ≤ {GOOD_REGRET:.0%}", "median regret", "worst regret"),
        (_sweep_row(group, members) for group, members in _by_group(sweeps)),
    )  # fmt: skip


def _by_group(sweeps: Sequence[SweepSummary]) -> list[tuple[str, list[SweepSummary]]]:
    names = sorted({sweep.group for sweep in sweeps})
    return [(name, [sweep for sweep in sweeps if sweep.group == name]) for name in names]


def _sweep_row(group: str, members: Sequence[SweepSummary]) -> tuple[str, ...]:
    taus = [sweep.kendall_tau for sweep in members if sweep.kendall_tau is not None]
    regrets = [sweep.regret for sweep in members]
    return (
        group,
        f"{len(members)}",
        f"{median(taus):.2f}" if taus else "",
        _share(tau >= GOOD_TAU for tau in taus) if taus else "",
        _share(sweep.pick == sweep.best for sweep in members),
        _share(regret <= GOOD_REGRET for regret in regrets),
        percent(median(regrets)),
        regret_text(max(regrets)),
    )


def regret_text(regret: float) -> str:
    """Return a regret in percent; an infinite one is a pick that ran out of memory."""
    return percent(regret) if math.isfinite(regret) else "out of memory"


def _share(flags: Iterable[bool]) -> str:
    found = list(flags)
    return f"{sum(found) / len(found):.0%}"


def _memory(results: Results) -> Iterator[str]:
    memory = results.memory
    yield "## Memory\n"
    if memory is not None:
        yield (
            f"{memory.number} published peaks: mean error {percent(memory.mean_absolute_error)}, "
            f"bias {signed(memory.bias)}; predicted more than 2 % too low in "
            f"{results.memory_too_low} of them.\n"
        )
    yield "Runs that were within memory (all with a step time were) and runs that were not:\n"
    yield table(
        ("", "ran", "out of memory"),
        (
            *_fit_rows("complete", results.fit_table),
            *_fit_rows("incomplete", results.incomplete_fit_table),
        ),
    )
    if results.misfits:
        yield "Where the prediction is wrong:\n"
        yield table(
            ("group", "cases", "published", "predicted peak of device memory"),
            (
                (
                    one.group,
                    f"{one.number}",
                    "ran" if one.ran else "out of memory",
                    f"{one.least_used:.0%} to {one.most_used:.0%}",
                )
                for one in results.misfits
            ),
        )


def _fit_rows(words: str, fits: FitTable) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{words}: predicted to fit", f"{fits.true_fits}", f"{fits.false_fits}"),
        (f"{words}: predicted not to fit", f"{fits.false_overflows}", f"{fits.true_overflows}"),
    )


def _intervals(coverage: Sequence[Coverage]) -> Iterator[str]:
    if not coverage:
        return
    yield (
        "## Intervals\n\nA prediction's 80 % interval comes from the residuals of the nearest "
        "published steps: model class, device generation, software profile and scale, else the "
        "next wider family; widened so that it holds four in five steps of a source not seen "
        "before. Here every case is judged without the residuals of its own source.\n"
    )
    yield table(
        ("", "cases", "inside", "median upper / lower end"),
        (
            (one.name, f"{one.number}", f"{one.inside:.0%}", f"{one.median_width:.2f}")
            for one in coverage
        ),
    )


def _worst(worst: Sequence[Outcome]) -> Iterator[str]:
    if not worst:
        return
    yield f"## The worst {len(worst)}\n"
    yield table(
        ("error", "case", "remark"),
        ((signed(o.step_error or 0.0), o.case.name, o.case.outlier or o.case.note) for o in worst),
    )


def _known(known: Sequence[Outcome]) -> Iterator[str]:
    if not known:
        return
    yield (
        f"## Known outliers\n\n{len(known)} cases outside the tolerance of their group, counted in "
        "all tables; a mark on a case that keeps its tolerance fails.\n"
    )
    yield table(
        ("case", "how far", "cause"), ((o.case.name, o.deviation, o.case.outlier) for o in known)
    )


def _failures(failures: Sequence[Outcome]) -> Iterator[str]:
    yield "## Failing\n"
    if not failures:
        yield "None.\n"
        return
    yield table(
        ("case", "why", "remark"),
        ((outcome.case.name, outcome.failure, outcome.case.note) for outcome in failures),
    )
