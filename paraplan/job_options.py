"""Options of ``paraplan run`` that make it a training job."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_option = partial(typer.Option, rich_help_panel="Training job (any of these)")

Dataset = Annotated[
    str | None,
    _option(
        "--dataset",
        metavar="FILE.py:FUNCTION",
        help="Makes samples or batches (else made-up ones).",
    ),
]
SaveEvery = Annotated[int | None, _option("--save-every", help="Steps between checkpoints.")]
CheckpointDir = Annotated[Path | None, _option("--checkpoint-dir", help="Folder of checkpoints.")]
Keep = Annotated[int | None, _option("--keep", help="Checkpoints to keep (2).")]
Resume = Annotated[bool, _option("--resume", help="Go on from the newest checkpoint.")]
MaxRestarts = Annotated[
    int | None, _option("--max-restarts", help="Restarts after a lost rank (0).")
]
LearningRateOption = Annotated[
    float | None, _option("--learning-rate", help="Peak step size (0.001).")
]
LrSchedule = Annotated[str | None, _option("--lr-schedule", help="constant, linear or cosine.")]
WarmupSteps = Annotated[int | None, _option("--warmup-steps", help="Steps of warm-up (0).")]
FinalLrFraction = Annotated[
    float | None, _option("--final-lr-fraction", help="Where linear and cosine end (0).")
]
ClipNorm = Annotated[float | None, _option("--clip-norm", help="Largest norm of all gradients.")]
Seed = Annotated[int | None, _option("--seed", help="Of weights, samples and dropout (0).")]
Log = Annotated[Path | None, _option("--log", help="JSON Lines, one per step.")]
LogEvery = Annotated[int | None, _option("--log-every", help="Steps between printed lines (10).")]

JOB_OPTIONS = (
    "dataset", "save_every", "checkpoint_dir", "keep", "resume", "max_restarts", "learning_rate",
    "lr_schedule", "warmup_steps", "final_lr_fraction", "clip_norm", "seed", "log", "log_every",
)  # fmt: skip
