"""What a span is for, as a reader of a plot names it, and its colour."""

import re

from simulator.actions import PHASE_OF_KIND, parse_action
from simulator.timeline import Span

PHASE_COLORS = {
    "forward": "#4C78A8",
    "backward": "#72B7B2",
    "input_gradients": "#439894",
    "weight_gradients": "#88D27A",
    "compute": "#9ECAE9",
    "optimizer": "#8E6C8A",
    "tensor": "#F58518",
    "data": "#E45756",
    "pipeline": "#EECA3B",
    "context": "#B279A2",
    "expert": "#FF9DA6",
    "input": "#9D755D",
    "other": "#BAB0AC",
}
"""One colour per phase, told apart also in print: Tableau 10 as in Vega."""
_ACTION = re.compile(r"(?:^|[^0-9A-Za-z])(\d+[FBIW]\d+)(?:$|[^0-9A-Za-z])")
_WORDS = {phase.replace("_", " "): phase for phase in (*PHASE_OF_KIND.values(), "optimizer")}


def span_phase(span: Span) -> str:
    """Return the phase of a span: a key of :data:`PHASE_COLORS`.

    Communication is named by its category; compute by an action such as ``2F0`` or a word in its
    name.

    Parameters
    ----------
    span : Span
        Any span.

    Returns
    -------
    str
        The phase.

    Examples
    --------
    >>> span_phase(Span(name="2F0", rank=0, stream="compute", kind="compute", category="compute",
    ...                 start_s=0, end_s=1))
    'forward'
    """
    if span.category in PHASE_COLORS and span.category != "compute":
        return span.category
    if span.stream == "compute":
        action = _ACTION.search(span.name)
        if action is not None:
            return PHASE_OF_KIND[parse_action(action.group(1)).kind]
        lowered = span.name.lower()
        for word, phase in _WORDS.items():
            if word in lowered:
                return phase
    return "compute" if span.category == "compute" else "other"
