"""Fit the efficiencies of device profiles on measured kernels.

Usage: python benchmarks/fit_operators.py TABLE.csv [--device a100-sxm4-80gb ...] [--write]

Shapes are fitted on short measurements; the share of their rate that remains under the power limit
is taken from long kernels and from sources that time training products. No training step takes
part. With ``--write`` the values go into the catalogue, with their source and residual, and into
the profiles of devices of the same generation that nobody measured.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from fit_kernels import fit_convolution, fit_recurrent, with_attention
from fit_products import (
    fit_clock,
    fit_misaligned,
    fit_precisions,
    fit_shape,
    with_clock,
)
from fit_report import print_head, print_residuals
from fit_write import write_values
from kernel_table import PROFILES, read_table

from hardware_profiles import load_device

CATALOG = Path(__file__).parent.parent / "hardware_profiles" / "catalog" / "devices"
GENERATIONS = {
    "a100-sxm4-80gb": ("a100-sxm4-40gb", "a30"),
    "a100-pcie-80gb": ("a100-pcie-40gb",),
    "a40": ("a10", "a10g", "rtx-3090"),
    "h100-sxm5": ("h100-pcie", "h100-nvl", "h800-sxm5", "h20-sxm", "gh200"),
    "l40s": ("l4", "rtx-4090"),
    "v100-sxm2-16gb": ("v100-sxm2-32gb", "v100-sxm3-32gb", "v100-pcie-16gb", "v100-pcie-32gb"),
    "p100-pcie-16gb": ("p100-sxm2-16gb", "p40"),
}
"""Measured device to devices that take its values."""
SUSTAINED_FROM = {
    "gb200": "b200-sxm", "b300-sxm": "b200-sxm", "gb300": "b200-sxm", "h200-sxm5": "h100-sxm5",
    "rtx-pro-6000": "l40s",
}  # fmt: skip
"""Where fewer than :data:`FEW` sustained rows exist: whose share is taken."""


UNTHROTTLED = 0.98
"""Share from which long products count as running at the clock of short ones [1]."""
ATTENTION_FROM = {"h200-sxm5": "h100-sxm5", "gb200": "b200-sxm", "gb300": "b200-sxm"}
"""The same chip, measured with training kernels."""


def fit_device(device, rows, *, clocks, attention_rows):
    """Return the fitted device and what was fitted how."""
    of = {
        family: [row for row in rows if row.family == family]
        for family in ("product", "convolution", "attention", "recurrent")
    }
    fitted, notes = fit_products(device, of["product"], clocks)
    own = attention_rows.get(ATTENTION_FROM.get(device.name), of["attention"])
    fitted, notes["backward"] = with_attention(fitted, own)
    notes["attention"] = bool(own)
    fitted = replace(fitted, **fit_convolution(fitted, of["convolution"]))
    step = fit_recurrent(fitted, of["recurrent"])
    return (replace(fitted, recurrent_step_s=step) if step else fitted), notes


def fit_products(device, rows, clocks):
    """Return the device with its products fitted, and what was fitted how."""
    fitted, half = fit_shape(device, rows)
    if fitted is None:
        return device, {"products": False}
    clock, count = fit_clock(fitted, rows, half)
    if clock is not None and clock >= UNTHROTTLED:
        fitted, half = fit_shape(device, rows, with_long=True)
        clock = 1.0
    notes = {"products": True, "clock": f"{count} products of 1 ms and more", "clock_kind": None}
    if clock is None:
        other = SUSTAINED_FROM.get(device.name)
        clock = clocks.get(other, 1.0)
        notes["clock"] = f"share of {other}" if other else "no sustained products in the tables"
        notes["clock_kind"] = "derived" if other else "assumed"
    fitted = with_clock(fitted, clock)
    shape = replace(fitted.matmul, precision_shares=fit_precisions(fitted, rows, half))
    misaligned = fit_misaligned(fitted, rows)
    notes["misaligned"] = misaligned is not None
    if misaligned is not None:
        shape = replace(shape, misaligned_share=misaligned)
    return replace(fitted, matmul=shape), notes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--device", action="append", choices=sorted(set(PROFILES.values())))
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    rows = read_table(chosen.table)
    print_head()
    clocks = {}
    attention_rows = {
        name: [row for row in rows if row.profile == name and row.family == "attention"]
        for name in ATTENTION_FROM.values()
    }
    names = sorted(set(PROFILES.values()), key=lambda name: (name in SUSTAINED_FROM, name))
    for name in chosen.device or names:
        own = [row for row in rows if row.profile == name]
        before = load_device(name)
        after, notes = fit_device(before, own, clocks=clocks, attention_rows=attention_rows)
        clocks[name] = after.matmul.sustained_clock
        print_residuals(before, after, rows=own)
        if chosen.write:
            write_values(CATALOG / f"{name}.toml", after, rows=own, notes=notes)
            for other in GENERATIONS.get(name, ()):
                write_values(CATALOG / f"{other}.toml", after, rows=own, notes=notes, of=name)


if __name__ == "__main__":
    main()
