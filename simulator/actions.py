"""One step of a pipeline schedule, and a schedule as text in torch's form."""

import csv
import re
from dataclasses import dataclass
from io import StringIO
from typing import Literal

from simulator.errors import ScheduleError

ActionKind = Literal["F", "B", "I", "W"]
"""Forward; whole backward; gradients of inputs alone; gradients of weights alone."""
_ACTION = re.compile(r"(\d+)([FBIW])(\d+)")
PHASE_OF_KIND: dict[ActionKind, str] = {
    "F": "forward", "B": "backward", "I": "input_gradients", "W": "weight_gradients",
}  # fmt: skip
"""What timelines call each kind of action."""
_KINDS: dict[str, ActionKind] = {kind: kind for kind in PHASE_OF_KIND}


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """One pass of one microbatch through one virtual stage; prints as ``2F0``."""

    stage: int
    kind: ActionKind
    microbatch: int

    def __str__(self) -> str:
        """Return torch's form."""
        return f"{self.stage}{self.kind}{self.microbatch}"


Schedule = tuple[tuple[Action, ...], ...]
"""Per rank, its actions in order."""


def parse_action(text: str) -> Action:
    """Return the action that a text such as ``2F0`` stands for.

    Parameters
    ----------
    text : str
        Stage, kind, microbatch.

    Returns
    -------
    Action
        The action.

    Raises
    ------
    ScheduleError
        If the text has another form.

    Examples
    --------
    >>> parse_action("12B3")
    Action(stage=12, kind='B', microbatch=3)
    """
    match = _ACTION.fullmatch(text.strip())
    if match is None:
        msg = (
            f"schedule: {text!r} is no action; "
            "expected stage, F, B, I or W, microbatch, as in '2F0'"
        )
        raise ScheduleError(msg)
    stage, kind, microbatch = match.groups()
    return Action(stage=int(stage), kind=_KINDS[kind], microbatch=int(microbatch))


def to_csv(schedule: Schedule) -> str:
    r"""Return a schedule in torch's form: one row per rank, one action per cell.

    Parameters
    ----------
    schedule : tuple of tuple of Action
        Per rank, its actions in order.

    Returns
    -------
    str
        Text that ``torch.distributed.pipelining`` loads as a compute-only schedule.

    Examples
    --------
    >>> to_csv(((parse_action("0F0"), parse_action("0B0")),))
    '0F0,0B0\n'
    """
    buffer = StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[str(action) for action in actions] for actions in schedule])
    return buffer.getvalue()


def from_csv(text: str) -> Schedule:
    """Return the schedule of a text in torch's form.

    Parameters
    ----------
    text : str
        One row per rank; empty cells are waits and are dropped.

    Returns
    -------
    tuple of tuple of Action
        Per rank, its actions in order.

    Raises
    ------
    ScheduleError
        If a cell is no action.

    Examples
    --------
    >>> print(*from_csv("0F0,,0B0")[0])
    0F0 0B0
    """
    rows = csv.reader(StringIO(text))
    return tuple(tuple(parse_action(cell) for cell in row if cell.strip()) for row in rows)
