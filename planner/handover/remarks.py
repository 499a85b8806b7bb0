"""What several trainers do a little differently from the plan, in the same sentences."""

from planner.handover.job import Job


def software_remarks(job: Job, *, known: tuple[str, ...], best: str) -> list[str]:
    """Return a sentence where the plan was predicted with none of a trainer's software profiles.

    Parameters
    ----------
    job : Job
        The plan.
    known : tuple of str
        How the names of profiles begin that describe the trainer.
    best : str
        What to plan with.
    """
    if job.software.startswith(known):
        return []
    return [
        f"predicted with software '{job.plan.software}'; plan with --software {best} for the times "
        "of its kernels and overlap"
    ]


def gather_remark(job: Job, *, trainer: str) -> str:
    """Return that weights are gathered per microbatch, where the plan counts one per step."""
    return (
        f"{trainer} gathers weights for each of the {job.num_microbatches} microbatches; the plan "
        "counts one gather per step"
    )
