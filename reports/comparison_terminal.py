"""A comparison in a terminal: the verdict, the curves over each other, the metrics, what differs, the findings."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainmedic.diagnose import Finding
from trainmedic.history import Series
from trainmedic.reports.comparison import Comparison, Metric
from trainmedic.reports.conclusion import against, conclusion, reading, short
from trainmedic.reports.plot import SEVERAL, overlay
from trainmedic.reports.terminal import STYLES, WIDTH, Line, printed
from trainmedic.reports.wording import listed, number, printable

COLORS = ("blue", "dark_orange", "green", "magenta", "cyan", "red", "yellow", "bright_black")
DRAWN = 8
"""Curves in one picture."""
WIDE = 4
"""Runs that get a column of their own; of more, each value is followed by the runs that have it."""


def render(comparison: Comparison, width: int | None = None, color: bool = False) -> str:
    """The comparison as text, ``width`` columns wide, with colours (ANSI) only if asked for."""
    return printed(_parts(comparison, width or WIDTH), width=width, color=color)


def _parts(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    runs = Table.grid(padding=(0, 2))
    runs.add_column(no_wrap=True)
    runs.add_column(overflow="fold")
    for place, entry in enumerate(comparison.entries):
        history = entry.history
        about = Text(printable(entry.name))
        about.append(
            f"  steps {history.first_step:,} to {history.last_step:,}, read as {printable(entry.report.format)}",
            style="dim",
        )
        runs.add_row(Text(entry.label, style=f"bold {_color(place)}"), about)
    yield runs
    yield Text()
    yield Text(conclusion(comparison), style="bold")
    if comparison.metric is not None:
        yield from _picture(comparison, comparison.metric, width)
        yield from _ranking(comparison.metric)
        yield from _other_metrics(comparison.metrics[1:])
    yield from _settings(comparison)
    yield from _findings(comparison)
    notes = reading(comparison)
    if notes:
        yield Text("\nnotes", style="bold dim")
    for note in notes:
        yield Padding(Text(printable(note), style="dim"), (0, 0, 0, 2))


def _color(place: int) -> str:
    return COLORS[place % len(COLORS)]


def _picture(comparison: Comparison, metric: Metric, width: int) -> Iterator[RenderableType]:
    shown = [standing.label for standing in metric.standings][:DRAWN]
    curves: dict[str, Series] = {}
    for label in sorted(shown):
        curves.setdefault(label[-1], comparison.entry(label).history.series(metric.name))
    lines = overlay(curves, width=min(max(width, 40), 120))
    if not lines:
        return
    colors = {entry.label[-1]: _color(place) for place, entry in reversed(list(enumerate(comparison.entries)))}
    yield Text()
    more = f", the best {DRAWN}" if len(metric.standings) > DRAWN else ""
    yield Text(f"{printable(metric.name)}{more} ({SEVERAL} several)", style="dim")
    for axis, drawing in lines[:-1]:
        text = Text(f"{axis:>9} ", style="dim")
        text.append("┤" if axis else "│", style="dim")
        for character in drawing:
            text.append(character, style=f"not dim {colors.get(character, '')}".strip())
        yield Line(text)
    axis, steps = lines[-1]
    yield Line(Text(f"{axis:>9} └{steps}", style="dim"))


def _ranking(metric: Metric) -> Iterator[RenderableType]:
    table = _table("", "ended at", "best", "at step", "against the best")
    for standing in metric.standings:
        table.add_row(
            standing.label,
            number(standing.end),
            number(standing.best),
            f"{standing.best_step:,}",
            Text(against(standing), overflow="fold"),
        )
    yield Text()
    yield table


def _other_metrics(metrics: Sequence[Metric]) -> Iterator[RenderableType]:
    if not metrics:
        return
    table = _table("metric", "best", "ended at", "others")
    for metric in metrics:
        others = "; ".join(f"{s.label} {number(s.end)} {short(s)}" for s in metric.standings[1:5])
        more = len(metric.standings) - 5
        others += f"; and {more:,} more" if more > 0 else ""
        table.add_row(Text(printable(metric.name), overflow="fold"), metric.best.label, number(metric.best.end), others)
    yield Text("\nother metrics", style="bold")
    yield Padding(table, (0, 0, 0, 2))


def _settings(comparison: Comparison) -> Iterator[RenderableType]:
    labels = [entry.label for entry in comparison.entries]
    yield Text(
        "\nsettings that differ" if comparison.settings else "\nsettings: none are known to differ", style="bold"
    )
    if comparison.settings:
        yield Padding(_by_run("setting", comparison.settings, labels), (0, 0, 0, 2))


def _by_run(title: str, rows: Sequence[tuple[str, Mapping[str, str]]], labels: Sequence[str]) -> Table:
    """A column for each run where there are few, else each value with the runs that have it."""
    if len(labels) <= WIDE:
        table = _table(title, *labels)
        for name, values in rows:
            table.add_row(
                *(Text(printable(text), overflow="fold") for text in (name, *(values.get(one, "-") for one in labels)))
            )
        return table
    table = _table(title, "")
    for name, values in rows:
        groups: dict[str, list[str]] = {}
        for label, value in values.items():
            groups.setdefault(value, []).append(label)
        text = "; ".join(f"{printable(value)}: {listed(who, 8)}" for value, who in groups.items())
        table.add_row(Text(printable(name), overflow="fold"), Text(text, overflow="fold"))
    return table


def _findings(comparison: Comparison) -> Iterator[RenderableType]:
    if not comparison.findings:
        yield Text("\nfindings: none in any of them", style="bold green")
        return
    labels = [entry.label for entry in comparison.entries]
    yield Text("\nfindings", style="bold")
    if len(labels) > WIDE:
        rows = [
            (f"{code} {name}", {label: finding.severity.value for label, finding in found.items()})
            for code, name, found in comparison.findings
        ]
        yield Padding(_by_run("", rows, labels), (0, 0, 0, 2))
        return
    table = _table("", *labels)
    for code, name, found in comparison.findings:
        table.add_row(
            f"{code} {printable(name)}", *(_finding(comparison, code, found.get(label), label) for label in labels)
        )
    yield Padding(table, (0, 0, 0, 2))


def _finding(comparison: Comparison, code: str, finding: Finding | None, label: str) -> Text:
    if finding is not None:
        return Text(f"{finding.severity.value} since {finding.step:,}", style=STYLES[finding.severity])
    checked = code in comparison.entry(label).report.checked
    return Text("-" if checked else "not checked", style="dim")


def _table(*titles: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_header=any(titles), pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table
