"""Published results hold within the tolerance of their files: some of each group, by rule.

All of them: ``make validate``.
"""

from dataclasses import replace

import pytest

from paraplan.validation import predict_groups
from planner.validation.case_file import load_groups
from planner.validation.cases import CaseGroup


def chosen(group: CaseGroup) -> CaseGroup:
    """Keep the first, the middle and the last complete case of a group on its first model."""
    complete = [case for case in group.cases if case.is_complete and not case.free]
    first = [case for case in complete if case.options["model"] == complete[0].options["model"]]
    spread = {0, len(first) // 2, len(first) - 1}
    return replace(group, cases=tuple(first[place] for place in sorted(spread)) if first else ())


GROUPS = {group.name: chosen(group) for group in load_groups()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, group in GROUPS.items() if group.cases])
def test_published_steps_hold(name: str) -> None:
    found = predict_groups([GROUPS[name]], jobs=1)
    assert [(outcome.case.id, outcome.failure) for outcome in found if outcome.failure] == []
