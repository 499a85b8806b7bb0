"""What goes wrong with a program or a schedule."""

from hardware_profiles.errors import ParaplanError


class ProgramError(ParaplanError):
    """A program cannot run: an unknown link or task, a negative duration, or a cycle of waits."""


class ScheduleError(ParaplanError):
    """A pipeline schedule is unknown, impossible for its sizes, or breaks the ordering rules."""
