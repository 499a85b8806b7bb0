"""The error family that every room shares."""


class ParaplanError(ValueError):
    """A mistake of the user, told in one line: where, found what, expected what, what next."""

    exit_status = 2
    """Exit status of the command line: 2 wrong use, 1 no feasible plan or a failed run."""


class ProfileError(ParaplanError):
    """A hardware or software profile is unknown, malformed or inconsistent."""
