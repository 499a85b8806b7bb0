"""What a training job is asked for beside the run itself."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from executor.errors import RunError
from executor.learning_rate import LearningRate, check_learning_rate
from executor.settings import RunPrecision

JOB_SETTINGS_FILE = "job-settings.json"
Start = Literal["new", "resume", "resume_if_saved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSettings:
    """A training job, as it travels from the launcher to its ranks."""

    learning_rate: LearningRate
    dataset: str = ""
    """``path/to/file.py:function``; "" for made-up batches."""
    checkpoint_dir: str = ""
    """Folder of checkpoints; "" for none."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves after the last one only [1]."""
    keep: int = 2
    """Checkpoints to keep [1]."""
    start: Start = "new"
    clip_norm: float | None = None
    """Largest norm of all gradients [1]."""
    precision: RunPrecision = "fp32"
    """Of weights and activations in kernels; masters, gradient sums and optimizer are fp32."""
    log_path: str = ""
    """JSON Lines, one per step; "" for none."""
    log_every: int = 10
    """Steps between printed lines [1]."""
    attempt: int = 0
    """How often the job was restarted [1]."""


def check_job(job: JobSettings, *, steps: int, max_restarts: int) -> None:
    """Refuse a job that cannot be meant, before anything starts.

    Raises
    ------
    RunError
        With the flag, what was found and what is expected.
    """
    check_learning_rate(job.learning_rate, steps=steps)
    if job.dataset:
        dataset_file(job.dataset)
    for flag, found, least in (("--save-every", job.save_every, 0), ("--keep", job.keep, 1),
                               ("--log-every", job.log_every, 1),
                               ("--max-restarts", max_restarts, 0)):  # fmt: skip
        if found < least:
            raise RunError(f"{flag} is {found}; expected at least {least}")
    if not job.checkpoint_dir and (job.save_every or job.start == "resume"):
        flag = "--save-every" if job.save_every else "--resume"
        raise RunError(f"{flag} needs a place: add --checkpoint-dir DIR")
    if job.clip_norm is not None and not job.clip_norm > 0:
        raise RunError(f"--clip-norm is {job.clip_norm}; expected a number above 0")


def dataset_file(text: str) -> tuple[Path, str]:
    """Return file and function of ``path/to/file.py:function``.

    Raises
    ------
    RunError
        If the text has another form, or the file is missing.
    """
    path_text, separator, name = text.rpartition(":")
    path = Path(path_text)
    if not separator or path.suffix != ".py" or not name:
        raise RunError(f"--dataset {text}: expected path/to/file.py:function")
    if not path.is_file():
        raise RunError(f"--dataset {text}: no file {path}; expected a Python file with {name}()")
    return path, name


def job_to_json(job: JobSettings) -> str:
    """Return the text that :func:`load_job` reads."""
    return json.dumps(asdict(job))


def load_job(path: str | Path) -> JobSettings:
    """Read settings written by :func:`job_to_json`."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    return JobSettings(learning_rate=LearningRate(**data.pop("learning_rate")), **data)
