"""What all tests share: machines are slow at times, so no example of hypothesis fails for the time that it took."""

from hypothesis import settings

settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
