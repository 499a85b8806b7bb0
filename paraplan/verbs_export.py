"""The verb that hands a plan over: export."""

from pathlib import Path

from paraplan.console import print_json, print_text


def export_verb(plan_file: Path, *, trainer: str, out: Path | None, as_json: bool) -> None:
    """Write a plan as another trainer's configuration, or print it where no file is named."""
    from planner.handover import hand_over, trainer_named
    from planner.plan import load_plan
    from planner.whole_file import write_whole

    known = trainer_named(trainer)
    handed = hand_over(load_plan(plan_file), trainer=trainer)
    if out is not None:
        write_whole(out, handed.text, makes_folders=True)
    if as_json:
        print_json(
            {
                "trainer": trainer,
                "version": known.version,
                "file": None if out is None else str(out),
                "text": handed.text,
                "notes": list(handed.notes),
            }
        )
        return
    for note in handed.notes:
        print_text(f"note: {note}", to_stderr=True)
    print_text(handed.text if out is None else f"Written: {out}, for {known.title} {known.version}")
