"""``trainmedic follow``."""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from trainmedic.commands._shared import (
    chosen_settings,
    exit_code,
    fail_on_option,
    format_option,
    log_options,
    reading_options,
    settings_options,
)

if TYPE_CHECKING:
    from trainmedic.following import Follower, News

STYLES = {"finding": "red", "cleared": "green", "anew": "yellow", "waiting": "yellow", "run": ""}


@click.command()
@click.argument("path")
@format_option("text", "json")
@fail_on_option
@settings_options
@log_options
@click.option("--every", type=click.FloatRange(min=0.05), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--idle", type=click.FloatRange(min=0), help="End when nothing was written for so many seconds.")
def follow(
    path: str,
    form: str,
    fail_on: str,
    select: Sequence[str],
    ignore: Sequence[str],
    settings_file: str | None,
    verify: bool,
    names: Sequence[str],
    every: float,
    idle: float | None,
) -> int:
    """Diagnose a run while it is being written: tells a finding when it appears, and when it clears.

    PATH is a log, or a directory with logs, also one that is not there yet. Ctrl-C ends it; the exit code is then that
    of analyze for what stands. With --format json each piece of news is an object on a line of its own.
    """
    from trainmedic.following import Follower, pause

    follower = Follower(path, chosen_settings(settings_file, select, ignore), reading_options(verify, names))
    screen = _Screen(form)
    written = time.monotonic()
    try:
        while idle is None or time.monotonic() - written <= idle:
            start = time.monotonic()
            if follower.look(screen.tell):
                written = time.monotonic()
            screen.status(follower)
            pause(every, time.monotonic() - start)
    except KeyboardInterrupt:
        pass
    screen.end(follower)
    return exit_code(follower.reports, False, fail_on)


class _Screen:
    """News as lines, and on a terminal one line below them that says how far it is."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.live = form == "text" and sys.stdout.isatty()

    def tell(self, news: "News") -> None:
        """One line."""
        self._wipe()
        if self.form == "json":
            click.echo(json.dumps(_plain(news)))
        else:
            stamp = click.style(time.strftime("%H:%M:%S"), dim=True)
            click.echo(f"{stamp}  {click.style(_text(news), fg=STYLES[news.kind] or None)}")
        sys.stdout.flush()

    def status(self, follower: "Follower") -> None:
        """Where all runs are."""
        if self.live:
            self._wipe()
            click.echo(_standing(follower), nl=False)
            sys.stdout.flush()

    def end(self, follower: "Follower") -> None:
        """What stands at the end."""
        self._wipe()
        if self.form == "text":
            click.echo(_standing(follower))

    def _wipe(self) -> None:
        if self.live:
            click.echo("\r\x1b[K", nl=False)


def _text(news: "News") -> str:
    from trainmedic.reports.wording import printable

    place, finding = printable(news.path), news.finding
    if news.kind == "waiting":
        return f"waiting: {printable(news.text)}"
    if finding is None:
        return f"{place}: {printable(news.text) or 'a run'}, now at step {news.step:,}"
    title = f"{finding.code} {printable(finding.name)}"
    if news.kind == "cleared":
        return f"{place}: cleared at step {news.step:,}: {title} (was since step {finding.step:,})"
    return f"{place}: {finding.severity} {title} since step {finding.step:,}: {printable(news.text)}"


def _plain(news: "News") -> dict[str, object]:
    finding = news.finding.model_dump(mode="json") if news.finding else None
    return {"kind": news.kind, "path": news.path, "step": news.step, "text": news.text, "finding": finding}


def _standing(follower: "Follower") -> str:
    from trainmedic.reports.wording import counted, printable

    reports = follower.reports
    if not reports:
        return f"no run in {printable(follower.path)} so far"
    findings = sum(len(report.findings) for report in reports)
    wrong = counted(findings, "finding") if findings else "nothing wrong found"
    last = max(report.history.last_step for report in reports)
    return f"{counted(len(reports), 'run')}, last step {last:,}: {wrong}"
