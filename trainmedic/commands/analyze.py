"""``trainmedic analyze``."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainmedic.commands._shared import (
    chosen_settings,
    complain,
    exit_code,
    fail_on_option,
    format_option,
    output_option,
    settings_options,
    show,
)
from trainmedic.errors import UnreadableError

if TYPE_CHECKING:
    from trainmedic.readers.reader import Source
    from trainmedic.reports.report import Report
    from trainmedic.settings import Settings


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@format_option("text", "json")
@output_option
@fail_on_option
@settings_options
def analyze(
    paths: Sequence[str],
    form: str,
    output: str | None,
    fail_on: str,
    select: Sequence[str],
    ignore: Sequence[str],
    settings_file: str | None,
) -> int:
    """Diagnose recorded runs: log files, or directories with logs anywhere below.

    Reads the logdir of a watched run, TensorBoard event files, CSV and tables, JSON Lines, Hugging Face
    trainer_state.json, W&B offline runs, MLflow runs, and text that trainers print.
    """
    from trainmedic.analysis import worst_first

    reports, unreadable = _judged(paths, chosen_settings(settings_file, select, ignore))
    reports = worst_first(reports)
    for _, reason in unreadable:
        complain(reason)
    show(reports, form, output, unreadable)
    return exit_code(reports, bool(unreadable), fail_on)


def _judged(paths: Iterable[str], settings: "Settings") -> tuple[list["Report"], list[tuple[str, str]]]:
    """Every run at ``paths``, judged; and (path, reason) for what cannot be read."""
    from trainmedic.analysis import reports_of

    rules = settings.configured_rules()
    reports: list[Report] = []
    sources, unreadable = _found(paths)
    for source in _with_progress(sources):
        try:
            reports += reports_of(source, rules)
        except UnreadableError as error:
            unreadable.append((str(source.path), str(error)))
    return reports, unreadable


def _found(paths: Iterable[str]) -> tuple[list["Source"], list[tuple[str, str]]]:
    from trainmedic.readers import find

    sources: dict[Path, Source] = {}  # a path that is given twice, or lies in another one, counts once
    unreadable: list[tuple[str, str]] = []
    for path in paths:
        try:
            sources.update({source.path: source for source in find(path)})
        except UnreadableError as error:
            unreadable.append((path, str(error)))
    return list(sources.values()), unreadable


def _with_progress(sources: Sequence["Source"]) -> Iterator["Source"]:
    """The sources one by one, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty() or len(sources) < 2:
        yield from sources
        return
    with click.progressbar(sources, label="judging", file=sys.stderr) as bar:
        yield from bar
