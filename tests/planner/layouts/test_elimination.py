"""Variable elimination against exhaustive search and against an integer program."""

from itertools import product

import numpy as np
import pytest

from planner.layouts.elimination import Factor, min_marginals, minimise


def random_problem(seed, *, num_variables=6, num_objectives=3):
    rng = np.random.default_rng(seed)
    domains = {f"v{i}": int(rng.integers(2, 5)) for i in range(num_variables)}
    names = list(domains)
    scopes = [(name,) for name in names]
    scopes += [
        tuple(str(name) for name in rng.choice(names, size=size, replace=False))
        for size in (2, 2, 2, 2, 3)
    ]
    factors = [
        Factor(
            variables=scope,
            table=rng.random((num_objectives, *(domains[name] for name in scope))),
        )
        for scope in scopes
    ]
    return factors, domains


def brute_force(factors, domains):
    """Return the value of every assignment: dict assignment -> array over objectives."""
    names = list(domains)
    values = {}
    for assignment in product(*(range(size) for size in domains.values())):
        place = dict(zip(names, assignment, strict=True))
        values[assignment] = sum(
            factor.table[(slice(None), *(place[name] for name in factor.variables))]
            for factor in factors
        )
    return values


@pytest.mark.parametrize("seed", range(12))
def test_equals_exhaustive_search(seed):
    factors, domains = random_problem(seed)
    values = brute_force(factors, domains)
    best = minimise(factors, domains=domains)
    for objective in range(3):
        expected = min(value[objective] for value in values.values())
        chosen = tuple(int(best.choices[name][objective]) for name in domains)
        assert best.values[objective] == pytest.approx(expected, rel=1e-12)
        assert values[chosen][objective] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_min_marginals_equal_exhaustive_search(seed):
    factors, domains = random_problem(seed, num_variables=5)
    values = brute_force(factors, domains)
    for place, (name, size) in enumerate(domains.items()):
        marginals = min_marginals(factors, domains=domains, variable=name)
        for choice in range(size):
            expected = np.min(
                [value for assignment, value in values.items() if assignment[place] == choice],
                axis=0,
            )
            assert marginals[:, choice] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_equals_integer_program(seed):
    optimize = pytest.importorskip("scipy.optimize")
    factors, domains = random_problem(seed, num_objectives=1)
    columns = {}
    for number, factor in enumerate(factors):
        for cell in product(*(range(domains[name]) for name in factor.variables)):
            columns[number, cell] = len(columns)
    costs = np.zeros(len(columns))
    for (number, cell), column in columns.items():
        costs[column] = factors[number].table[(0, *cell)]
    rows, bounds = [], []
    unary = {
        factor.variables[0]: n for n, factor in enumerate(factors) if len(factor.variables) == 1
    }
    for name, size in domains.items():
        row = np.zeros(len(columns))
        row[[columns[unary[name], (choice,)] for choice in range(size)]] = 1
        rows.append(row)
        bounds.append(1)
    for number, factor in enumerate(factors):
        if len(factor.variables) == 1:
            continue
        for place, name in enumerate(factor.variables):
            for choice in range(domains[name]):
                row = np.zeros(len(columns))
                for (other, cell), column in columns.items():
                    if other == number and cell[place] == choice:
                        row[column] = 1
                row[columns[unary[name], (choice,)]] = -1
                rows.append(row)
                bounds.append(0)
    solved = optimize.milp(
        costs,
        constraints=optimize.LinearConstraint(np.array(rows), bounds, bounds),
        integrality=np.ones(len(columns)),
        bounds=optimize.Bounds(0, 1),
    )
    assert minimise(factors, domains=domains).values[0] == pytest.approx(solved.fun, abs=1e-6)


def test_first_of_equal_choices_wins():
    tie = Factor(variables=("x",), table=np.array([[2.0, 1.0, 1.0]]))
    pair = Factor(variables=("x", "y"), table=np.zeros((1, 3, 2)))
    best = minimise([tie, pair], domains={"x": 3, "y": 2})
    assert (int(best.choices["x"][0]), int(best.choices["y"][0])) == (1, 0)


def test_forbidden_choices_are_avoided():
    forbidden = Factor(variables=("x",), table=np.array([[np.inf, 5.0]]))
    best = minimise([forbidden], domains={"x": 2})
    assert best.values[0] == 5.0
    assert int(best.choices["x"][0]) == 1
