"""Measure this machine and write it as the cluster ``local``."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from executor.calibration_data import (
    REQUEST_FILE,
    SAMPLES_FILE,
    CalibrationRequest,
    Sample,
    read_samples,
)
from executor.errors import RunError
from executor.launch import Progress, launch
from executor.result import write_atomically
from executor.shape import MAX_LOCAL_PROCESSES
from hardware_profiles import cluster_to_toml, paraplan_home
from hardware_profiles.catalog_index import MEASURED_SOFTWARE

PROFILE_PATH = ("profiles", "local.toml")


def calibrate(
    *, quick: bool = False, processes: int | None = None, progress: Progress | None = None
) -> Path:
    """Measure kernels and messages on this machine and write ``local.toml``.

    The machine becomes one node of ``processes`` devices. A device is a process of one thread,
    measured while all of them run: with more processes than cores, each gets its share of a core,
    and a plan that uses fewer of them runs faster than predicted.

    Parameters
    ----------
    quick : bool
        Shorter repetitions: under a minute instead of some minutes.
    processes : int, optional
        Devices of the profile; one per core, at least 2 and at most 8, where left out [1].
    progress : callable, optional
        Told ``(what, done, total)`` after each measurement.

    Returns
    -------
    Path
        The profile, which ``--cluster local`` reads.

    Raises
    ------
    RunError
        If a process failed or ``processes`` is out of range.
    """
    count = processes or max(2, min(MAX_LOCAL_PROCESSES, os.cpu_count() or 1))
    if count < 1 or count > MAX_PROCESSES:
        raise RunError(f"processes={count}: expected 1 to {MAX_PROCESSES}; change --processes")
    samples = measure(quick=quick, processes=count, progress=progress)
    from executor.calibration_fit import fit_cluster
    from executor.calibration_software import fit_software, software_to_toml

    command = f"paraplan calibrate{' --quick' if quick else ''} --processes {count}"
    cluster = fit_cluster(samples, num_processes=count, command=command)
    path = paraplan_home().joinpath(*PROFILE_PATH)
    software = fit_software(samples, cluster=cluster, command=command)
    write_atomically(path, cluster_to_toml(cluster))
    write_atomically(path.with_name(MEASURED_SOFTWARE), software_to_toml(software, command=command))
    noisy = [sample for sample in samples if sample.is_noisy]
    if noisy and progress is not None:
        progress(
            f"{len(noisy)} of {len(samples)} samples are noisy: other programs ran meanwhile; "
            "calibrate again on a quiet machine",
            len(samples),
            len(samples),
        )
    return path


MAX_PROCESSES = 64
"""More processes than this on one machine measure the scheduler, not the machine [1]."""


def measure(*, quick: bool, processes: int, progress: Progress | None = None) -> tuple[Sample, ...]:
    """Run the measuring processes and return their samples."""
    with tempfile.TemporaryDirectory(prefix="paraplan-calibrate-") as folder:
        run_dir = Path(folder)
        request = CalibrationRequest(quick=quick, num_processes=processes)
        (run_dir / REQUEST_FILE).write_text(json.dumps(asdict(request)), encoding="utf-8")
        launch(
            "executor.calibration_worker:run_calibration_rank", run_dir, num_processes=processes,
            threads_per_process=1, progress=progress or (lambda what, done, total: None),
        )  # fmt: skip
        return read_samples(run_dir / SAMPLES_FILE)
