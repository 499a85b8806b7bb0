"""Which optimizer a run takes for the one of its plan."""

from executor.errors import RunError
from executor.shape import RunShape

_STAND_IN = "adam"


def optimizer_that_runs(shape: RunShape) -> str:
    """Return the optimizer of a run: the plan's, or adam where that one cannot run.

    Adafactor factors whole matrices, so it runs where every rank holds these; torch has no
    adam8bit.

    Parameters
    ----------
    shape : RunShape
        Its optimizer, and whether parameters are shards.
    """
    holds_whole = shape.size("tp") == 1 and not shape.is_sharded
    is_missing = shape.optimizer == "adam8bit"
    if is_missing or (shape.optimizer == "adafactor" and not holds_whole):
        return _STAND_IN
    return shape.optimizer


def check_optimizer_runs(shape: RunShape) -> None:
    """Refuse to train for real with another optimizer than the plan's.

    Raises
    ------
    RunError
        With the reason and the way out.
    """
    if optimizer_that_runs(shape) != shape.optimizer:
        reason = (
            "torch has none" if shape.optimizer == "adam8bit"
            else "it factors whole matrices, and this plan splits them over ranks"
        )  # fmt: skip
        raise RunError(
            f"optimizer {shape.optimizer}: {reason}; make the plan with --optimizer adamw"
        )
