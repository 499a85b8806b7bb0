"""Fit the rate, the shape and the precisions of matrix products."""

from dataclasses import replace
from math import exp, log
from statistics import median

import numpy as np
from kernel_model import FEW, FIT_FROM_S, JUDGED_FROM_S, as_measured, log_ratio, loss_of, minimise
from kernel_table import LONG_S, SUSTAINED

FEW_SUSTAINED = 8
"""Fewest long products that tell a clock: they scatter by a third [1]."""
TILE = (256, 128)
"""Largest output tile of cuBLAS on tensor cores, two warp groups (CUTLASS, "Efficient GEMM")."""


def main_precision(rows):
    """Return the precision that most products have, of those with shape rows."""
    names = [row.precision for row in rows if row.precision in ("bf16", "fp16")]
    return names[0] if names else "fp32"


def fit_shape(device, rows, *, with_long=False):
    """Fit rate, inner ramp, operand cost and kernel time on all products but long bursts.

    Sources at a sustained clock have a rate of their own, which is dropped.
    """
    half = {"bf16", "fp16"} if main_precision(rows) != "fp32" else {"fp32"}
    used = [
        row for row in rows
        if row.precision in half and row.time_s >= FIT_FROM_S and row.works[-1].aligned
        and (with_long or row.source in SUSTAINED or not row.is_sustained)
    ]  # fmt: skip
    if len(used) < FEW:
        return None, half
    short = [row.source for row in used if not row.is_sustained]
    levelled = [] if with_long else sorted({row.source for row in used if row.is_sustained})
    levelled = levelled if short else levelled[1:]
    tile_m, tile_n = TILE

    def made(values):
        rate, half_k, cost, kernel_s = np.exp(values[:4])
        shape = replace(
            device.matmul, sustained_efficiency=float(rate), half_k=float(half_k),
            operand_cost=float(cost), kernel_time_s=float(kernel_s), sustained_clock=1.0,
            tile_m=tile_m, tile_n=tile_n, precision_shares={},
        )  # fmt: skip
        return replace(device, matmul=shape)

    def loss(values):
        fitted = made(values)
        levels = dict(zip(levelled, values[4:], strict=True))
        machines = {
            source: _at_level(fitted, exp(levels.get(source, 0.0)))
            for source in {row.source for row in used}
        }
        logs = [log_ratio(machines[row.source], row, burst=False) for row in used]
        bound = max(0.0, values[0]) ** 2 + 0.02 * max(0.0, values[2] - log(150)) ** 2
        return loss_of(logs, used) + bound

    extra = [-0.1] * len(levelled)
    starts = [
        [log(0.85), log(k), log(c), log(2e-6), *extra] for k, c in ((60, 8), (250, 40), (250, 4))
    ]
    best = minimise(loss, starts)
    return made(best.x), half


def _at_level(device, level):
    """Return the device with another product rate."""
    rate = device.matmul.sustained_efficiency * level
    return replace(device, matmul=replace(device.matmul, sustained_efficiency=rate))


def fit_clock(device, rows, half):
    """Return the share of the short rate that sustained products reach, and their number."""
    used = [row for row in rows if row.precision in half and row.time_s >= LONG_S]
    if all(row.is_sustained for row in rows):
        return 1.0, len(used)
    if len(used) < FEW_SUSTAINED:
        return None, len(used)
    return exp(-bisect(device, used)), len(used)


def bisect(device, rows):
    """Return the log of the slow-down of the product rate at which the median residual is 0."""
    low, high = -2.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        shape = device.matmul
        slower = replace(shape, sustained_efficiency=shape.sustained_efficiency * exp(-middle))
        machine = replace(device, matmul=slower)
        logs = [log_ratio(machine, row, burst=False) for row in rows]
        low, high = (middle, high) if median(logs) < 0 else (low, middle)
    return (low + high) / 2


def with_clock(device, clock):
    shape = device.matmul
    rate = min(1.0, shape.sustained_efficiency * min(1.0, clock))
    return replace(
        device,
        matmul=replace(shape, sustained_efficiency=rate, sustained_clock=min(1.0, clock)),
    )


def fit_precisions(device, rows, half):
    """Return the factor of every other precision: from sustained rows where there are a few."""
    shares = {}
    for precision in sorted({row.precision for row in rows} - set(half)):
        used = [row for row in rows if row.precision == precision and row.works[-1].aligned]
        used = [row for row in used if row.time_s >= JUDGED_FROM_S]
        sustained = [row for row in used if row.is_sustained]
        used = sustained if len(sustained) >= FEW else [r for r in used if not r.is_sustained]
        if len(used) < FEW or precision not in device.peak_flops_per_s:
            continue
        burst = not used[0].is_sustained and precision != "fp8"
        machine = as_measured(device, used[0], burst=burst)
        shares[precision] = exp(-bisect(replace(device, matmul=machine.matmul), used))
    return shares


def fit_misaligned(device, rows):
    """Return the share of the rate that misaligned tensor-core products reach."""
    used = [
        row for row in rows
        if not row.works[-1].aligned and row.precision in ("fp16", "bf16")
        and row.time_s >= JUDGED_FROM_S
    ]  # fmt: skip
    if len(used) < FEW:
        return None
    return min(1.0, exp(-bisect(as_measured(device, used[0], burst=True), used)))
