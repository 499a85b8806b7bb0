"""Exact minimisation of a sum of small tables by variable elimination (min-plus).

Bertele and Brioschi, "Nonserial Dynamic Programming", 1972, chapter 2. Several objectives over the
same variables are minimised at once: the first dimension of every table counts objectives.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
_TIE = 1e-9
"""Relative difference below which the earlier choice wins [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Factor:
    """A cost table over variables; ``table`` has objectives first, then one dim per variable."""

    variables: tuple[str, ...]
    table: Table


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Minimum:
    """The least value per objective, and for each variable the choice per objective."""

    values: Table
    choices: Mapping[str, npt.NDArray[np.intp]]


def minimise(factors: Sequence[Factor], *, domains: Mapping[str, int]) -> Minimum:
    """Return the exact minimum of the sum of all factors.

    Variables leave one by one, the one whose neighbours have the fewest joint choices first; the
    minimising choice is kept as a table over the neighbours and read backwards at the end. Of equal
    choices the first wins, so that the result does not depend on the machine.

    Parameters
    ----------
    factors : sequence of Factor
        Tables; each variable occurs in at least one.
    domains : Mapping
        Variable -> number of choices, in the order that breaks ties [1].

    Returns
    -------
    Minimum
        Values and choices.

    Examples
    --------
    >>> x = Factor(variables=("x",), table=np.array([[0.0, 3.0]]))
    >>> xy = Factor(variables=("x", "y"), table=np.array([[[5.0, 9.0], [1.0, 0.0]]]))
    >>> best = minimise([x, xy], domains={"x": 2, "y": 2})
    >>> float(best.values[0]), int(best.choices["x"][0]), int(best.choices["y"][0])
    (3.0, 1, 1)
    """
    left, trace = _eliminate(list(factors), domains=domains, keep=None)
    values: Table = np.sum([factor.table for factor in left], axis=0)
    rows = np.arange(len(values))
    choices: dict[str, npt.NDArray[np.intp]] = {}
    for variable, neighbours, best in reversed(trace):
        choices[variable] = best[(rows, *(choices[name] for name in neighbours))]
    return Minimum(values=values, choices={name: choices[name] for name in domains})


def min_marginals(factors: Sequence[Factor], *, domains: Mapping[str, int], variable: str) -> Table:
    """Return the least value of the whole sum for each choice of one variable.

    Returns
    -------
    ndarray
        ``[objective, choice]``; the row minimum is the optimum, the rest are regrets above it.
    """
    left, _ = _eliminate(list(factors), domains=domains, keep=variable)
    total: Table = np.zeros((1, domains[variable]))
    for factor in left:
        total = total + (factor.table if factor.variables else factor.table[:, None])
    return total


def _eliminate(
    factors: list[Factor], *, domains: Mapping[str, int], keep: str | None
) -> tuple[list[Factor], list[tuple[str, tuple[str, ...], Any]]]:
    remaining = [name for name in domains if name != keep]
    trace = []
    neighbours = _neighbours(factors)
    while remaining:
        variable = min(
            remaining, key=lambda name: prod(domains[other] for other in neighbours[name])
        )
        remaining.remove(variable)
        around = tuple(name for name in domains if name in neighbours[variable])
        mentioned = [factor for factor in factors if variable in factor.variables]
        joint = _joined(mentioned, (*around, variable))
        table = joint.min(axis=-1)
        limit = table + _TIE * np.abs(np.where(np.isfinite(table), table, 0.0))
        trace.append((variable, around, (joint <= limit[..., None]).argmax(axis=-1)))
        factors = [factor for factor in factors if variable not in factor.variables]
        factors.append(Factor(variables=around, table=table))
        for name in around:
            neighbours[name] = (neighbours[name] | set(around)) - {name, variable}
    return factors, trace


def _neighbours(factors: Iterable[Factor]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for factor in factors:
        for name in factor.variables:
            found.setdefault(name, set()).update(factor.variables)
    for name, others in found.items():
        others.discard(name)
    return found


def _joined(factors: Sequence[Factor], variables: tuple[str, ...]) -> Table:
    """Return the sum of tables, broadcast over ``variables`` in this order."""
    total: Any = 0.0
    position = {name: place for place, name in enumerate(variables)}
    for factor in factors:
        order = sorted(range(len(factor.variables)), key=lambda i: position[factor.variables[i]])
        table = factor.table.transpose(0, *(i + 1 for i in order))
        shape = [1] * len(variables)
        for i in order:
            shape[position[factor.variables[i]]] = factor.table.shape[i + 1]
        total = total + table.reshape(table.shape[0], *shape)
    result: Table = total
    return result
