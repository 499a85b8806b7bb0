"""Verbs that execute: run, calibrate, compare."""

from pathlib import Path
from typing import Any

from paraplan.console import EXIT_FAILED, print_json, print_text, progress_bar
from paraplan.run_options import (
    RunOptions,
    check_dry_run_options,
    check_run_options,
    job_wanted,
)
from planner.errors import StrategyError


def execute_verb(options: RunOptions, *, job: dict[str, Any], dry_run: bool) -> None:
    """Run a plan dry, as a training job where any option of one is given, or as a checked run."""
    check_run_options(options)
    if dry_run:
        from paraplan.verbs_dry_run import dry_run_verb

        check_dry_run_options(options, is_job=job_wanted(job))
        dry_run_verb(options.plan_file, timeout_s=options.timeout_s, as_json=options.as_json)
    elif job_wanted(job):
        from paraplan.verbs_job import job_verb

        job_verb(options, job)
    else:
        run_verb(options)


def run_verb(options: RunOptions) -> None:
    """Execute a plan here, or this process's rank of it under torchrun."""
    from executor.result import result_to_json
    from executor.run import run_plan
    from executor.settings import run_precision
    from planner.plan import load_plan

    plan = load_plan(options.plan_file)
    target = options.out or options.plan_file.with_name("run.json")
    with progress_bar(quiet=options.as_json) as progress:
        result = run_plan(
            plan,
            scale_down=options.scale_down,
            steps=options.steps,
            num_processes=options.processes,
            timeout_s=options.timeout_s,
            check=options.check is not False,
            precision=run_precision(plan.workload.precision, options.precision or "fp32"),
            output=target,
            progress=progress,
        )
    if result is None:
        return
    if options.as_json:
        print_json(result_to_json(result))
    else:
        print_text(_told(result, target))
    if result.passed is False:
        raise SystemExit(EXIT_FAILED)


def _told(result: Any, target: Path) -> str:
    axes = " x ".join(f"{axis}={size}" for axis, size in result.axes) or "one process"
    lines = [
        f"ran {result.model} as {axes} on {result.num_processes} processes "
        f"({result.backend}, {result.precision})",
        f"step {result.measured_step_time_s:.3f} s, "
        f"peak {result.peak_memory_bytes / 1e6:.0f} MB per rank, "
        f"losses {', '.join(f'{loss:.5f}' for loss in result.losses)}",
    ]
    if result.passed is not None:
        verdict = "equal to one process" if result.passed else "NOT equal to one process"
        lines.append(
            f"{verdict}: largest loss difference {result.max_loss_difference:.2g}, "
            f"largest gradient difference {result.max_gradient_difference:.2g}"
        )
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join([*lines, f"Written: {target}"])


def calibrate_verb(*, quick: bool, processes: int | None, as_json: bool) -> None:
    """Measure this machine into the profile that ``--cluster local`` uses."""
    from executor.calibrate import calibrate
    from hardware_profiles import load_cluster

    if processes is not None and processes < 1:
        raise StrategyError(f"--processes is {processes}; expected at least 1")
    with progress_bar(quiet=as_json) as progress:
        path = calibrate(quick=quick, processes=processes, progress=progress)
    cluster = load_cluster(str(path))
    origins = {**cluster.device.provenance, **cluster.intra.link.provenance, **cluster.provenance}
    noisy = sorted(name for name, origin in origins.items() if "NOISY" in origin.note)
    if as_json:
        print_json({"profile": str(path), "num_devices": cluster.num_devices, "noisy": noisy})
        return
    if noisy:
        print_text(f"NOISY, calibrate again on a quiet machine: {', '.join(noisy)}")
    print_text(f"Written: {path}; use it with --cluster local")


def compare_verb(plan_file: Path, run_file: Path, *, trace: Path | None, as_json: bool) -> None:
    """Print predicted beside measured, of a run or a job; write both timelines as one trace."""
    from executor.compare import compare, comparison_notes, comparison_table
    from executor.compare_job import compare_job, load_job_if_one
    from executor.result import load_run
    from planner.plan import load_plan

    plan, job = load_plan(plan_file), load_job_if_one(run_file)
    notes: list[str] = []
    if job is not None:
        if trace is not None:
            raise StrategyError(
                f"--trace: {run_file} is of a job, which records no timeline; give the run.json of "
                "'paraplan run' without options of a job"
            )
        rows = compare_job(plan, job)
    else:
        run = load_run(run_file)
        rows = compare(plan, run)
        notes = comparison_notes(plan, run)
        if trace is not None:
            notes += _write_overlay(plan_file, plan, run, trace)
    if as_json:
        print_json({"rows": [dict(row) for row in rows], "notes": notes})
    else:
        print_text("\n".join([comparison_table(rows), *notes]))


def _write_overlay(plan_file: Path, plan: Any, run: Any, trace: Path) -> list[str]:
    """Write the trace of a plan and its run; return what to tell."""
    from paraplan.planning import simulate_plan
    from planner.whole_file import write_whole
    from simulator.exports.overlay import overlay_json

    now, timeline = simulate_plan(plan_file, detail="full")
    text = overlay_json(timeline, run.timeline)
    write_whole(trace, text, error=StrategyError, makes_folders=True)
    told = [f"Written: {trace}; open it at https://ui.perfetto.dev"]
    then_s, now_s = (p.prediction.get("step_time_s") for p in (plan, now))
    if then_s != now_s:
        told.insert(0, f"note: the trace shows what is predicted now, {now_s:.4f} s; "
                       f"profiles changed since the plan, which says {then_s:.4f} s")  # fmt: skip
    return told


def matrix_verb(*, write_docs: bool, steps: int, only: str | None, as_json: bool) -> None:
    """Measure small models under many strategies here; print predicted beside measured."""
    from dataclasses import asdict

    from executor.matrix import residuals_of, run_matrix, summarize
    from executor.matrix_cases import MatrixCase, matrix_cases
    from executor.matrix_table import matrix_document, matrix_text
    from hardware_profiles import load_cluster
    from paraplan.planning import Options, simulate
    from planner.machine_residuals import profile_of, save_residuals
    from planner.plan import Plan
    from planner.whole_file import write_whole

    def plan_of(case: MatrixCase) -> Plan:
        return simulate(
            Options(model=case.model, cluster="local", global_batch=case.global_batch_size,
                    seq_len=case.sequence_length, strategy=case.strategy)
        )[0]  # fmt: skip

    profile = profile_of(load_cluster("local").provenance)
    cases = [case for case in matrix_cases() if only is None or only in case.model]
    if not cases or steps < 1:
        raise StrategyError(
            f"--only {only!r}, --steps {steps}: expected a part of a model's name of the matrix "
            "and at least 1 step"
        )
    with progress_bar(quiet=as_json) as progress:
        result = run_matrix(cases, plan_of=plan_of, steps=steps, progress=progress)
    if result.rows and only is None:
        save_residuals(residuals_of(result.rows, profile=profile))
    if write_docs:
        command = "paraplan compare --matrix --write-docs"
        text = matrix_document(result, command=command, profile=profile)
        write_whole(MEASURED_DOCUMENT, text, error=StrategyError, makes_folders=True)
    if as_json:
        summary = asdict(summarize(result.rows)) if result.rows else None
        print_json({
            "summary": summary, "rows": [asdict(row) for row in result.rows],
            "refused": [{**asdict(case), "reason": why} for case, why in result.refused],
        })  # fmt: skip
    else:
        print_text(matrix_text(result))


MEASURED_DOCUMENT = Path("docs/measured-here.md")
