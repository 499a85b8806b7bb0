"""``python -m executor PLAN.json``: one rank under torchrun, or the whole run without it."""

import argparse
import json
import os
import sys

from executor.result import result_to_json
from executor.run import DEFAULT_TIMEOUT_S, run_plan
from hardware_profiles.errors import ParaplanError
from planner.plan import load_plan

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: list[str] | None = None) -> int:
    """Run a plan file; the result goes to standard output as JSON."""
    parser = argparse.ArgumentParser(prog="python -m executor", description="Run a plan file.")
    parser.add_argument("plan")
    parser.add_argument("--scale-down", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S)
    parser.add_argument("--global-batch", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--output")
    given = parser.parse_args(arguments)
    try:
        result = run_plan(
            load_plan(given.plan), scale_down=given.scale_down, steps=given.steps,
            num_processes=given.processes, timeout_s=given.timeout,
            global_batch_size=given.global_batch, seed=given.seed, check=not given.no_check,
            output=given.output, progress=lambda what, done, total: print(what, file=sys.stderr),  # noqa: T201
        )  # fmt: skip
    except ParaplanError as error:
        where = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        print(f"{where}{error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("interrupted; all processes are ended", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    if result is None:
        return 0
    print(json.dumps(result_to_json(result)))  # noqa: T201
    return 1 if result.passed is False else 0


if __name__ == "__main__":
    sys.exit(main())
