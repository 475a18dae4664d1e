"""What commands share: options, exit codes, and how results leave."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainmedic.errors import UsageError, nearest

if TYPE_CHECKING:
    from trainmedic.readers.reader import Options
    from trainmedic.reports.report import Report
    from trainmedic.settings import Settings

FINE, FOUND, NOT_JUDGED = 0, 1, 2
"""Exit codes: nothing was found, something was, it could not judge or was called wrongly."""

BY_SUFFIX = {".html": "html", ".htm": "html", ".json": "json", ".sarif": "sarif", ".md": "markdown"}

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def format_option(*forms: str) -> Decorator:
    """``--format``, as the parameter ``form``; the first one is the default."""
    return click.option(
        "--format", "form", type=click.Choice(forms), default=forms[0], show_default=True, help="Form of the output."
    )


def report_format_option(*forms: str) -> Decorator:
    """``--format`` of reports, as the parameter ``form``; where it is not given, :func:`form_of` says what it is."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(forms),
        help="Form of the output.  [default: by the name of the output file, else text]",
    )


def form_of(form: str | None, output: str | None) -> str:
    """The form that was asked for, or the one that the name of the output file says."""
    return form or BY_SUFFIX.get(Path(output or "").suffix.lower(), "text")


output_option: Decorator = click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="Write to this file instead of the terminal."
)

fail_on_option: Decorator = click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "error", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 where a finding is at least this severe.",
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--select``, ``--ignore`` and ``--settings``, as the parameters that :func:`chosen_settings` takes."""
    options: tuple[Decorator, ...] = (
        click.option("--select", multiple=True, metavar="RULES", help="Only these rules: codes or names, by commas."),
        click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules."),
        click.option("--settings", "settings_file", metavar="FILE", help="Settings (TOML), not those found here."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--verify`` and ``--name``, as the parameters that :func:`reading_options` takes."""
    verify = click.option("--verify", is_flag=True, help="Check the checksums of formats that have some.")
    name = click.option(
        "--name",
        "names",
        multiple=True,
        metavar="OURS=THEIRS",
        help="What a name of the log means, as in train/loss=objective; step=NAME is the clock.",
    )
    return verify(name(command))


def reading_options(verify: bool, names: Sequence[str]) -> "Options":
    """How logs are to be read."""
    from trainmedic.history import SERIES
    from trainmedic.readers.reader import CLOCK, Options

    meanings: dict[str, str] = {}
    for given in names:
        ours, _, theirs = given.partition("=")
        if not ours or not theirs:
            raise UsageError(f"--name {given!r}: give our name and that of the log, as in train/loss=objective")
        if ours not in (*SERIES, CLOCK) and not ours.startswith(("train/", "validation/", "optimizer/learning_rate/")):
            raise UsageError(f"--name {given!r}: there is no series {ours!r}{nearest(ours, (*SERIES, CLOCK))}")
        if theirs in meanings or ours in meanings.values():
            raise UsageError(f"--name {given!r}: each name can be given once")
        meanings[theirs] = ours
    return Options(verify=verify, names=meanings)


def chosen_settings(settings_file: str | None, select: Sequence[str], ignore: Sequence[str]) -> "Settings":
    """The settings of the file or of this directory, with the rules chosen on the command line."""
    from trainmedic.settings import Settings, find_rule

    for given in (*select, *ignore):
        for name in given.split(","):
            find_rule(name.strip())  # complains of a misspelt name by itself
    settings = Settings.load(settings_file)
    chosen = {key: ",".join(given) for key, given in (("select", select), ("ignore", ignore)) if given}
    return Settings.load({**settings.model_dump(), **chosen}) if chosen else settings


def show(
    reports: Sequence["Report"], form: str, output: str | None, unreadable: Sequence[tuple[str, str]] = ()
) -> None:
    """Write reports in one of the forms. ``unreadable``: (path, reason) of what could not be judged."""
    if form == "json":
        from trainmedic.reports.report import document, dumps

        write(dumps(document(reports, unreadable)) + "\n", output)
    elif form == "sarif":
        from trainmedic.reports import sarif

        write(sarif.render(reports, unreadable), output)
    elif form == "github":
        _show_github(reports, output, unreadable)
    elif form == "markdown" and reports:
        from trainmedic.reports import markdown

        write(markdown.render(*reports), output)
    elif form == "html" and reports:
        from trainmedic.reports import page

        write(page.render(*reports), output)
    elif reports:
        _show_text(reports, output)


def _show_github(reports: Sequence["Report"], output: str | None, unreadable: Sequence[tuple[str, str]]) -> None:
    """Annotations, and all findings in the summary of the step; nothing more where this is no step of GitHub's."""
    from trainmedic.reports import github

    write(github.render(reports, unreadable), output)
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return
    try:
        with open(place, "a", encoding="utf-8") as file:
            file.write(github.summary(reports, unreadable, github.SUMMARY_BYTES - file.tell()))
    except OSError as error:
        raise UsageError(f"cannot write {place!r} (GITHUB_STEP_SUMMARY): {error.strerror or error}") from error


def _show_text(reports: Sequence["Report"], output: str | None) -> None:
    from trainmedic.reports.terminal import render

    write(render(*reports, **screen_options(output)), output)


def screen_options(output: str | None) -> dict[str, Any]:
    """``width`` and ``color`` for text that goes to the terminal, or to a file or a pipe."""
    from rich.console import Console

    from trainmedic.reports.terminal import WIDTH

    screen = Console()
    shown = output is None and screen.is_terminal
    colored = shown and screen.color_system is not None and not screen.no_color  # not with NO_COLOR, nor TERM=dumb
    return {"width": screen.width if shown else WIDTH, "color": colored}


def write(text: str, output: str | None) -> None:
    """Text to a file, or to the terminal where there is none."""
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output!r}: {error.strerror or error}") from error


def complain(text: str) -> None:
    """One line on stderr."""
    from trainmedic.reports.wording import printable

    click.echo(f"trainmedic: error: {printable(text)}", err=True)


def complain_of_unused(names: Mapping[str, str], reports: Iterable["Report"]) -> list[str]:
    """Names given on the command line that no log holds; each is complained of."""
    found = {name for report in reports for name in report.history.facts.get("renamed", ())}
    unused = [name for name in names if name not in found]
    for name in unused:
        complain(f"--name {names[name]}={name}: no log that was read has anything of the name {name!r}")
    return unused


def exit_code(reports: Sequence["Report"], unreadable: bool, fail_on: str) -> int:
    """What ``--fail-on`` makes of the reports."""
    from trainmedic.diagnose import Severity

    worst: list[Severity] = [report.severity for report in reports if report.severity is not None]
    if fail_on != "never" and any(severity.rank >= Severity(fail_on).rank for severity in worst):
        return FOUND
    judged = bool(reports) and all(report.checked for report in reports)
    return FINE if judged and not unreadable else NOT_JUDGED


def listing(what: str, entries: list[dict[str, Any]], form: str) -> None:
    """Show a part of the catalogue."""
    import json

    from trainmedic import __version__, catalog

    if form == "json":
        tool = {"name": "trainmedic", "version": __version__}
        click.echo(json.dumps({"version": 1, "tool": tool, what: entries}, indent=1))
        return
    click.echo(catalog.overview(entries))
    click.echo(f"\n{len(entries)} {what}; more about one: trainmedic explain NAME")
