"""Saying no: which trainer, what of the plan it cannot express, and the way out."""

from hardware_profiles.errors import ParaplanError


class HandoverError(ParaplanError):
    """A trainer cannot express a plan."""


def refusal(trainer: str, *, found: str, because: str, instead: str) -> HandoverError:
    """Return the error whose one line tells why a plan cannot be handed over.

    Examples
    --------
    >>> print(refusal("torchtitan", found="optimizer=sgd", because="it knows Adam and AdamW",
    ...               instead="plan with --optimizer adamw"))
    torchtitan cannot express optimizer=sgd: it knows Adam and AdamW; plan with --optimizer adamw
    """
    return HandoverError(f"{trainer} cannot express {found}: {because}; {instead}")
