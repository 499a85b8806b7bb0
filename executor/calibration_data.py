"""What a calibration measures: samples, as they travel from the processes to the fit."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SAMPLES_FILE = "samples.json"
REQUEST_FILE = "calibration.json"
CPU = "cpu"
"""Statistic of what is measured by CPU time."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One measured time, mean over the processes that took part."""

    kind: str
    """``matmul``, ``copy``, ``launch``, ``vector``, ``attention``, ``convolution`` (both also with
    ``_backward``), ``element:NAME``, ``optimizer:NAME``, ``calls``, ``plain_calls``,
    ``sharded_calls``, ``plain_units``, ``sharded_units``, ``redistribute``, ``round_trip``,
    ``scratch``, or a collective."""
    shape: tuple[int, ...]
    """Sizes of the kernel; for communication (ranks, bytes)."""
    precision: str
    time_s: float
    """By ``statistic`` [s]."""
    statistic: str
    """``cpu`` median of CPU time, which others who use the machine stretch little; for what waits
    on other processes the ``mean`` of time by the clock, or ``p10``, the 10th percentile, where
    others used the machine."""
    spread: float
    """90th percentile over median [1]."""
    repetitions: int
    foreign_load_cores: float

    @property
    def is_noisy(self) -> bool:
        """Whether kernels' repetitions disagree, or others used the machine while processes waited.

        Messages differ from one to the next also on an idle machine, hence their mean.
        """
        if self.statistic == CPU:
            return self.spread > NOISY_SPREAD
        return self.foreign_load_cores > NOISY_CORES


NOISY_CORES = 0.15
"""Foreign load above which a sample is flagged [cores]; below it, single-thread products repeat
within 10 %."""
NOISY_SPREAD = 1.5
"""Spread above which a sample is flagged [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationRequest:
    """What the processes are asked to measure."""

    quick: bool
    num_processes: int


def write_samples(path: Path, samples: list[Sample]) -> None:
    """Write samples as JSON."""
    path.write_text(json.dumps([asdict(sample) for sample in samples]), encoding="utf-8")


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Read what :func:`write_samples` wrote."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Sample(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries)
