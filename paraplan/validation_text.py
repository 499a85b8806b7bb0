"""A validation as text for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from planner.validation.aims import GOOD_TAU, Aim, aims
from planner.validation.coverage import Coverage
from planner.validation.outcome import Outcome
from planner.validation.results import Results, Row
from planner.validation.summaries import GOOD_REGRET, FitTable, SweepSummary, median

GIB = 2.0**30


def as_text(
    results: Results,
    *,
    shows_cases: bool = True,
    candidate_s: float | None = None,
    is_whole: bool = True,
) -> str:
    """Return the tables, one line per case first; of a choice of cases, aims are told as such."""
    lines: list[str] = []
    if shows_cases:
        lines += _case_lines(results.outcomes)
    lines += _row_lines("family (complete, judging)", results.families)
    lines += _row_lines("group (complete, judging)", results.groups)
    lines += _row_lines("an input is not stated", results.incomplete)
    lines += _row_lines("used for fitting", results.calibrate)
    lines += _sweep_lines("sweeps", results.sweeps)
    lines += _sweep_lines("sweeps, an input is not stated", results.incomplete_sweeps)
    lines += _fit_lines("complete", results.fit_table)
    lines += _fit_lines("incomplete", results.incomplete_fit_table)
    lines += _coverage_lines(results.coverage)
    lines += _titled("worst step times", map(_worst_line, results.worst))
    lines += _titled(
        f"known outliers, counted in all tables above: {len(results.known)}",
        _known_lines(results.known),
    )
    lines += _titled(
        f"outside tolerance: {len(results.failures)}",
        (f"  {outcome.case.name}: {outcome.failure}" for outcome in results.failures),
    )
    if not is_whole:
        lines.append("aims, as far as the chosen cases go (they are set for all cases)")
    lines += _aim_lines(aims(results, candidate_s=candidate_s))
    if results.overall is not None:
        overall = results.overall
        lines.append(
            f"{overall.number} step times: mean absolute error {overall.mean_absolute_error:.1%}, "
            f"bias {overall.bias:+.1%}"
        )
    return "\n".join(lines)


def _titled(title: str, lines: Iterable[str]) -> list[str]:
    """Return lines under their title with an empty line behind; nothing where there are none."""
    found = list(lines)
    return [title, *found, ""] if found else []


def _case_lines(outcomes: Sequence[Outcome]) -> list[str]:
    width = max((len(outcome.case.name) for outcome in outcomes), default=0) + 2
    return _titled(
        f"{'case':<{width}}{'published':>13}{'predicted':>13}{'ratio':>8}  within",
        (line for outcome in outcomes for line in _lines_of_case(outcome, width=width)),
    )


def _lines_of_case(outcome: Outcome, *, width: int) -> Iterator[str]:
    case, predicted = outcome.case, outcome.predicted
    mark = "NO" if outcome.failure else "known" if outcome.is_known else "yes"
    name = f"{case.name:<{width}}"
    if predicted is None:
        yield f"{name}{'':>34}  {mark}: {outcome.refusal}"
        return
    if case.step_time_s is not None:
        yield (
            f"{name}{case.step_time_s:>11.5g} s{predicted.step_time_s:>11.5g} s"
            f"{predicted.step_time_s / case.step_time_s:>8.3f}  {mark}"
        )
    if case.memory_bytes is not None:
        yield (
            f"{name}{case.memory_bytes / GIB:>9.4g} GiB{predicted.memory_bytes / GIB:>9.4g} GiB"
            f"{predicted.memory_bytes / case.memory_bytes:>8.3f}  {mark}"
        )
    if case.fits is not None:
        used = predicted.peak_bytes / predicted.capacity_bytes
        words = [("fits" if fits else "out of mem") for fits in (case.fits, predicted.fits)]
        yield f"{name}{words[0]:>13}{words[1]:>13}{used:>8.0%}  {mark}"


def _row_lines(title: str, rows: Sequence[Row]) -> list[str]:
    width = max(34, *(len(row.name) + 2 for row in rows)) if rows else 0
    return _titled(
        f"{title:<{width}}{'n':>5}{'error':>8}{'bias':>8}{'<5%':>6}{'<10%':>6}{'<20%':>6}  worst",
        (line for row in rows for line in _lines_of_row(row, width=width)),
    )


def _lines_of_row(row: Row, *, width: int) -> Iterator[str]:
    for what, summary in (("", row.steps), ("  memory", row.memory)):
        if summary is None:
            continue
        shares = "".join(f"{share:>6.0%}" for share in summary.within)
        yield (
            f"{row.name + what:<{width}}{summary.number:>5}"
            f"{summary.mean_absolute_error:>8.1%}{summary.bias:>+8.1%}{shares}"
            f"  {summary.worst:+.1%} {summary.worst_name.split(':')[-1]}"
        )


def _sweep_lines(title: str, sweeps: Sequence[SweepSummary]) -> list[str]:
    groups = sorted({sweep.group for sweep in sweeps})
    return _titled(
        f"{title:<34}{'n':>5}{'median tau':>12}{'tau>=0.85':>11}{'regret<=3%':>12}{'median':>8}",
        (_sweep_line(name, [one for one in sweeps if one.group == name]) for name in groups),
    )


def _sweep_line(group: str, members: Sequence[SweepSummary]) -> str:
    taus = [sweep.kendall_tau for sweep in members if sweep.kendall_tau is not None]
    regrets = [sweep.regret for sweep in members]
    good = _share(regret <= GOOD_REGRET for regret in regrets)
    rank = f"{median(taus):>12.2f}{_share(t >= GOOD_TAU for t in taus):>11.0%}" if taus else ""
    return f"{group:<34}{len(members):>5}{rank:>23}{good:>12.0%}{median(regrets):>8.1%}"


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / len(found)


def _fit_lines(words: str, table: FitTable) -> list[str]:
    if not table.true_overflows + table.false_fits + table.false_overflows:
        return []
    return _titled(
        f"{'memory, ' + words + ' cases':<34}{'ran':>10}{'out of memory':>16}",
        (
            f"{'predicted to fit':<34}{table.true_fits:>10}{table.false_fits:>16}",
            f"{'predicted not to fit':<34}{table.false_overflows:>10}{table.true_overflows:>16}",
        ),
    )


def _coverage_lines(coverage: Sequence[Coverage]) -> list[str]:
    return _titled(
        f"{'80 % intervals, own source out':<34}{'n':>5}{'inside':>9}{'upper/lower':>13}",
        (
            f"{one.name:<34}{one.number:>5}{one.inside:>9.0%}{one.median_width:>13.2f}"
            for one in coverage
        ),
    )


def _worst_line(outcome: Outcome) -> str:
    words = outcome.case.outlier or outcome.case.note
    note = f"  ({words})" if words else ""
    return f"  {outcome.step_error or 0.0:+8.1%}  {outcome.case.name}{note}"


def _aim_lines(found: Sequence[Aim]) -> Iterator[str]:
    for aim in found:
        mark = "met    " if aim.is_met else "NOT MET"
        reached = aim.clocked or aim.reached
        yield f"{mark}  {aim.subject} ({aim.number}): {reached}; aim {aim.aim}"
    yield ""


def _known_lines(known: Sequence[Outcome]) -> Iterator[str]:
    for cause in dict.fromkeys(outcome.case.outlier for outcome in known):
        yield f"  {cause}"
        for outcome in known:
            if outcome.case.outlier == cause:
                yield f"    {outcome.case.name}: {outcome.deviation}"
