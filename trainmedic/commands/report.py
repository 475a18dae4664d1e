"""``trainmedic report``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainmedic.commands._shared import (
    NOT_JUDGED,
    chosen_settings,
    complain,
    complain_of_unused,
    form_of,
    log_options,
    output_option,
    reading_options,
    report_format_option,
    settings_options,
    show,
)
from trainmedic.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from trainmedic.readers.reader import Options
    from trainmedic.reports.report import Report
    from trainmedic.settings import Settings


@click.command()
@click.argument("path")
@report_format_option("text", "json", "markdown", "html")
@output_option
@click.option("--tensorboard", metavar="DIR", type=click.Path(file_okay=False), help="Write TensorBoard files too.")
@settings_options
@log_options
def report(
    path: str,
    form: str | None,
    output: str | None,
    tensorboard: str | None,
    select: Sequence[str],
    ignore: Sequence[str],
    settings_file: str | None,
    verify: bool,
    names: Sequence[str],
) -> int | None:
    """Pictures of a run and its diagnosis: -o report.html writes a page that opens anywhere.

    Of a watched run (its logdir) this shows what the medic reported at its end, with the settings that it had; nothing
    is judged anew. A log of another tool is read and judged now, and the options for rules and names are about that.
    """
    settings, options = chosen_settings(settings_file, select, ignore), reading_options(verify, names)
    reports, unreadable = _reports(path, settings, options)
    for reason in unreadable:
        complain(reason)
    if reports:
        show(reports, form_of(form, output), output)
        if tensorboard:
            _write_boards(reports, Path(tensorboard))
    return NOT_JUDGED if complain_of_unused(options.names, reports) or unreadable else None


def _reports(path: str, settings: "Settings", options: "Options") -> tuple[list["Report"], list[str]]:
    """The reports of all runs at ``path``, the worst first, and why others could not be read."""
    from trainmedic.analysis import recorded_report, reports_of, worst_first
    from trainmedic.readers import find
    from trainmedic.readers.own import recorded

    rules = settings.configured_rules()
    reports: list[Report] = []
    unreadable: list[str] = []
    for source in find(path):
        try:
            told = source.reader.name == "trainmedic" and recorded(source.path) is not None
            reports += [recorded_report(source)] if told else reports_of(source, rules, options)
        except UnreadableError as error:
            unreadable.append(str(error))
    return worst_first(reports), unreadable


def _write_boards(reports: list["Report"], home: Path) -> None:
    """One run into ``home`` itself; of several each into a folder of its own there, as TensorBoard tells runs apart."""
    from trainmedic.reports.tensorboard import write_report

    try:
        for place, each in zip(_folders(reports), reports, strict=True):
            write_report(each, home / place)
    except OSError as error:
        raise UsageError(f"cannot write to {str(home)!r} (--tensorboard): {error.strerror or error}") from error


def _folders(reports: list["Report"]) -> list[str]:
    if len(reports) == 1:
        return ["."]
    names = ["".join(c if c.isalnum() or c in "-_." else "-" for c in each.path)[-80:].strip("-.") for each in reports]
    return [f"{i + 1:03}-{name}" for i, name in enumerate(names)]
