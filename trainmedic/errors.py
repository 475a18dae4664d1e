"""What the project raises at its users: one clear sentence that says what, where and what to do."""

import difflib
from collections.abc import Iterable


class TrainmedicError(Exception):
    """Base of every error raised on purpose; the command line shows its text alone, without a traceback."""


class UsageError(TrainmedicError, ValueError):
    """An argument, setting or call that cannot be meant as it was given."""


class UnreadableError(TrainmedicError):
    """A file that holds no run that any reader understands."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``; did you mean 'x'?`` for the known name nearest to ``name``, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""
