"""The error family that every room shares."""


class ParaplanError(ValueError):
    """A mistake of the user, told in one line: where, found what, expected what, what next."""


class ProfileError(ParaplanError):
    """A hardware or software profile is unknown, malformed or inconsistent."""
