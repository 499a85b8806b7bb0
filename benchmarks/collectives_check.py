"""Hold the collective model of the catalogue against a table of measurements.

Usage: python benchmarks/collectives_check.py TABLE.csv [WORD]

The table has the columns system, nodes, gpus, collective, bytes, time_us, busbw_GBps,
library_version and notes, as nccl-tests results are usually kept; WORD picks systems. Printed is,
per system, collective and size class, the geometric mean of predicted over measured time; below 1
the model is optimistic. ``peak`` are published rates without a size, taken at 8 GiB; ``framework``
were timed with a host synchronisation per call.
"""

import sys

from collective_table import print_ratios, ratios, read_table


def main(path, word=""):
    rows, left_out = read_table(path)
    print_ratios(ratios([row for row in rows if word in row.system]))
    for (system, reason), found in sorted(left_out.items()):
        if word in system:
            print(f"not used: {len(found):3} rows of {system}: {reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
