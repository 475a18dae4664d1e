"""A comparison as Markdown, escaped as a report is."""

import math
from collections.abc import Iterator

from trainmedic.reports.comparison import Comparison, Metric, Standing
from trainmedic.reports.conclusion import against, conclusion, reading, short
from trainmedic.reports.markdown import bounded, cell, table, text
from trainmedic.reports.plot import overlay
from trainmedic.reports.sparkline import sparkline
from trainmedic.reports.wording import number

SPARKS = 24
"""Characters of a curve in a table."""
PICTURED = 8


def render(comparison: Comparison) -> str:
    """The comparison as Markdown, within what a comment on GitHub may hold."""
    return bounded(_blocks(comparison))


def _blocks(comparison: Comparison) -> Iterator[str]:
    yield f"### trainmedic: {len(comparison.entries):,} runs compared"
    yield f"**{text(conclusion(comparison))}**"
    metric = comparison.metric
    if metric is not None:
        yield _ranking(comparison, metric)
        yield from _picture(comparison, metric)
        if comparison.metrics[1:]:
            yield "**Other metrics**"
            yield table(("metric", "best", "ended at", "others"), [_row(other) for other in comparison.metrics[1:]])
    labels = [entry.label for entry in comparison.entries]
    if metric is None:
        rows = [(entry.label, cell(entry.name)) for entry in comparison.entries]
        yield table(("", "run"), rows)
    if comparison.settings:
        yield "**Settings that differ**"
        yield table(
            ("setting", *labels),
            [(text(name), *(text(values.get(one, "-")) for one in labels)) for name, values in comparison.settings],
        )
    if comparison.findings:
        yield "**Findings**"
        found = [
            (
                f"{text(code)} {text(name)}",
                *(f"{runs[one].severity} since {runs[one].step:,}" if one in runs else "-" for one in labels),
            )
            for code, name, runs in comparison.findings
        ]
        yield table(("", *labels), found)
    else:
        yield "No findings in any of them."
    notes = reading(comparison)
    if notes:
        yield "\n".join(f"* {text(note)}" for note in notes)


def _ranking(comparison: Comparison, metric: Metric) -> str:
    ranked = [_standing(comparison, metric, standing) for standing in metric.standings]
    placed = {standing.label for standing in metric.standings}
    ranked += [
        (entry.label, cell(entry.name), "-", "-", "-", "") for entry in comparison.entries if entry.label not in placed
    ]
    head = ("", "run", f"{text(metric.name)} ended at", "best (at step)", "against the best", "curve")
    return table(head, ranked, align="llrrll")


def _standing(comparison: Comparison, metric: Metric, standing: Standing) -> tuple[str, ...]:
    entry = comparison.entry(standing.label)
    steps, values = entry.history.series(metric.name)
    best = f"{number(standing.best)} ({standing.best_step:,})" if math.isfinite(standing.best) else "-"
    curve = f"`{sparkline(values, SPARKS, steps)}`"
    return entry.label, cell(entry.name), number(standing.end), best, text(against(standing)), curve


def _picture(comparison: Comparison, metric: Metric) -> Iterator[str]:
    shown = sorted(standing.label for standing in metric.standings[:PICTURED])
    curves = {label[-1]: comparison.entry(label).history.series(metric.name) for label in reversed(shown)}
    lines = overlay(dict(sorted(curves.items())), width=90)
    if lines:
        drawn = [f"{axis:>9} {'┤' if axis else '│'}{drawing}" for axis, drawing in lines[:-1]]
        yield "\n".join(["```text", *drawn, f"{lines[-1][0]:>9} └{lines[-1][1]}", "```"])


def _row(metric: Metric) -> tuple[str, ...]:
    others = "; ".join(f"{s.label} {number(s.end)} {short(s)}" for s in metric.standings[1:9])
    return cell(metric.name), metric.best.label, number(metric.best.end), others
