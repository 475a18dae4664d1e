"""``trainmedic compare``."""

import os
import re
from collections.abc import Iterable, Sequence
from glob import glob
from typing import TYPE_CHECKING

import click

from trainmedic.commands._shared import (
    NOT_JUDGED,
    chosen_settings,
    complain,
    exit_code,
    fail_on_option,
    form_of,
    log_options,
    output_option,
    reading_options,
    report_format_option,
    screen_options,
    settings_options,
    write,
)
from trainmedic.errors import UsageError

if TYPE_CHECKING:
    from trainmedic.reports.comparison import Comparison
    from trainmedic.reports.report import Report


@click.command()
@click.argument("paths", nargs=-1, metavar="RUN RUN...")
@click.option("--metric", metavar="NAME", help="What decides.  [default: the validation loss, or what the runs share]")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME=PATH", help="Runs that repeat one setting with several seeds."
)
@report_format_option("text", "json", "markdown", "html")
@output_option
@fail_on_option
@settings_options
@log_options
def compare(
    paths: Sequence[str],
    metric: str | None,
    groups: Sequence[str],
    form: str | None,
    output: str | None,
    fail_on: str,
    select: Sequence[str],
    ignore: Sequence[str],
    settings_file: str | None,
    verify: bool,
    names: Sequence[str],
) -> int:
    """Hold runs against each other: which is better, since when, and by how much beyond noise.

    Also what differs in their settings, their curves over each other, and their findings side by side. Logs of
    different tools compare, too, if they count steps alike. A directory stands for all runs in it.

    With --group, settings are compared by how their repeats differ: --group base=runs/base --group new=runs/new

    Exit code: as for analyze; 2 also where the runs cannot be held against each other.
    """
    from trainmedic.analysis import analyze_all
    from trainmedic.reports.comparison import compare as compared

    settings, options = chosen_settings(settings_file, select, ignore), reading_options(verify, names)
    unreadable: list[tuple[str, str]] = []

    def runs_at(path: str) -> list["Report"]:
        judged = analyze_all(
            [path] if os.path.exists(path) else sorted(glob(path)) or [path], settings, options, jobs=1
        )
        unreadable.extend(judged.unreadable)
        return sorted(judged.reports, key=lambda report: _natural(report.path))

    single = _distinct(report for path in paths for report in runs_at(path))
    grouped: dict[str, list[Report]] = {}
    for given in groups:
        name, _, path = given.partition("=")
        if not name or not path:
            raise UsageError(f"--group {given!r}: give a name and where its runs lie, as in --group base=runs/base")
        grouped[name] = _distinct([*grouped.get(name, []), *runs_at(path)])
    for _, reason in unreadable:
        complain(reason)
    empty = [name for name, runs in grouped.items() if not runs]
    if empty or len(single) + len(grouped) < 2:
        what = f"the group {empty[0]!r} holds none" if empty else f"{' '.join(paths) or 'nothing'} holds {len(single)}"
        raise UsageError(f"a comparison needs at least two runs or groups of runs, but {what}")
    comparison = compared(single, metric, grouped or None)
    _show(comparison, form_of(form, output), output)
    comparable = comparison.metric is not None and comparison.metric.comparable
    every = [*single, *(report for runs in grouped.values() for report in runs)]
    return exit_code(every, bool(unreadable), fail_on) if comparable else NOT_JUDGED


def _natural(path: str) -> list[tuple[int, str]]:
    """A key that puts run 2 before run 10."""
    return [(int(part), "") if part.isdecimal() and len(part) < 20 else (-1, part) for part in re.split(r"(\d+)", path)]


def _distinct(reports: Iterable["Report"]) -> list["Report"]:
    """Each run once, however often it was given."""
    return list({(report.path, str(report.history.facts.get("run", ""))): report for report in reports}.values())


def _show(comparison: "Comparison", form: str, output: str | None) -> None:
    if form == "json":
        from trainmedic.reports.report import dumps

        write(dumps(comparison.to_dict()) + "\n", output)
    elif form == "markdown":
        from trainmedic.reports.comparison_markdown import render as as_markdown

        write(as_markdown(comparison), output)
    elif form == "html":
        from trainmedic.reports.comparison_page import render as as_page

        write(as_page(comparison), output)
    else:
        from trainmedic.reports.comparison_terminal import render as as_text

        write(as_text(comparison, **screen_options(output)), output)
