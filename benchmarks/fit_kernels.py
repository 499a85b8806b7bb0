"""Fit attention, convolutions and recurrent layers."""

from dataclasses import replace
from math import exp, log

from kernel_model import (
    FEW,
    FIT_FROM_S,
    JUDGED_FROM_S,
    bisect_of,
    log_ratio,
    loss_of,
    minimise,
)
from kernel_table import SERVING

from hardware_profiles.device import AttentionEfficiency

FAST_AREAS = (9, 25)
"""Filters of 3x3 and 5x5 [1]."""
NARROW = 64.0
"""Shortest inner loop of a convolution that takes part in the fit [elements]."""
BACKWARD_SHARE = 0.87
"""Backward over forward rate where no backward pass was measured: FlashAttention-2 on H100 (Dao
2023, figures of the flash-attention repository) [1]."""


def fit_attention(device, rows, version):
    """Fit forward and backward rate and half width of one version of the fused kernel."""
    used = [row for row in rows if row.version == version and row.time_s >= FIT_FROM_S]
    training = [row for row in used if row.source not in SERVING]
    used = training if len(training) >= FEW else used
    if len(used) < FEW:
        return None
    has_backward = any(work.backward for row in used for work in row.works)
    alone = any(work.backward for row in used for work in row.works if len(row.works) == 1)
    has_widths = len({work.k for row in used for work in row.works}) > 1

    def made(values):
        return AttentionEfficiency(
            forward=float(exp(values[0])),
            backward=float(exp(values[1])) if has_backward else float(exp(values[0])),
            half_width=float(exp(values[2])) if has_widths and values[2] > 0 else 0.0,
        )

    def loss(values):
        fitted = replace(device, attention_kernels={version: made(values)})
        logs = [log_ratio(fitted, row, burst=False) for row in used]
        bound = 0.01 * max(0.0, values[2] - log(200)) ** 2
        if not alone:  # sums of both directions leave the ratio open
            bound += (values[1] - values[0] - log(BACKWARD_SHARE)) ** 2
        return loss_of(logs, used) + bound

    best = minimise(loss, [[log(0.5), log(0.4), log(20.0)]])
    return made(best.x), has_backward


def with_attention(device, rows):
    """Return the device with all versions of the kernel, and which had a measured backward."""
    kernels = {}
    measured_backward = {}
    for version in (1, 2, 3):
        found = fit_attention(device, rows, version)
        if found:
            kernels[version], measured_backward[version] = found
    known = [v for v, measured in measured_backward.items() if measured]
    ratio = kernels[known[-1]].backward / kernels[known[-1]].forward if known else BACKWARD_SHARE
    for version, kernel in kernels.items():
        if not measured_backward[version]:
            kernels[version] = replace(kernel, backward=kernel.forward * ratio)
    base = kernels.pop(2, None) or (kernels[3] if 3 in kernels and not device.attention_kernels
                                    else None)  # fmt: skip
    if base is not None:
        device = replace(
            device, attention_forward_efficiency=base.forward,
            attention_backward_efficiency=base.backward, attention_half_width=base.half_width,
        )  # fmt: skip
    return replace(device, attention_kernels=kernels), measured_backward


def fit_convolution(device, rows):
    """Return the share of a plain product's rate, the gain of fast fp32 algorithms and the time of
    a kernel beside its arithmetic, fitted together: small images would else hide the gain.
    """
    rows = [row for row in rows if row.time_s >= JUDGED_FROM_S and row.works[0].k >= NARROW]
    if len(rows) < FEW:
        return {}
    has_fast = any(
        row.precision == "fp32" and row.works[0].filter_area in FAST_AREAS for row in rows
    )

    def made(values):
        gain = exp(values[2]) if has_fast else device.convolution_gain
        return {
            "convolution_share": float(min(2.0, exp(values[0]))),
            "convolution_time_s": float(exp(values[1])) * 1e-6,
            "convolution_gain": float(gain),
        }

    def loss(values):
        fitted = replace(device, **made(values))
        return loss_of([log_ratio(fitted, row) for row in rows], rows)

    best = minimise(loss, [[log(0.8), log(30.0), log(2.0)], [0.0, log(60.0), log(1.5)]])
    return made(best.x)


def fit_recurrent(device, rows):
    """Return the time of one dependent step [s]."""
    if len(rows) < FEW:
        return None
    return 1e-5 / bisect_of(lambda f: replace(device, recurrent_step_s=1e-5 / f), rows)
