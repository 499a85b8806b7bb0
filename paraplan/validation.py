"""Predictions beside published results: every case of the case files, on several processes."""

import math
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from hardware_profiles.errors import ParaplanError
from paraplan.console import one_line
from paraplan.free_keys import best_free_strategy
from paraplan.planning import Options, make_problem, rank_in_book, trace
from planner.problem import PriceBook
from planner.processes import num_workers
from planner.search import Ranked
from planner.stage_memory import StageMemory
from planner.validation.cases import CaseGroup, MemoryKind, ValidationCase
from planner.validation.outcome import DEFECT, Outcome, Predicted
from planner.validation.settings import setting_of

MAX_CHUNK = 24
"""Cases of one model that a process takes at once [1]."""
_NOT_COUNTED: dict[MemoryKind, tuple[str, ...]] = {
    "allocated": ("fixed", "allocator"),
    "reserved": ("fixed",),
    "device": (),
}
"""Memory terms that a kind of measured peak does not see."""
Progress = Callable[[str, int, int], None]
Numbered = tuple[int, ValidationCase]
Answer = tuple[int, Predicted | None, str]


def predict_groups(
    groups: Sequence[CaseGroup], *, jobs: int | None = None, progress: Progress | None = None
) -> tuple[Outcome, ...]:
    """Return predictions of all cases, in the order of the files.

    Parameters
    ----------
    groups : sequence of CaseGroup
        What to predict.
    jobs : int, optional
        Processes to share the cases among; one per processor by default [1].
    progress : callable, optional
        Called as ``progress(what, done, total)``.
    """
    pairs = [(group, case) for group in groups for case in group.cases]
    chunks = _chunks([case for _, case in pairs])
    answers: dict[int, Answer] = {}
    for found in _answers(chunks, jobs=jobs):
        answers |= {answer[0]: answer for answer in found}
        if progress is not None:
            progress("cases", len(answers), len(pairs))
    return tuple(
        Outcome(case=case, group=group, predicted=answers[n][1], refusal=answers[n][2])
        for n, (group, case) in enumerate(pairs)
    )


def _chunks(cases: Sequence[ValidationCase]) -> list[list[Numbered]]:
    """Return cases of equal model together, those that share a problem side by side."""
    ordered = sorted(enumerate(cases), key=lambda pair: (*_problem_words(pair[1]), pair[0]))
    chunks = []
    for _, same in groupby(ordered, key=lambda pair: _problem_words(pair[1])[:2]):
        members = list(same)
        chunks += [members[i : i + MAX_CHUNK] for i in range(0, len(members), MAX_CHUNK)]
    return sorted(chunks, key=lambda chunk: (-sum(_weight(case) for _, case in chunk), chunk[0][0]))


def _weight(case: ValidationCase) -> int:
    """Return about how long a case takes: long pipelines and free keys take long."""
    stages = re.findall(r"\b(?:pp|virtual_stages)=(\d+)", case.options.get("strategy", ""))
    return (10 if case.free else 1) * math.prod(int(count) for count in stages)


def _problem_words(case: ValidationCase) -> tuple[str, ...]:
    """Return the options that make the problem, model and sequence length first."""
    words = {key: str(value) for key, value in case.options.items() if key != "strategy"}
    model, length = words.pop("model"), words.pop("seq_len", "")
    return (model, length, *(f"{key}={value}" for key, value in sorted(words.items())))


def _answers(chunks: list[list[Numbered]], *, jobs: int | None) -> Iterable[list[Answer]]:
    workers = num_workers(min(jobs or len(chunks), len(chunks)))
    if workers <= 1:
        yield from map(_predict_chunk, chunks)
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, initializer=_ignore_interrupts) as pool:
        yield from pool.imap_unordered(_predict_chunk, chunks)


def _ignore_interrupts() -> None:
    """Leave an interrupt to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _predict_chunk(chunk: list[Numbered]) -> list[Answer]:
    """Predict cases of one model; those of one problem share their prices."""
    graph = None
    answers: list[Answer] = []
    for _, same in groupby(chunk, key=lambda pair: _problem_words(pair[1])):
        book: PriceBook | None = None
        for number, case in same:
            try:
                options = Options(**case.options)
                graph = graph or trace(options.model, sequence_length=options.seq_len)
                book = book or PriceBook(problem=make_problem(options, graph=graph))
                answers.append((number, predict_case(book, case), ""))
            except ParaplanError as error:
                answers.append((number, None, one_line(str(error))))
            except Exception as error:  # a defect of ours fails its case, not the whole table
                defect = one_line(f"{DEFECT}{type(error).__name__}: {error}")
                answers.append((number, None, defect))
    return answers


def predict_case(book: PriceBook, case: ValidationCase) -> Predicted:
    """Return the numbers of one case of a problem.

    Raises
    ------
    StrategyError
        If the strategy does not suit the problem.
    """
    text = case.options.get("strategy", "")
    if case.free:
        ranked = best_free_strategy(book, text, free=case.free)
    else:
        ranked = rank_in_book(book, text)
    evaluation, problem = ranked.evaluation, book.problem
    return Predicted(
        strategy=str(evaluation.strategy),
        setting=setting_of(problem, num_devices=evaluation.strategy.num_devices),
        step_time_s=ranked.step_time_s,
        memory_bytes=counted_bytes(evaluation.memory, kind=case.memory_kind or "device"),
        peak_bytes=evaluation.peak_bytes,
        capacity_bytes=_fullest_capacity(ranked),
        fits=evaluation.fits,
    )


def _fullest_capacity(ranked: Ranked) -> float:
    """Return the memory of the device that is nearest to full [B]."""
    evaluation = ranked.evaluation
    pairs = zip(evaluation.memory.peak_bytes, evaluation.capacity_bytes, strict=True)
    return max(((peak / capacity, capacity) for peak, capacity in pairs))[1]


def counted_bytes(memory: StageMemory, *, kind: MemoryKind) -> float:
    """Return the peak on the fullest rank as a kind of measurement counts it [B].

    ``allocated`` sees tensors (torch's ``max_memory_allocated``), ``reserved`` the allocator's
    slack, too, and ``device`` all that is in use on the device, context and libraries included.
    """
    counted = [v for term, v in memory.terms.items() if term not in _NOT_COUNTED[kind]]
    return float(sum(counted[1:], counted[0]).max())
