"""The trainers a plan can be handed to: one row each."""

from collections.abc import Callable
from dataclasses import dataclass

from planner.handover.accelerate import export_accelerate
from planner.handover.deepspeed import export_deepspeed
from planner.handover.job import Handed, Job, make_job
from planner.handover.megatron import export_megatron
from planner.handover.refusals import HandoverError
from planner.handover.torchtitan import export_torchtitan
from planner.models.options import nearest
from planner.models.resolve import resolve_model
from planner.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """A program that trains, and the file it reads."""

    title: str
    version: str
    """Release or commit whose keys are written."""
    file_name: str
    """Usual name of the file."""
    export: Callable[[Job], Handed]


TRAINERS: dict[str, Trainer] = {
    "torchtitan": Trainer(
        title="torchtitan",
        version="0.2.2",
        file_name="torchtitan.toml",
        export=export_torchtitan,
    ),
    "megatron": Trainer(
        title="Megatron-LM",
        version="000c4ac24f61",
        file_name="megatron.sh",
        export=export_megatron,
    ),
    "deepspeed": Trainer(
        title="DeepSpeed",
        version="0.19.8",
        file_name="deepspeed.json",
        export=export_deepspeed,
    ),
    "accelerate": Trainer(
        title="Accelerate",
        version="1.15.0",
        file_name="accelerate.yaml",
        export=export_accelerate,
    ),
}


def trainer_named(name: str) -> Trainer:
    """Return a trainer by its name on the command line.

    Examples
    --------
    >>> trainer_named("megatron").file_name
    'megatron.sh'
    >>> trainer_named("megatorn")
    Traceback (most recent call last):
    planner.handover.refusals.HandoverError: no trainer 'megatorn' to hand a plan to; did you mean megatron?
    """  # noqa: E501
    if name not in TRAINERS:
        raise HandoverError(f"no trainer '{name}' to hand a plan to; {nearest(name, TRAINERS)}")
    return TRAINERS[name]


def hand_over(plan: Plan, *, trainer: str) -> Handed:
    """Return a plan as a trainer's configuration.

    Parameters
    ----------
    plan : Plan
        As :func:`planner.plan.load_plan` returns it.
    trainer : str
        A key of :data:`TRAINERS`.

    Raises
    ------
    HandoverError
        If the trainer is unknown or cannot express the plan; one line with what and why.
    ModelError
        If the plan's model cannot be found any more.
    """
    found = trainer_named(trainer)
    source = resolve_model(plan.model.source)
    return found.export(make_job(plan, trainer=found.title, source=source))
