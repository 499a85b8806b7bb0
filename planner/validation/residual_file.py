"""The residuals shipped with the package, written by ``paraplan validate --write-docs``."""

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files

from planner.validation.residuals import Residual
from planner.validation.settings import Setting

FILE_NAME = "residuals.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidualTable:
    """Residuals and by how much their quantiles are widened."""

    residuals: tuple[Residual, ...]
    widening: float
    """Factor on the logarithms of both ends, see :func:`planner.validation.coverage.widening`."""


def table_to_json(table: ResidualTable) -> str:
    """Return the text of the residual file: a line per source and setting, sorted."""
    steps: dict[str, list[tuple[int, float]]] = {}
    for residual in table.residuals:
        shared = {"source": residual.source, **asdict(residual.setting)}
        num_devices = shared.pop("num_devices")
        key = json.dumps(shared, sort_keys=True, ensure_ascii=False)
        steps.setdefault(key, []).append((num_devices, residual.log_ratio))
    rows = [
        json.dumps(
            json.loads(key) | {"num_devices_and_log_ratio": sorted(found)}, ensure_ascii=False
        )
        for key, found in sorted(steps.items())
    ]
    body = ",\n".join(rows)
    return f'{{"widening": {table.widening:g}, "residuals": [\n{body}\n]}}\n'


def table_from_json(text: str) -> ResidualTable:
    """Return the table that :func:`table_to_json` wrote."""
    data = json.loads(text)
    found = []
    for row in data["residuals"]:
        source, steps = row.pop("source"), row.pop("num_devices_and_log_ratio")
        found += [
            Residual(source=source, setting=Setting(num_devices=count, **row), log_ratio=ratio)
            for count, ratio in steps
        ]
    return ResidualTable(residuals=tuple(found), widening=data["widening"])


@cache
def shipped_table() -> ResidualTable:
    """Return the residuals shipped with the package, none where they were not written yet."""
    file = files("planner.validation") / FILE_NAME
    if not file.is_file():
        return ResidualTable(residuals=(), widening=1.0)
    return table_from_json(file.read_text(encoding="utf-8"))
