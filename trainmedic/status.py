"""The last line of the terminal, kept for the state of a run while it goes on.

The terminal itself is told to scroll only what is above that line (DECSTBM, as package managers do it). So whatever
writes there - prints, progress bars, other libraries, C code, child processes - goes on as ever and never meets the
line, and nothing of Python is patched. Each drawing is one write that puts the cursor back where it was.

On anything but a terminal nothing is drawn. In a notebook the line is logged now and then.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TextIO

log = logging.getLogger("trainmedic")

SAVE, RESTORE = "\x1b7", "\x1b8"
DOWN, UP = "\x1bD", "\x1b[A"
STYLES = {None: "", "info": "\x1b[36m", "warning": "\x1b[33m", "error": "\x1b[31m"}


class StatusLine:
    """Draws one line at the bottom, at most each ``EVERY`` seconds. One at a time in a process; others stay silent.

    ``describe`` gives (text for a width in columns, the worst severity or ``None``); it is called only to draw.
    """

    EVERY = 1.0
    LOG_EVERY = 60.0
    LEAST_ROWS, LEAST_COLUMNS = 4, 20
    _owner: ClassVar["StatusLine | None"] = None

    def __init__(self, describe: Callable[[int], tuple[str, str | None]]) -> None:
        self._describe = describe
        self._stream = _terminal()
        self._process = os.getpid()
        self._size: tuple[int, int] | None = None
        self._notebook = "ipykernel" in sys.modules
        self._next = time.monotonic() + (self.LOG_EVERY if self._notebook else 0.0)

    def update(self) -> None:
        """Draw the line anew, if it was not drawn lately."""
        now = time.monotonic()
        if now < self._next:
            return
        if self._notebook:
            self._next = now + self.LOG_EVERY
            log.info("%s", self._describe(200)[0])
            return
        self._next = now + self.EVERY
        if self._stream is None or os.getpid() != self._process or StatusLine._owner not in (None, self):
            return
        size = _size(self._stream)
        if size is None or size[0] < self.LEAST_ROWS or size[1] < self.LEAST_COLUMNS:
            self.close()
            return
        StatusLine._owner = self
        claim = "" if size == self._size else self._claim(size[0])
        self._size = size
        self._write(claim + self._drawn(*size))

    def close(self) -> None:
        """Give the line back, empty."""
        if self._size is None or os.getpid() != self._process:
            return
        rows, self._size = self._size[0], None
        StatusLine._owner = None
        self._write(f"{SAVE}\x1b[r\x1b[{rows};1H\x1b[2K{RESTORE}")

    def _claim(self, rows: int) -> str:
        """Scroll only above the last row; if the cursor was in it, what stands there moves up first."""
        return f"{DOWN}{SAVE}\x1b[1;{rows - 1}r{RESTORE}{UP}"

    def _drawn(self, rows: int, columns: int) -> str:
        text, severity = self._describe(columns - 1)
        style = STYLES.get(severity, "") if not os.environ.get("NO_COLOR") else ""
        plain = "\x1b[2m" if not style and not os.environ.get("NO_COLOR") else style
        reset = "\x1b[0m" if plain else ""
        return f"{SAVE}\x1b[{rows};1H\x1b[2K{plain}{text}{reset}{RESTORE}"

    def _write(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.flush()
            os.write(self._stream.fileno(), text.encode(self._stream.encoding or "utf-8", "replace"))
        except (OSError, ValueError):  # the terminal has gone, or its stream was closed
            self._stream, self._size = None, None


class Pace:
    """Steps a second, lately."""

    def __init__(self) -> None:
        self._step, self._time, self._rate = 0, time.monotonic(), 0.0

    def at(self, step: int) -> float:
        """The rate until ``step``, half of it since this was asked last; 0 as long as there is none."""
        now = time.monotonic()
        passed, steps = now - self._time, step - self._step
        if passed > 0 and steps > 0:
            lately = steps / passed
            self._rate = (self._rate + lately) / 2 if self._rate else lately
            self._step, self._time = step, now
        return self._rate


@contextlib.contextmanager
def beside_bars() -> Iterator[None]:
    """Lines that are written within do not tear the progress bars of tqdm, if there are any."""
    module: Any = sys.modules.get("tqdm.std") or sys.modules.get("tqdm")
    bars = getattr(module, "tqdm", None)
    if bars is None or not getattr(bars, "_instances", None):
        yield
        return
    with bars.external_write_mode(file=sys.stderr):
        yield


def _terminal() -> TextIO | None:
    """Where a line can be drawn: standard error or output, if that is a terminal that obeys."""
    if os.environ.get("TERM", "") in ("", "dumb", "unknown") or sys.platform == "win32":
        return None
    for stream in (sys.__stderr__, sys.__stdout__):
        with contextlib.suppress(ValueError, OSError):
            if stream is not None and stream.isatty():
                return stream
    return None


def _size(stream: TextIO) -> tuple[int, int] | None:
    """(rows, columns) now."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return rows, columns
