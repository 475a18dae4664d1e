"""Whether text is coloured: only where it goes to a terminal that has colours, and whose user wants them."""

import io
import sys

import pytest

from trainmedic.commands._shared import screen_options


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environment", "output", "color"),
    [
        (Terminal, {"TERM": "xterm-256color"}, None, True),
        (Terminal, {"TERM": "xterm-256color", "NO_COLOR": "1"}, None, False),
        (Terminal, {"TERM": "dumb"}, None, False),
        (Terminal, {"TERM": "xterm-256color"}, "report.txt", False),
        (io.StringIO, {"TERM": "xterm-256color"}, None, False),
    ],
    ids=["terminal", "no color", "dumb", "file", "pipe"],
)
def test_colours_where_they_are_seen(
    stream: type[io.StringIO],
    environment: dict[str, str],
    output: str | None,
    color: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", stream())
    assert screen_options(output)["color"] is color
