"""The command line. What a command needs is imported when it runs: ``--help`` and the catalogue answer at once."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trainmedic import __version__
from trainmedic.errors import TrainmedicError, UnreadableError, UsageError

if TYPE_CHECKING:
    from trainmedic.readers.reader import Source
    from trainmedic.reports.report import Report
    from trainmedic.settings import Settings

FINE, FOUND, NOT_JUDGED = 0, 1, 2
INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 + the number of the signal, as shells have it
DEBUG = "TRAINMEDIC_DEBUG"
CASES = ("vanishing", "exploding", "dead", "overfitting")

format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Form of the output.",
)


class Main(click.Group):
    """The group of all commands: every error is one clear line on stderr, and the exit code says what it means."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character gets an escape, not a crash
                stream.reconfigure(errors="backslashreplace")
        sys.exit(self._guarded(*args, **kwargs))

    def _guarded(self, *args: Any, **kwargs: Any) -> int:
        try:
            code = super().main(*args, **{**kwargs, "prog_name": "trainmedic", "standalone_mode": False})
            return code if isinstance(code, int) else FINE
        except click.UsageError as error:
            hint = f" (see: {error.ctx.command_path} --help)" if error.ctx else ""
            _complain(f"{error.format_message()}{hint}")
        except click.ClickException as error:
            _complain(error.format_message())
        except (click.Abort, KeyboardInterrupt):
            click.echo("trainmedic: interrupted", err=True)
            return INTERRUPTED
        except TrainmedicError as error:
            _reraise_in_debug()
            _complain(str(error))
        except Exception as error:
            _reraise_in_debug()
            reason = " ".join(str(error).split())
            _complain(
                f"unexpected {type(error).__name__}: {reason}; this is a mistake in trainmedic, please report it with "
                "what the same command prints after trainmedic --debug"
            )
        return NOT_JUDGED

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:  # as in `trainmedic rules | head`: whoever listened has heard enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or closing stdout complains once more
            ctx.exit(PIPE_CLOSED)
        return code


def _reraise_in_debug() -> None:
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        raise


def _complain(text: str) -> None:
    """One line on stderr."""
    from trainmedic.reports.wording import printable

    click.echo(f"trainmedic: error: {printable(text)}", err=True)


def _debug(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        os.environ[DEBUG] = "1"


@click.group(
    cls=Main,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trainmedic")
@click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_debug, help="Show tracebacks.")
@click.pass_context
def main(context: click.Context) -> int:
    """A medic for PyTorch training runs: tells what is wrong and why, and treats it.

    Exit code: 0 nothing was found, 1 something was, 2 it could not judge or was called wrongly.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
    return NOT_JUDGED


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@format_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file instead of the terminal.")
@click.option(
    "--fail-on",
    type=click.Choice(["info", "warning", "error", "never"]),
    default="error",
    show_default=True,
    help="Exit with 1 where a finding is at least this severe.",
)
@click.option("--select", multiple=True, metavar="RULES", help="Only these rules: codes or names, by commas.")
@click.option("--ignore", multiple=True, metavar="RULES", help="Not these rules.")
@click.option("--settings", "settings_file", metavar="FILE", help="Settings (TOML) instead of those found here.")
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

    settings = _settings(settings_file, select, ignore)
    reports, unreadable = _judged(paths, settings)
    reports = worst_first(reports)
    for _, reason in unreadable:
        _complain(reason)
    if form == "json":
        from trainmedic.reports.report import document, dumps

        _write(dumps(document(reports, unreadable)) + "\n", output)
    elif reports:
        _show(reports, output)
    return _exit_code(reports, bool(unreadable), fail_on)


@main.command()
@click.argument("path")
@format_option
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write to this file instead of the terminal.")
def report(path: str, form: str, output: str | None) -> None:
    """Show what the medic reported at the end of a watched run, from its logdir.

    Nothing is judged anew: this is how the run ended, with the settings that it had. To judge it again, use analyze.
    """
    from trainmedic.analysis import recorded_report
    from trainmedic.readers import find

    watched = [source for source in find(path) if source.reader.name == "trainmedic"]
    if not watched:
        raise UnreadableError(f"{path}: no logdir of a watched run; for other logs use: trainmedic analyze {path}")
    reports = [recorded_report(source) for source in watched]
    if form == "json":
        from trainmedic.reports.report import document, dumps

        _write(dumps(document(reports)) + "\n", output)
    else:
        _show(reports, output)


@main.command()
@format_option
def rules(form: str) -> None:
    """List the rules: what can be found."""
    from trainmedic import catalog

    _listing("rules", catalog.rules(), form)


@main.command()
@format_option
def remedies(form: str) -> None:
    """List the remedies: what can be done about it."""
    from trainmedic import catalog

    _listing("remedies", catalog.remedies(), form)


@main.command()
@click.argument("name", metavar="CODE|NAME")
@format_option
def explain(name: str, form: str) -> None:
    """Explain a rule or a remedy: what it is, why, its formula and limits."""
    from trainmedic import catalog

    entry = catalog.find(name)
    click.echo(json.dumps(entry, indent=1) if form == "json" else catalog.page(entry))


@main.command()
@click.argument("case", type=click.Choice(CASES), required=False, metavar="[CASE]")
@click.option("--logdir", type=click.Path(file_okay=False), help="Where to write the records, reports and curves.")
def demo(case: str | None, logdir: str | None) -> None:
    """Train a sick run on real images, untreated and treated, side by side (all cases unless one is named)."""
    from trainmedic import demo as demonstration

    demonstration.main(case, logdir)


def _settings(file: str | None, select: Sequence[str], ignore: Sequence[str]) -> "Settings":
    """The settings of the file or of this directory, with the rules chosen on the command line."""
    from trainmedic.settings import Settings, find_rule

    for given in (*select, *ignore):
        for name in given.split(","):
            find_rule(name.strip())  # complains of a misspelt name by itself
    settings = Settings.load(file)
    chosen = {key: ",".join(given) for key, given in (("select", select), ("ignore", ignore)) if given}
    return Settings.load({**settings.model_dump(), **chosen}) if chosen else settings


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


def _exit_code(reports: Sequence["Report"], unreadable: bool, fail_on: str) -> int:
    from trainmedic.diagnose import Severity

    worst: list[Severity] = [report.severity for report in reports if report.severity is not None]
    if fail_on != "never" and any(severity.rank >= Severity(fail_on).rank for severity in worst):
        return FOUND
    judged = bool(reports) and all(report.checked for report in reports)
    return FINE if judged and not unreadable else NOT_JUDGED


def _show(reports: Sequence["Report"], output: str | None) -> None:
    from rich.console import Console

    from trainmedic.reports.terminal import WIDTH, render

    screen = Console()
    shown = output is None and screen.is_terminal
    _write(render(*reports, width=screen.width if shown else WIDTH, color=shown and not screen.no_color), output)


def _listing(what: str, entries: list[dict[str, Any]], form: str) -> None:
    from trainmedic import catalog

    if form == "json":
        tool = {"name": "trainmedic", "version": __version__}
        click.echo(json.dumps({"version": 1, "tool": tool, what: entries}, indent=1))
        return
    click.echo(catalog.overview(entries))
    click.echo(f"\n{len(entries)} {what}; more about one: trainmedic explain NAME")


def _write(text: str, output: str | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output!r}: {error.strerror or error}") from error
