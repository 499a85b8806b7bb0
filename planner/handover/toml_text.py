"""Writing the small part of TOML that a trainer's configuration needs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

Tables = dict[str, dict[str, Any]]


def toml_text(tables: Mapping[str, Mapping[str, Any]], *, head: Sequence[str] = ()) -> str:
    """Return tables of strings, whole numbers, truth values and (nested) lists as TOML.

    Examples
    --------
    >>> print(toml_text({"a": {"on": True, "names": ["x", "y"]}}, head=["what it is"]), end="")
    # what it is
    <BLANKLINE>
    [a]
    on = true
    names = ["x", "y"]
    """
    blocks = ["\n".join(f"# {line}" for line in head)] if head else []
    for name, table in tables.items():
        lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        blocks.append("\n".join([f"[{name}]", *lines]))
    return "\n\n".join(blocks) + "\n"
