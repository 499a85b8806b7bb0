"""The number of processes changes how long a search takes, and nothing else."""

import multiprocessing
from typing import Any

import pytest

from planner import processes, scoring
from planner.processes import num_workers
from planner.search import search
from tests.planner.problems import problem_of


def ranking(monkeypatch: pytest.MonkeyPatch, num_processors: int) -> list[Any]:
    monkeypatch.setattr(processes.os, "cpu_count", lambda: num_processors)
    result = search(problem_of(global_batch=8), fixed={"pipeline_parallel_size": 1})
    rows = [(str(r.evaluation.strategy), r.step_time_s, r.replayed) for r in result.ranked]
    return [result.num_candidates, result.rejected, *rows]


def test_any_number_of_processes_ranks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MIN_CORES_PER_WORKER", 1)
    monkeypatch.setattr(scoring, "KEPT_PER_CORE", 3)
    alone = ranking(monkeypatch, 1)
    assert alone == ranking(monkeypatch, 2)
    assert len(alone) > scoring.KEPT_PER_CORE


def _asked_in_a_pool(wanted: int) -> int:
    return num_workers(wanted)


def test_a_worker_of_a_pool_forks_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 4)
    assert num_workers(3) == 3
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_asked_in_a_pool, (3,)) == 1
