"""Errors of running a plan; each message tells where, what was found, and what to do next."""

from hardware_profiles.errors import ParaplanError


class RunError(ParaplanError):
    """A plan cannot run here, or a run failed."""


class RunFailedError(RunError):
    """A run began and failed: a rank raised, died or fell silent. Exit status 1."""

    exit_status = 1


class RankLostError(RunFailedError):
    """A rank broke without refusing: killed, crashed or silent. Another attempt may succeed."""
