"""Errors of planning; each message tells where, what was found, what was expected, what next."""

from hardware_profiles.errors import ParaplanError


class ModelError(ParaplanError):
    """A model cannot be found, built or traced."""


class StrategyError(ParaplanError):
    """A strategy cannot be parsed or does not suit the model, workload or cluster."""


class PlanError(ParaplanError):
    """A plan file is malformed, of another schema version or for other hardware."""


class NoFeasiblePlanError(ParaplanError):
    """Nothing fits; tells why candidates were rejected and what is nearest."""

    exit_status = 1
