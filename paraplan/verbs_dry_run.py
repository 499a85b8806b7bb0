"""``run --dry-run``: torch's collectives at the plan's real world size, beside the simulator's."""

from pathlib import Path

from paraplan.console import EXIT_FAILED, print_json, print_text, progress_bar


def dry_run_verb(plan_file: Path, *, timeout_s: float, as_json: bool) -> None:
    """Count what torch issues for a plan and compare it; exit status 1 where they differ."""
    from executor.dry_run import dry_run
    from executor.dry_run_text import dry_run_text, dry_run_to_json
    from planner.plan import load_plan

    plan = load_plan(plan_file)
    with progress_bar(quiet=as_json) as progress:
        result = dry_run(plan, timeout_s=timeout_s, progress=progress)
    if as_json:
        print_json(dry_run_to_json(result))
    else:
        print_text(dry_run_text(result))
    if not result.matches:
        raise SystemExit(EXIT_FAILED)
