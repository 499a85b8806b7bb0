"""Hold the operator model, as the catalogue has it, against a table of measured kernels.

Usage: python benchmarks/operators_check.py TABLE.csv [--device a100-sxm4-80gb ...]

Columns of the table: see kernel_table.py. Printed per kind and size class: median |error|, bias,
worst and number of rows; nothing is fitted.
"""

import argparse

from fit_report import SIZES, errors, groups_of, summary
from kernel_table import PROFILES, read_table

from hardware_profiles import load_device


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--device", action="append", choices=sorted(set(PROFILES.values())))
    chosen = parser.parse_args()
    rows = read_table(chosen.table)
    print("predicted / measured - 1, at the clock of each measurement: median |error|, bias,")
    print(f"worst, rows{'':29}" + "".join(f"{name:>29}" for _, name in SIZES))
    for name in chosen.device or sorted(set(PROFILES.values())):
        device = load_device(name)
        own = [row for row in rows if row.profile == name]
        for (family, label, source), group in groups_of(own).items():
            cells, least_s = "", 0.0
            for limit_s, _ in SIZES:
                size = [row for row in group if least_s <= row.time_s < limit_s]
                least_s = limit_s
                cells += f"{summary(errors(device, size)):>29}"
            print(f"{name:15} {f'{family} {label}':24.24}{source.split('/')[0][:14]:15}{cells}")


if __name__ == "__main__":
    main()
