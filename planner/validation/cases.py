"""Validation cases: published numbers with citation, tolerance and its reason."""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

_CASE_KEYS = frozenset(
    {"id", "model", "cluster", "global_batch", "seq_len", "strategy", "published", "software",
     "precision", "optimizer", "attention"}
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationCase:
    """One published number and the options that reproduce its set-up."""

    id: str
    group: str
    source: str
    quantity: str
    published: float
    tolerance: float
    """Largest accepted relative error [1]."""
    why: str
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidatedCase:
    """A case with its prediction."""

    id: str
    group: str
    source: str
    quantity: str
    published: float
    predicted: float
    error: float
    """Predicted over published, minus 1."""
    tolerance: float
    passed: bool
    inside_interval: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """All cases with the mean absolute error and the signed bias, overall and per group."""

    cases: tuple[ValidatedCase, ...]
    mean_absolute_error: float
    bias: float
    groups: dict[str, dict[str, float]]

    def as_text(self) -> str:
        """Return an aligned table."""
        lines = [f"{'case':<42}{'published':>11}{'predicted':>11}{'error':>9}  within"]
        lines += [
            f"{case.group + ':' + case.id:<42}{case.published:>11.4g}{case.predicted:>11.4g}"
            f"{case.error:>+9.1%}  {'yes' if case.passed else 'NO'} ({case.tolerance:.0%})"
            for case in self.cases
        ]
        lines.append(f"mean absolute error {self.mean_absolute_error:.1%}, bias {self.bias:+.1%}")
        return "\n".join(lines)


def load_cases() -> tuple[ValidationCase, ...]:
    """Return all cases shipped with the package, by file name and order in the file."""
    folder = files("planner.validation") / "cases"
    found: list[ValidationCase] = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            found += _cases_of(tomllib.loads(entry.read_text(encoding="utf-8")))
    return tuple(found)


def _cases_of(data: dict[str, Any]) -> list[ValidationCase]:
    cases = []
    for row in data["case"]:
        unknown = set(row) - _CASE_KEYS
        if unknown:
            raise ValueError(f"{data['group']}:{row.get('id')}: unknown keys {sorted(unknown)}")
        options = data["defaults"] | {
            key: value for key, value in row.items() if key not in ("id", "published")
        }
        cases.append(
            ValidationCase(
                id=row["id"],
                group=data["group"],
                source=data["source"],
                quantity=data["quantity"],
                published=row["published"],
                tolerance=data["tolerance"],
                why=data["why"],
                options=options,
            )
        )
    return cases


def summarise(cases: tuple[ValidatedCase, ...]) -> Validation:
    """Return the errors over all cases and per group."""
    groups = {}
    for group in sorted({case.group for case in cases}):
        errors = [case.error for case in cases if case.group == group]
        groups[group] = {
            "num_cases": float(len(errors)),
            "mean_absolute_error": sum(map(abs, errors)) / len(errors),
            "bias": sum(errors) / len(errors),
        }
    errors = [case.error for case in cases]
    return Validation(
        cases=cases,
        mean_absolute_error=sum(map(abs, errors)) / len(errors),
        bias=sum(errors) / len(errors),
        groups=groups,
    )
