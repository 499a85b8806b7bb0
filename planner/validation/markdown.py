"""Tables and numbers of the validation page."""

from collections.abc import Iterable, Sequence

HUNDRED = 100.0


def percent(share: float) -> str:
    """Return a share in percent.

    Examples
    --------
    >>> percent(0.0416), signed(-0.02), signed(0.1234)
    ('4.2 %', '−2.0 %', '+12.3 %')
    """
    return f"{HUNDRED * share:.1f} %"


def signed(share: float) -> str:
    """Return a share in percent with its sign."""
    return f"{HUNDRED * share:+.1f} %".replace("-", "−")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Return a Markdown table; columns but the first lean to the right where they hold numbers.

    Examples
    --------
    >>> print(table(("a", "b"), [("x", "1"), ("y|z", "20")]))
    | a | b |
    |---|--:|
    | x | 1 |
    | y\|z | 20 |
    <BLANKLINE>
    """
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rules = ["---"] + [
        "--:" if _is_number_column(row[column] for row in body) else "---"
        for column in range(1, len(head))
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rules) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(lines) + "\n"


def _is_number_column(cells: Iterable[str]) -> bool:
    filled = [cell for cell in cells if cell]
    return bool(filled) and all(
        cell[0] in "0123456789+−" and len(cell.split()) <= 2  # noqa: PLR2004 (a unit at most)
        for cell in filled
    )
