"""Predictions beside published results."""

from paraplan.planning import Options, make_problem, rank_strategy
from planner.prediction import prediction
from planner.validation.cases import (
    ValidatedCase,
    Validation,
    ValidationCase,
    load_cases,
    summarise,
)


def validate() -> Validation:
    """Predict every shipped case and compare."""
    return summarise(tuple(_validated(case) for case in load_cases()))


def _validated(case: ValidationCase) -> ValidatedCase:
    options = Options(**case.options)
    problem = make_problem(options)
    _, ranked = rank_strategy(problem, options.strategy)
    found = prediction(problem, ranked.evaluation, step_time_s=ranked.step_time_s)
    predicted = float(found[case.quantity])
    low, high = found["step_time_interval_s"]
    error = predicted / case.published - 1.0
    return ValidatedCase(
        id=case.id,
        group=case.group,
        source=case.source,
        quantity=case.quantity,
        published=case.published,
        predicted=predicted,
        error=error,
        tolerance=case.tolerance,
        passed=abs(error) <= case.tolerance,
        inside_interval=low <= case.published <= high,
    )
