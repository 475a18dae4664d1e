"""``trainmedic compare``."""

from collections.abc import Sequence
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


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--metric", metavar="NAME", help="What decides.  [default: the validation loss, or what the runs share]")
@report_format_option("text", "json", "markdown", "html")
@output_option
@fail_on_option
@settings_options
@log_options
def compare(
    paths: Sequence[str],
    metric: str | None,
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

    Exit code: as for analyze; 2 also where the runs cannot be held against each other.
    """
    from trainmedic.analysis import analyze_all
    from trainmedic.reports.comparison import compare as compared

    settings, options = chosen_settings(settings_file, select, ignore), reading_options(verify, names)
    judged = [analyze_all([path], settings, options, jobs=1) for path in paths]
    unreadable = [entry for one in judged for entry in one.unreadable]
    for _, reason in unreadable:
        complain(reason)
    reports = [report for one in judged for report in sorted(one.reports, key=lambda report: report.path)]
    distinct = list({(report.path, str(report.history.facts.get("run", ""))): report for report in reports}.values())
    if len(distinct) < 2:
        raise UsageError(f"a comparison needs at least two runs, but {' '.join(paths)} holds {len(distinct)}")
    comparison = compared(distinct, metric)
    _show(comparison, form_of(form, output), output)
    comparable = comparison.metric is not None and comparison.metric.comparable
    return exit_code(distinct, bool(unreadable), fail_on) if comparable else NOT_JUDGED


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
