"""A plan as the configuration of another trainer, or one reason why that trainer cannot run it.

Each trainer is one file with one function ``export_...(job) -> Handed`` and one row in
:mod:`planner.handover.trainers`. Shared files: the job (what a plan says, in plain numbers), the
sizes of the model, the check of its layout, its stages, and the refusals.
"""

from planner.handover.job import Handed, Job, make_job
from planner.handover.refusals import HandoverError
from planner.handover.trainers import TRAINERS, Trainer, hand_over, trainer_named

__all__ = [
    "TRAINERS",
    "Handed",
    "HandoverError",
    "Job",
    "Trainer",
    "hand_over",
    "make_job",
    "trainer_named",
]
