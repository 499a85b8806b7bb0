"""Does the plan split every block as Megatron does? Trainers with fixed layouts know no other."""

from planner.handover.decoder import Decoder
from planner.handover.job import Job
from planner.handover.refusals import refusal
from planner.handover.stages import block_paths


def check_layout(job: Job, decoder: Decoder, *, trainer: str) -> tuple[str, ...]:
    """Refuse a plan whose blocks are not split by column, then by row; return what differs.

    The tables before and after the blocks are looked at as well: there a split along another
    dimension holds as many bytes, and is told in a note instead of being refused.

    Raises
    ------
    HandoverError
        With the parameter, its placement and the expected one.
    """
    if job.strategy.tensor_parallel_size == 1:
        return ()
    placements = job.plan.layouts[0].parameters
    for path in block_paths(job.plan):
        for role, expected in decoder.roles.items():
            found = placements.get(f"{path}.{role}", "R")
            if found != expected:
                raise refusal(
                    trainer,
                    found=f"the layout of {path}.{role} ({found} on tp)",
                    because=f"it splits that parameter as {expected}",
                    instead="choose another tp, or use 'paraplan run'",
                )
    outside = [
        f"{name} is split as {placement} in the plan"
        for name, placement in sorted(placements.items())
        if placement != "S0" and not _is_in_block(name, job)
    ]
    return tuple(f"{line}; {trainer} splits it over the vocabulary" for line in outside)


def _is_in_block(name: str, job: Job) -> bool:
    return any(name.startswith(f"{path}.") for path in block_paths(job.plan))


def splits_whole_experts(job: Job) -> bool:
    """Return whether the tensor group holds whole experts, and not a slice of each."""
    if job.strategy.tensor_parallel_size == 1:
        return False
    placements = job.plan.layouts[0].parameters
    return any(".experts." in name and found == "S0" for name, found in placements.items())
