"""What several trainers refuse alike, each with its own reason."""

from collections.abc import Mapping
from typing import TypeVar

from planner.handover.decoder import Decoder
from planner.handover.job import Job
from planner.handover.refusals import refusal
from planner.strategy import FIELD_OF_KEY, Strategy

_Word = TypeVar("_Word")


def word_of(
    value: str, *, known: Mapping[str, _Word], trainer: str, key: str, because: str, instead: str
) -> _Word:
    """Return what a trainer calls a value of the plan.

    Raises
    ------
    HandoverError
        If the trainer knows no such value.

    Examples
    --------
    >>> word_of("adamw", known={"adamw": "AdamW"}, trainer="torchtitan", key="optimizer",
    ...         because="it knows AdamW", instead="plan with --optimizer adamw")
    'AdamW'
    """
    if value not in known:
        raise refusal(trainer, found=f"{key}={value}", because=because, instead=instead)
    return known[value]


def check_unsplit(
    strategy: Strategy, *, because: Mapping[str, str], trainer: str, others: str
) -> None:
    """Refuse an axis that a trainer cannot split.

    Parameters
    ----------
    strategy : Strategy
        Of the plan.
    because : mapping
        Key of each such axis -> why.
    trainer : str
        Who refuses.
    others : str
        Trainers that can.

    Raises
    ------
    HandoverError
        With the first such axis of more than one rank.
    """
    for key, reason in because.items():
        size = getattr(strategy, FIELD_OF_KEY[key])
        if size > 1:
            raise refusal(
                trainer,
                found=f"{key}={size}",
                because=reason,
                instead=f"plan with {key}=1, or hand over to {others}",
            )


def has_experts(job: Job, decoder: Decoder | None, *, trainer: str) -> bool:
    """Return whether the model has experts; refuse expert ranks where it has none.

    Raises
    ------
    HandoverError
        If the plan splits experts of a model without any.
    """
    if decoder is not None and decoder.num_experts:
        return True
    size = job.strategy.expert_parallel_size
    if size > 1:
        raise refusal(
            trainer,
            found=f"ep={size} on a model without experts",
            because="expert parallelism splits experts",
            instead="plan with ep=1",
        )
    return False


def ranks_per_copy(job: Job, *, trainer: str) -> int:
    """Return how many data-parallel ranks share one copy of the weights.

    Raises
    ------
    HandoverError
        If copies lie across context ranks, which these trainers' meshes cannot say.
    """
    ranks, copies = job.strategy.data_parallel_size, job.strategy.sharding_replicas
    if ranks % copies:
        raise refusal(
            trainer,
            found=f"replicas={copies} with dp={ranks}",
            because="its copies are whole numbers of data-parallel ranks",
            instead=f"plan with replicas that divide {ranks}",
        )
    return ranks // copies
