"""Options of ``paraplan run`` that make it a training job."""

from pathlib import Path
from typing import Annotated, Any

import typer

_PANEL = "Training job (any of these)"

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", metavar="FILE.py:FUNCTION", rich_help_panel=_PANEL,
        help="Makes samples or batches (else made-up ones).",
    ),
]  # fmt: skip
SaveEvery = Annotated[
    int | None,
    typer.Option("--save-every", rich_help_panel=_PANEL, help="Steps between checkpoints."),
]
CheckpointDir = Annotated[
    Path | None,
    typer.Option("--checkpoint-dir", rich_help_panel=_PANEL, help="Folder of checkpoints."),
]
Keep = Annotated[
    int | None, typer.Option("--keep", rich_help_panel=_PANEL, help="Checkpoints to keep (2).")
]
Resume = Annotated[
    bool,
    typer.Option("--resume", rich_help_panel=_PANEL, help="Go on from the newest checkpoint."),
]
MaxRestarts = Annotated[
    int | None,
    typer.Option("--max-restarts", rich_help_panel=_PANEL, help="Restarts after a lost rank (0)."),
]
LearningRateOption = Annotated[
    float | None,
    typer.Option("--learning-rate", rich_help_panel=_PANEL, help="Peak step size (0.001)."),
]
LrSchedule = Annotated[
    str | None,
    typer.Option("--lr-schedule", rich_help_panel=_PANEL, help="constant, linear or cosine."),
]
WarmupSteps = Annotated[
    int | None, typer.Option("--warmup-steps", rich_help_panel=_PANEL, help="Steps of warm-up (0).")
]
FinalLrFraction = Annotated[
    float | None,
    typer.Option(
        "--final-lr-fraction", rich_help_panel=_PANEL, help="Where linear and cosine end (0)."
    ),
]
ClipNorm = Annotated[
    float | None,
    typer.Option("--clip-norm", rich_help_panel=_PANEL, help="Largest norm of all gradients."),
]
JobPrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", rich_help_panel=_PANEL, help="fp32, tf32, bf16 (else the plan's)."),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", rich_help_panel=_PANEL, help="Of weights, samples and dropout (0)."),
]
Log = Annotated[
    Path | None,
    typer.Option("--log", rich_help_panel=_PANEL, help="JSON Lines, one per step."),
]
LogEvery = Annotated[
    int | None,
    typer.Option("--log-every", rich_help_panel=_PANEL, help="Steps between printed lines (10)."),
]

JOB_OPTIONS = (
    "dataset", "save_every", "checkpoint_dir", "keep", "resume", "max_restarts", "learning_rate",
    "lr_schedule", "warmup_steps", "final_lr_fraction", "clip_norm", "precision", "seed", "log",
    "log_every",
)  # fmt: skip


def job_wanted(given: dict[str, Any]) -> bool:
    """Return whether any option of a job was given.

    Examples
    --------
    >>> job_wanted({"dataset": None, "resume": False}), job_wanted({"seed": 0, "resume": False})
    (False, True)
    """
    return any(value is not None and value is not False for value in given.values())
