"""Fit TPU profiles on micro-benchmarks and on the published steps marked ``calibrate``.

Products of Ironwood come first. What no micro-benchmark shows (rates of v4, v5e and v5p, fused
attention, what XLA hides) comes from the calibration cases in ``planner/validation/cases``, each
parameter held near its prior.
Cases that judge are not read. Prints parameters and residuals; writes nothing.

Usage: python benchmarks/fit_tpu.py ../shared/data/kernels_measured.csv
"""

import csv
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from hardware_profiles import load_software
from hardware_profiles.device import DeviceProfile, Precision
from hardware_profiles.device_file import load_device
from hardware_profiles.software import SoftwareProfile
from paraplan.planning import Options, make_problem
from planner.evaluation import evaluate
from planner.layout_choice import layout_that_fits
from planner.problem import PriceBook, Problem
from planner.strategy import parse_strategy
from planner.validation.case_file import load_groups
from simulator.operators import operator_time
from simulator.work import Work

STACK = "maxtext"
WIDE = ("tpu-v6e-chip", "tpu-v7-chip")
"""Generations with an array of 256 x 256, which a head of 128 fills by half."""
PRIORS: Mapping[str, tuple[float, float, float]] = {
    "sustained tpu-v4-chip": (0.88, 0.05, 0.96),
    "sustained tpu-v5e-chip": (0.88, 0.05, 0.96),
    "sustained tpu-v5p-chip": (0.88, 0.05, 0.96),
    "sustained tpu-v6e-chip": (0.86, 0.05, 0.92),
    "attention of 128-wide arrays": (0.40, 0.3, 0.8),
    "attention tpu-v6e-chip": (0.40, 0.3, 0.8),
    "attention tpu-v7-chip": (0.40, 0.3, 0.8),
    "compute slowdown": (1.2, 0.15, 2.0),
    "overlap of tensor parallelism": (0.6, 0.3, 1.0),
    "int8 share": (0.8, 0.1, 1.0),
    "fp8 share": (0.9, 0.1, 1.0),
}
"""Prior, its relative spread, and the largest value. Trillium multiplies at 0.82 of its peak timed
by the host and 0.90 in the device trace: its prior lies between."""
_BACKWARD = 0.35 / 0.45
"""Rate of the backward attention kernel over the forward one, as in the shipped profiles [1]."""
_EDGE = 256.0
"""Edge of the array of Ironwood, and the longest fill of its inner loop [elements]."""
_LARGE, _SMALL_WEIGHT = 2048, 0.3
"""Products of training are large: smaller ones count less [elements], [1]."""
_NOISE = 0.02
"""Spread of a published step time [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """One published step that may be fitted."""

    name: str
    problem: Problem
    strategy: str
    step_time_s: float


def half_chip(
    device: DeviceProfile, *, sustained: float, half_k: float, kernel_s: float
) -> DeviceProfile:
    """Return one TensorCore of a chip that has two, with another shape of products."""
    return replace(
        device,
        peak_flops_per_s={key: peak / 2 for key, peak in device.peak_flops_per_s.items()},
        memory_bandwidth_bytes_per_s=device.memory_bandwidth_bytes_per_s / 2,
        num_compute_units=device.num_compute_units // 2,
        matmul=replace(
            device.matmul, sustained_efficiency=sustained, half_k=half_k, kernel_time_s=kernel_s
        ),
    )


def square_product(size: float) -> Work:
    """Return a product of bf16 matrices of one size."""
    return Work(
        kind="matmul", num_flops=2 * size**3, memory_bytes=3 * 2 * size**2, precision="bf16",
        m=size, n=size, k=size,
    )  # fmt: skip


def fit_products(table: Path) -> None:
    """Fit and print the products of one Ironwood core."""
    with table.open(encoding="utf-8") as text:
        rows = [
            (float(row["shape"].split("=")[-1]), float(row["time_us"]) * 1e-6)
            for row in csv.DictReader(text)
            if row["kind"] == "gemm" and row["device"].startswith("TPU7x")
        ]
    chip, stack = load_device("tpu-v7-chip"), load_software(STACK)

    def errors(x: np.ndarray, *, small: float = _SMALL_WEIGHT) -> list[float]:
        core = half_chip(chip, sustained=x[0], half_k=x[1], kernel_s=x[2] * 1e-6)
        return [
            log(operator_time(square_product(size), device=core, software=stack) / measured_s)
            * (small if size < _LARGE else 1.0)
            for size, measured_s in rows
        ]

    found = least_squares(errors, (0.83, 100.0, 0.3), bounds=((0.5, 1.0, 0.0), (1.0, _EDGE, 5.0)))
    print(
        f"Ironwood products: sustained {found.x[0]:.3f}, half_k {found.x[1]:.0f}, "
        f"kernel_time {found.x[2]:.2f} us"
    )
    for (size, measured_s), error in zip(rows, errors(found.x, small=1.0), strict=True):
        print(f"    {size:7.0f} cubed {measured_s * 1e6:10.1f} us  {100 * np.expm1(error):+6.1f} %")


def calibrations() -> list[Calibration]:
    """Return the cases of the TPU family that may be fitted and run on the fitted stack."""
    found = []
    for group in load_groups(family="tpu"):
        for case in group.cases:
            if case.role != "calibrate" or case.options.get("software") != STACK:
                continue
            if case.step_time_s is None:
                continue
            options = Options(**case.options)
            found.append(
                Calibration(
                    name=f"{group.name}:{case.id}", problem=make_problem(options),
                    strategy=options.strategy, step_time_s=case.step_time_s,
                )
            )  # fmt: skip
    return found


def changed_device(device: DeviceProfile, values: Mapping[str, float]) -> DeviceProfile:
    """Return a device with the parameters under trial."""
    wide = device.name in WIDE
    forward = values[f"attention {device.name}" if wide else "attention of 128-wide arrays"]
    shape = device.matmul
    shares: dict[Precision, float] = {
        "int8": values["int8 share"] if device.name == "tpu-v5p-chip" else 1.0,
        "fp8": values["fp8 share"] if wide else 1.0,
    }
    return replace(
        device,
        attention_forward_efficiency=forward,
        attention_backward_efficiency=forward * _BACKWARD,
        matmul=replace(
            shape,
            sustained_efficiency=values.get(f"sustained {device.name}", shape.sustained_efficiency),
            precision_shares={**shape.precision_shares, **shares},
        ),
    )


def changed_software(software: SoftwareProfile, values: Mapping[str, float]) -> SoftwareProfile:
    """Return the stack with the parameters under trial."""
    return replace(
        software,
        compute_slowdown=values["compute slowdown"],
        overlap_tensor_parallel=values["overlap of tensor parallelism"],
    )


def predicted_s(
    case: Calibration,
    *,
    device: Callable[[DeviceProfile], DeviceProfile] = lambda same: same,
    software: Callable[[SoftwareProfile], SoftwareProfile] = lambda same: same,
) -> float:
    """Return the closed form of one case with other profiles [s]."""
    cluster = case.problem.cluster
    groups = tuple(replace(group, device=device(group.device)) for group in cluster.node_groups)
    problem = replace(
        case.problem,
        cluster=replace(cluster, node_groups=groups),
        software=software(case.problem.software),
    )
    book = PriceBook(problem=problem)
    strategy = parse_strategy(case.strategy)
    return evaluate(book, strategy, layout_that_fits(book, strategy)).step.step_time_s


def fit_steps() -> None:
    """Fit and print what only whole steps show."""
    cases = calibrations()

    def values_of(x: np.ndarray) -> dict[str, float]:
        return dict(zip(PRIORS, np.exp(x).tolist(), strict=True))

    def errors(x: np.ndarray) -> list[float]:
        values = values_of(x)
        steps = [
            log(
                predicted_s(
                    case,
                    device=lambda device: changed_device(device, values),
                    software=lambda software: changed_software(software, values),
                )
                / case.step_time_s
            )
            / _NOISE
            for case in cases
        ]
        held = [
            (log(values[name]) - log(prior)) / spread for name, (prior, spread, _) in PRIORS.items()
        ]
        return steps + held

    start = np.array([log(prior) for prior, _, _ in PRIORS.values()])
    limits = np.array([log(largest) for _, _, largest in PRIORS.values()])
    found = least_squares(
        errors, start, bounds=(start - 1.0, limits), diff_step=(1e-3,) * len(start), max_nfev=12
    )
    for name, value in values_of(found.x).items():
        print(f"    {name:32s} {value:.3f}")
    after = errors(found.x)
    for case, error in zip(cases, after, strict=False):
        before = predicted_s(case) / case.step_time_s - 1
        print(
            f"    {case.name:40s} shipped {100 * before:+6.1f} %  "
            f"fitted {100 * np.expm1(error * _NOISE):+6.1f} %"
        )


def main() -> None:
    """Run both fits."""
    fit_products(Path(sys.argv[1]))
    fit_steps()


if __name__ == "__main__":
    main()
