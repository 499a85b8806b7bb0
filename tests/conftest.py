"""What all tests share."""

from hypothesis import settings

settings.register_profile("paraplan", deadline=None)  # a busy machine fails no law
settings.load_profile("paraplan")
