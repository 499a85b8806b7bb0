"""The main job in one go: plan a real model for a real cluster, then plan, run and compare here."""

import argparse
import os
import sys
from pathlib import Path

from paraplan.cli import run_command_line
from paraplan.console import print_text

REAL = ("gpt2-xl", "dgx-a100-80g:2", "256", "1024")
"""Model, cluster, global batch and sequence length of the plan for a rented machine."""
HERE = ("gpt2?scale_down=4", "16", "128")
"""Model, global batch and sequence length of the plan for this machine."""


def main() -> int:
    """Run the demonstration; the exit status is that of the first verb that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    out = parser.parse_args().output.resolve()
    os.environ.setdefault("PARAPLAN_HOME", str(out / "home"))
    for title, arguments in _steps(out):
        print_text(f"\n=== {title}\n    paraplan {' '.join(arguments)}\n")
        status = run_command_line(arguments)
        if status != 0:
            return status
    print_text(
        f"\n=== Done\n    report for the cluster:     {out / 'cluster' / 'report.html'}\n"
        f"    report for this machine:    {out / 'here' / 'report.html'}\n"
        f"    timeline (ui.perfetto.dev): {out / 'cluster' / 'trace.json'}"
    )
    return 0


def _steps(out: Path) -> list[tuple[str, list[str]]]:
    model, cluster, batch, length = REAL
    local_model, local_batch, local_length = HERE
    plan = str(out / "here" / "plan.json")
    run = str(out / "here" / "run.json")
    return [
        (
            f"Plan {model} for {cluster}",
            ["plan", model, "--cluster", cluster, "--global-batch", batch, "--seq-len", length,
             "--out", str(out / "cluster")],
        ),
        (
            "Measure this machine",
            ["calibrate", "--quick"],
        ),
        (
            f"Plan {local_model} for this machine",
            ["plan", local_model, "--cluster", "local", "--global-batch", local_batch,
             "--seq-len", local_length, "--out", str(out / "here")],
        ),
        ("Run that plan", ["run", plan, "--out", run]),
        ("Predicted beside measured", ["compare", plan, run]),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
