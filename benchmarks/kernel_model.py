"""The operator model's time for measured kernels, at the launch and the clock of a measurement."""

from collections import Counter
from dataclasses import replace
from math import exp, log
from statistics import median

import numpy as np
from kernel_table import GRAPH_LAUNCH_S
from scipy.optimize import minimize

from hardware_profiles import load_software
from simulator.operators import operator_time

SOFTWARE = replace(load_software("no-overlap"), kernel_overhead_s=0.0)
FIT_FROM_S = 5e-6
"""Shorter kernels are mostly launch [s]."""
JUDGED_FROM_S = 50e-6
"""Kernels that count double in the fit [s]."""
SOFTENING = 0.03
"""Residuals below this count little: the spread of one kernel between runs [1]."""
FEW = 5
"""Fewest rows from which a value is taken."""


def as_measured(device, row, *, burst):
    """Return the device under the launch and the clock of a measurement."""
    shape = device.matmul
    if burst:
        raised = shape.sustained_efficiency / shape.sustained_clock
        shape = replace(shape, sustained_efficiency=raised)
    launch_s = min(GRAPH_LAUNCH_S, device.launch_latency_s)
    launch_s = launch_s if row.in_graph else device.launch_latency_s
    return replace(device, matmul=shape, launch_latency_s=launch_s)


def modelled_s(device, row, *, burst=None):
    """Return the model's time for a row, by default at the clock it was measured at [s]."""
    if burst is None:  # fp8 rates do not fall with the length of the kernel in any table
        burst = not row.is_sustained and row.precision != "fp8"
    machine = as_measured(device, row, burst=burst)
    software = replace(SOFTWARE, flash_version=row.version) if row.version else SOFTWARE
    return sum(operator_time(work, device=machine, software=software) for work in row.works)


def log_ratio(device, row, *, burst=None):
    return log(modelled_s(device, row, burst=burst) / row.time_s)


def loss_of(logs, rows):
    """Return the softened mean residual; sources count by the square root of their rows."""
    counts = Counter(row.source for row in rows)
    weights = np.array([
        (2.0 if row.time_s >= JUDGED_FROM_S else 1.0) / counts[row.source] ** 0.5 for row in rows
    ])  # fmt: skip
    return float(np.average(np.sqrt(np.asarray(logs) ** 2 + SOFTENING**2), weights=weights))


def minimise(loss, starts):
    options = {"maxiter": 700, "maxfev": 700, "xatol": 2e-3, "fatol": 1e-5, "adaptive": True}
    found = [minimize(loss, start, method="Nelder-Mead", options=options) for start in starts]
    return min(found, key=lambda result: result.fun)


def bisect_of(make, rows):
    """Return the factor at which the median residual is 0; time falls as the factor grows."""
    low, high = -3.0, 3.0
    for _ in range(26):
        middle = (low + high) / 2
        logs = [log_ratio(make(exp(middle)), row) for row in rows]
        low, high = (middle, high) if median(logs) > 0 else (low, middle)
    return exp((low + high) / 2)
