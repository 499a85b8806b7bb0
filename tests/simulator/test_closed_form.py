"""Closed forms held to the engine: exact where they claim it, within a ceiling elsewhere."""

from random import Random

import numpy as np
import pytest

from simulator.analysis import makespan_s
from simulator.closed_form import in_flight_microbatches, pipeline_time_s
from simulator.engine import simulate
from simulator.errors import ScheduleError

CASES = [
    ("gpipe", 4, 3, 1),
    ("gpipe", 4, 8, 1),
    ("1f1b", 1, 4, 1),
    ("1f1b", 4, 8, 1),
    ("1f1b", 8, 32, 1),
    ("interleaved", 2, 4, 3),
    ("interleaved", 4, 4, 2),
    ("interleaved", 4, 12, 2),
]


@pytest.mark.parametrize(("name", "ranks", "microbatches", "virtual"), CASES)
@pytest.mark.parametrize("send", [0, 1])
def test_equal_stages_are_exact(pipeline_program, name, ranks, microbatches, virtual, send):
    program = pipeline_program(
        name, num_ranks=ranks, num_microbatches=microbatches, virtual_stages=virtual,
        forward=10, backward=20, send=send,
    )  # fmt: skip
    assert makespan_s(simulate(program)) == pipeline_time_s(
        name, forward_s=10 * virtual, backward_s=20 * virtual, num_stages=ranks,
        num_microbatches=microbatches, virtual_stages=virtual, send_s=send,
    )  # fmt: skip


CEILINGS = {
    ("gpipe", "few"): 1e-9,
    ("gpipe", "some"): 1e-9,
    ("gpipe", "many"): 1e-9,
    ("1f1b", "few"): 0.08,
    ("1f1b", "some"): 0.16,
    ("1f1b", "many"): 0.09,
    ("interleaved", "some"): 0.15,
    ("interleaved", "many"): 0.07,
}
"""Largest error for ranks that differ by up to a half and sends up to 0.2 of a forward; few, some
and many microbatches are fewer than the ranks, up to 4 times and more. Measured over 1500
random cases: 0, 0, 0, 0.068, 0.147, 0.075, 0.133, 0.059; the formula was never low."""


@pytest.mark.parametrize(("name", "count"), CEILINGS)
def test_uneven_stages_stay_within_the_ceiling(pipeline_program, name, count):
    random = Random(f"{name} {count}")
    for _ in range(12):
        ranks = random.choice([2, 4, 6])
        virtual = 2 if name == "interleaved" else 1
        rounds = {"few": 0.5, "some": random.choice([1, 2, 3]), "many": 5}[count]
        microbatches = int(rounds * ranks)
        factors = [random.uniform(1, 1.5) for _ in range(ranks)]
        send = random.choice([0, 0.1, 0.2])
        program = pipeline_program(
            name, num_ranks=ranks, num_microbatches=microbatches, virtual_stages=virtual,
            send=send, factors=factors,
        )  # fmt: skip
        truth = makespan_s(simulate(program))
        formula = pipeline_time_s(
            name, forward_s=max(factors) * virtual, backward_s=2 * max(factors) * virtual,
            num_stages=ranks, num_microbatches=microbatches, virtual_stages=virtual, send_s=send,
            total_s=3 * sum(factors) * virtual,
        )  # fmt: skip
        assert -1e-9 <= formula / truth - 1 <= CEILINGS[name, count]


def test_arrays_broadcast():
    times = pipeline_time_s(
        "1f1b",
        forward_s=np.ones((3, 1)),
        backward_s=2.0,
        num_stages=np.array([1, 2, 4, 8]),
        num_microbatches=8,
    )
    assert times.shape == (3, 4)
    assert times[0].tolist() == [24, 27, 33, 45]


def test_in_flight_broadcasts():
    held = in_flight_microbatches("gpipe", [0, 1], num_stages=2, num_microbatches=[[3], [5]])
    assert held.tolist() == [[3, 3], [5, 5]]


def test_unknown_schedule():
    with pytest.raises(ScheduleError, match="'zigzag' is unknown"):
        pipeline_time_s("zigzag", forward_s=1, backward_s=1, num_stages=1, num_microbatches=1)
