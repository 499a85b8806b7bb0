"""The command line: verbs, options, and one line for every mistake."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paraplan.console import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_WRONG_USE,
    one_line,
    print_text,
)
from paraplan.job_options import (
    JOB_OPTIONS,
    CheckpointDir,
    ClipNorm,
    Dataset,
    FinalLrFraction,
    Keep,
    LearningRateOption,
    Log,
    LogEvery,
    LrSchedule,
    MaxRestarts,
    Resume,
    SaveEvery,
    Seed,
    WarmupSteps,
)

app = typer.Typer(
    name="paraplan",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Split a deep-learning model over devices: plan, explain, simulate, run.",
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A preset (gpt2, llama3-8b, resnet50, ...), hf:TYPE?key=value, or file.py:factory.",
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", "-c", help="NAME:N?key=value (N nodes), a TOML file, or local."),
]
Batch = Annotated[int | None, typer.Option("--global-batch", "-b", help="Samples per step.")]
SeqLen = Annotated[int | None, typer.Option("--seq-len", help="Tokens per sample.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", help="fp32, tf32, fp16, bf16, fp8 (else by device)."),
]
OptimizerOption = Annotated[
    str | None,
    typer.Option("--optimizer", help="sgd, momentum, adam (default), adamw, adafactor, adam8bit."),
]
ModeOption = Annotated[str | None, typer.Option("--mode", help="train (default) or infer.")]
AttentionOption = Annotated[
    str | None, typer.Option("--attention", help="auto (default), unfused or flash.")
]
SoftwareOption = Annotated[
    str | None, typer.Option("--software", help="Software profile (default: by device).")
]
StrategyOption = Annotated[
    str | None, typer.Option("--strategy", "-s", help="dp=8,tp=8,pp=16,... fixes all or part.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for plan.json, report and trace.")]


@app.command()
def profiles(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None, *, json: Json = False
) -> None:
    """List or show devices, links, clusters and software profiles."""
    from paraplan.verbs_about import show_profiles

    show_profiles(name, as_json=json)


@app.command()
def trace(model: Model, *, seq_len: SeqLen = None, batch: Batch = 1, json: Json = False) -> None:
    """Show a model's graph: operators, parameters, FLOPs, memory."""
    from paraplan.verbs_about import show_trace

    show_trace(
        model, sequence_length=seq_len, batch_size=1 if batch is None else batch, as_json=json
    )


@app.command()
def plan(
    model: Model,
    *,
    cluster: ClusterOption = None,
    global_batch: Batch = None,
    seq_len: SeqLen = None,
    precision: PrecisionOption = None,
    optimizer: OptimizerOption = None,
    mode: ModeOption = None,
    attention: AttentionOption = None,
    software: SoftwareOption = None,
    strategy: StrategyOption = None,
    objective: Annotated[str, typer.Option(help="time, cost or devices.")] = "time",
    out: Out = Path("paraplan-out"),
    json: Json = False,
) -> None:
    """Search for the best split; write plan.json, a report and a trace."""
    from paraplan.verbs_plan import plan_verb

    plan_verb(_options(locals()), objective=objective, out=out, as_json=json)


@app.command()
def simulate(
    model: Annotated[str | None, typer.Argument(metavar="MODEL|PLAN.json")] = None,
    *,
    cluster: ClusterOption = None,
    global_batch: Batch = None,
    seq_len: SeqLen = None,
    precision: PrecisionOption = None,
    optimizer: OptimizerOption = None,
    mode: ModeOption = None,
    attention: AttentionOption = None,
    software: SoftwareOption = None,
    strategy: StrategyOption = None,
    detail: Annotated[str, typer.Option(help="folded or full (every rank).")] = "folded",
    cases: Annotated[
        Path | None, typer.Option("--cases", help="JSON lines, one case each.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for plan.json, report and trace.")
    ] = None,
    json: Json = False,
) -> None:
    """Score exactly one strategy (or many, with --cases)."""
    from paraplan.verbs_plan import cases_verb, simulate_verb

    if cases is not None:
        cases_verb(cases)
    else:
        simulate_verb(_options(locals()), detail=detail, out=out, as_json=json)


@app.command()
def run(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json")],
    *,
    scale_down: Annotated[int, typer.Option(help="Divide width and depth by this.")] = 1,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 3,
    processes: Annotated[
        int | None, typer.Option(help="At most this many local processes.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds a rank may be silent.")] = 120.0,
    check: Annotated[
        bool | None, typer.Option("--check/--no-check", help="Compare with a single process.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count collectives, at the plan's world size.")
    ] = False,
    precision: Annotated[
        str | None, typer.Option(help="fp32, tf32, bf16 or plan (a check: fp32, a job: plan).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="run.json to write.")] = None,
    dataset: Dataset = None,
    save_every: SaveEvery = None,
    checkpoint_dir: CheckpointDir = None,
    keep: Keep = None,
    resume: Resume = False,
    max_restarts: MaxRestarts = None,
    learning_rate: LearningRateOption = None,
    lr_schedule: LrSchedule = None,
    warmup_steps: WarmupSteps = None,
    final_lr_fraction: FinalLrFraction = None,
    clip_norm: ClipNorm = None,
    seed: Seed = None,
    log: Log = None,
    log_every: LogEvery = None,
    json: Json = False,
) -> None:
    """Execute a plan here (or under torchrun): check it against one process, or train a job."""
    from paraplan.run_options import RunOptions
    from paraplan.verbs_run import execute_verb

    job = {name: value for name, value in locals().items() if name in JOB_OPTIONS}
    options = RunOptions(
        plan_file=plan_file, scale_down=scale_down, steps=steps, processes=processes,
        timeout_s=timeout, check=check, precision=precision, out=out, as_json=json,
    )  # fmt: skip
    execute_verb(options, job=job, dry_run=dry_run)


@app.command()
def calibrate(
    *,
    quick: Annotated[bool, typer.Option(help="Fewer shapes, under a minute.")] = False,
    processes: Annotated[int | None, typer.Option(help="Processes that act as devices.")] = None,
    json: Json = False,
) -> None:
    """Measure this machine into a profile that --cluster local uses."""
    from paraplan.verbs_run import calibrate_verb

    calibrate_verb(quick=quick, processes=processes, as_json=json)


@app.command()
def compare(
    plan_file: Annotated[Path | None, typer.Argument(metavar="PLAN.json")] = None,
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.json|JOB.json")] = None,
    *,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Small models x strategies, measured here and now.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="Matrix: models with this in their name.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Matrix: timed steps per case.")] = 24,
    write_docs: Annotated[
        bool, typer.Option("--write-docs", help="Matrix: write docs/measured-here.md.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="File for both timelines in one Perfetto trace.")
    ] = None,
    json: Json = False,
) -> None:
    """Print predicted beside measured, for a run, a job or a matrix of small models."""
    from paraplan.verbs_run import compare_verb, matrix_verb

    if matrix and (trace is not None or plan_file is not None):
        raise typer.BadParameter("--matrix makes its own plans; leave out files and --trace")
    if matrix:
        matrix_verb(write_docs=write_docs, steps=steps, only=only, as_json=json)
    elif plan_file is None or run_file is None:
        raise typer.BadParameter("expected PLAN.json and RUN.json, or --matrix")
    else:
        compare_verb(plan_file, run_file, trace=trace, as_json=json)


@app.command()
def validate(
    *,
    group: Annotated[str | None, typer.Option(help="One case file alone.")] = None,
    family: Annotated[
        str | None, typer.Option(help="One family alone: gpu-transformer, tpu, ...")
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(help="Folder of case files in place of the shipped ones.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes to share the cases among.")
    ] = None,
    summary: Annotated[bool, typer.Option("--summary", help="No line per case.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write one row per case to this file.")] = None,
    write_docs: Annotated[
        bool, typer.Option("--write-docs", help="Write docs/validation.md and the residuals.")
    ] = False,
    json: Json = False,
) -> None:
    """Print published results: predicted beside measured."""
    from paraplan.verbs_validate import validate_verb

    validate_verb(
        group=group, family=family, folder=cases, jobs=jobs, as_json=json, summary_only=summary,
        csv_file=csv, write_docs=write_docs,
    )  # fmt: skip


@app.command()
def report(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json")],
    *,
    cluster: Annotated[
        str | None, typer.Option("--cluster", "-c", help="File of the cluster, if it was one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=".html or .md file to write.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a plan's report again, as HTML or Markdown."""
    from paraplan.verbs_plan import report_verb

    report_verb(plan_file, cluster=cluster, out=out, as_json=json)


@app.command()
def export(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN.json")],
    *,
    to: Annotated[str, typer.Option(help="torchtitan, megatron, deepspeed or accelerate.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; else it is printed.")
    ] = None,
    json: Json = False,
) -> None:
    """Hand a plan over to another trainer, as its configuration."""
    from paraplan.verbs_export import export_verb

    export_verb(plan_file, trainer=to, out=out, as_json=json)


_COMMAND_LINE_ERROR: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)
"""click's error family; typer carries its own copy of click in some versions."""
_ROOMS = ("hardware_profiles", "simulator", "planner", "executor", "paraplan")
_OPTION_KEYS = (
    "model", "cluster", "global_batch", "seq_len", "precision", "optimizer", "mode", "attention",
    "software", "strategy",
)  # fmt: skip


def _options(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in _OPTION_KEYS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    sys.exit(run_command_line(arguments))


def run_command_line(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a user's mistake is one line."""
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        status = command(args=arguments, prog_name="paraplan", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = EXIT_INTERRUPTED  # some versions of typer raise, others return the status
    except _COMMAND_LINE_ERROR as error:
        return _tell_usage(error)
    except ValueError as error:
        return _tell(error)
    except ModuleNotFoundError as error:
        return _tell_missing(error)
    except BrokenPipeError:
        return EXIT_DONE
    if status == EXIT_INTERRUPTED:
        print_text("paraplan: interrupted", to_stderr=True)
    return status if isinstance(status, int) else EXIT_DONE


def _tell_usage(error: Any) -> int:
    """Tell a wrong option or argument in one line; a verb alone gets its help."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and context is not None:
        print_text(context.get_help(), to_stderr=True)
        return EXIT_WRONG_USE
    where = context.command_path if context is not None else "paraplan"
    message = one_line(error.format_message()).rstrip(".")
    print_text(f"{where}: {message}; see '{where} --help'", to_stderr=True)
    return EXIT_WRONG_USE


def _tell_missing(error: ModuleNotFoundError) -> int:
    """Tell that a package is not installed; a module of ours that is missing is a defect."""
    package = (error.name or "").partition(".")[0]
    if package in _ROOMS:
        raise error
    print_text(
        f"paraplan: package {package!r} is not installed; install paraplan again with all it needs",
        to_stderr=True,
    )
    return EXIT_WRONG_USE


def _tell(error: ValueError) -> int:
    """Tell a user's mistake in one line; anything else is a defect and keeps its traceback."""
    from hardware_profiles.errors import ParaplanError

    if not isinstance(error, ParaplanError):
        raise error
    print_text(f"paraplan: {one_line(str(error))}", to_stderr=True)
    return error.exit_status
