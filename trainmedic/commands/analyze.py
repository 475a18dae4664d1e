"""``trainmedic analyze``."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from trainmedic.commands._shared import (
    chosen_settings,
    complain,
    exit_code,
    fail_on_option,
    form_of,
    log_options,
    output_option,
    reading_options,
    report_format_option,
    settings_options,
    show,
)

if TYPE_CHECKING:
    from trainmedic.reports.report import Report


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@report_format_option("text", "json", "sarif", "github", "markdown", "html")
@output_option
@fail_on_option
@settings_options
@log_options
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Processes at work, at most.  [default: as many as processors]"
)
def analyze(
    paths: Sequence[str],
    form: str | None,
    output: str | None,
    fail_on: str,
    select: Sequence[str],
    ignore: Sequence[str],
    settings_file: str | None,
    verify: bool,
    names: Sequence[str],
    jobs: int | None,
) -> int:
    """Diagnose recorded runs: log files, or directories with logs anywhere below.

    Reads the logdir of a watched run, TensorBoard event files, CSV and tables, JSON Lines, Hugging Face
    trainer_state.json, W&B offline runs, MLflow runs, and text that trainers print.
    """
    from trainmedic.analysis import analyze_all
    from trainmedic.parallel import processors

    settings, options = chosen_settings(settings_file, select, ignore), reading_options(verify, names)
    judged = analyze_all(paths, settings, options, jobs=jobs or processors(), progress=_with_progress)
    for _, reason in judged.unreadable:
        complain(reason)
    unused = _unused(options.names, judged.reports)
    for name in unused:
        complain(f"--name {options.names[name]}={name}: no log that was read has anything of the name {name!r}")
    show(judged.reports, form_of(form, output), output, judged.unreadable)
    return exit_code(judged.reports, bool(judged.unreadable or unused), fail_on)


def _unused(names: Mapping[str, str], reports: Iterable["Report"]) -> list[str]:
    """Names given on the command line that no log holds."""
    found = {name for report in reports for name in report.history.facts.get("renamed", ())}
    return [name for name in names if name not in found]


def _with_progress(results: Iterable[Any], count: int) -> Iterator[Any]:
    """The results one by one, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty() or count < 2:
        yield from results
        return
    with click.progressbar(results, length=count, label="judging", file=sys.stderr) as bar:
        yield from bar
