"""``trainmedic analyze``."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from trainmedic.commands._shared import (
    chosen_settings,
    complain,
    complain_of_unused,
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
    unused = complain_of_unused(options.names, judged.reports)
    show(judged.reports, form_of(form, output), output, judged.unreadable)
    return exit_code(judged.reports, bool(judged.unreadable or unused), fail_on)


def _with_progress(results: Iterable[Any], count: int) -> Iterator[Any]:
    """The results one by one, with a bar on stderr where that is a terminal."""
    if not sys.stderr.isatty() or count < 2:
        yield from results
        return
    with click.progressbar(results, length=count, label="judging", file=sys.stderr) as bar:
        yield from bar
