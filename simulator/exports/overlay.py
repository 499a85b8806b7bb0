"""A measured timeline laid over the predicted one, in one trace file."""

import json
from dataclasses import replace
from typing import Any

from simulator.actions import PHASE_OF_KIND
from simulator.errors import ProgramError
from simulator.exports.chrome import TraceProcess, trace_events
from simulator.timeline import Span, Timeline

_KIND_OF_NAME = {phase.replace("_", " "): kind for kind, phase in PHASE_OF_KIND.items()}
"""Names of measured passes -> the simulator's letters, which name stage and microbatch too."""


def overlay_trace(predicted: Timeline, measured: Timeline) -> dict[str, Any]:
    """Return both timelines in the trace event format, on one clock that starts with the step.

    Each rank is two processes, the predicted one above the measured one; streams are their threads.
    Passes have the simulator's names on both sides.

    Parameters
    ----------
    predicted, measured : Timeline
        Of the same ranks.

    Returns
    -------
    dict
        JSON-ready; every event has ``ph``, ``ts``, ``pid`` and ``tid``.

    Raises
    ------
    ProgramError
        If one has more ranks than the other.

    """
    if predicted.num_ranks != measured.num_ranks:
        msg = (
            f"predicted for {predicted.num_ranks} ranks, measured on {measured.num_ranks}; "
            "expected the same ranks: run the plan at its own size"
        )
        raise ProgramError(msg)
    ranks = range(predicted.num_ranks)
    above = [TraceProcess(number=2 * rank, name=f"rank {rank} predicted") for rank in ranks]
    below = [TraceProcess(number=2 * rank + 1, name=f"rank {rank} measured") for rank in ranks]
    named = replace(measured, spans=tuple(_with_common_name(span) for span in measured.spans))
    return {
        "traceEvents": [
            *trace_events(predicted, processes=above),
            *trace_events(named, processes=below),
        ],
        "displayTimeUnit": "ms",
        "metadata": {"origins": [predicted.origin, measured.origin]},
    }


def overlay_json(predicted: Timeline, measured: Timeline) -> str:
    """Return both timelines as the text of one trace file; see :func:`overlay_trace`."""
    return json.dumps(overlay_trace(predicted, measured), separators=(",", ":"))


def _with_common_name(span: Span) -> Span:
    """Return a measured span under the name that the simulator gives such a one."""
    kind = _KIND_OF_NAME.get(span.name)
    if span.stream != "compute" or span.stage is None or kind is None:
        return span
    name = f"{span.stage}{kind}{span.microbatch}"
    return replace(span, name=name, category=PHASE_OF_KIND[kind])
