"""A comparison as one HTML file, as self-contained and as careful with text as that of a report."""

import math
from typing import Any

from trainmedic.reports import page
from trainmedic.reports.comparison import Comparison, Metric, Standing
from trainmedic.reports.comparison_terminal import render as as_text
from trainmedic.reports.conclusion import against, conclusion, reading, short
from trainmedic.reports.picture import curve_data, state
from trainmedic.reports.verdict import verdict
from trainmedic.reports.wording import number, printable

CURVES = 6
"""Runs drawn in one chart: as many as there are colours that can be told apart."""
CHARTS = 9
POINTS = 48_000
"""Points of all curves together."""
MOST_POINTS = 2_400

SCRIPTS = (*page.SCRIPTS, "compare.js")
START = "Medic.startComparison(document.getElementById('data').textContent);"


def render(comparison: Comparison) -> str:
    """The comparison as a page."""
    names = [entry.name for entry in comparison.entries]
    title = f"{names[0]} and {names[1]}" if len(names) == 2 else f"{len(names):,} runs"
    return page.page(
        f"{title} compared", data(comparison), scripts=SCRIPTS, start=START, without_script=as_text(comparison)
    )


def data(comparison: Comparison) -> dict[str, Any]:
    """All that the page is drawn from. Every text in it is safe to show as text."""
    from trainmedic import __version__

    metrics = comparison.metrics[:CHARTS]
    drawn = sum(min(len(metric.standings), CURVES) for metric in metrics)
    most = min(MOST_POINTS, POINTS // max(drawn, 1))
    notes = reading(comparison)
    return {
        "version": __version__,
        "verdict": conclusion(comparison),
        "comparable": comparison.metric is not None and comparison.metric.comparable,
        "runs": [
            {
                "label": entry.label,
                "name": printable(entry.name),
                "steps": [entry.history.first_step, entry.history.last_step],
                "format": printable(entry.report.format),
                "state": state(entry.report),
                "verdict": verdict(entry.report),
            }
            for entry in comparison.entries
        ],
        "metrics": [_metric(comparison, metric, most) for metric in metrics],
        "settings": [
            [printable(name), *(printable(values.get(entry.label, "-")) for entry in comparison.entries)]
            for name, values in comparison.settings
        ],
        "findings": [
            [
                f"{printable(code)} {printable(name)}",
                *(_finding(comparison, code, entry.label, found) for entry in comparison.entries),
            ]
            for code, name, found in comparison.findings
        ],
        "notes": list(map(printable, notes)),
    }


def _metric(comparison: Comparison, metric: Metric, most: int) -> dict[str, Any]:
    labels = [entry.label for entry in comparison.entries]
    shown = sorted((standing.label for standing in metric.standings[:CURVES]), key=lambda one: (len(one), one))
    curves = {label: comparison.entry(label).history.series(metric.name) for label in shown}
    return {
        "name": printable(metric.name),
        "side": "higher is better" if metric.better > 0 else "lower is better",
        "curves": [
            {
                "label": f"{label} {printable(comparison.entry(label).name)}",
                "line": labels.index(label) % CURVES if len(labels) <= CURVES else place,
                **curve_data(metric.name, series, most),
            }
            for place, (label, series) in enumerate(curves.items())
        ],
        "hidden": max(0, len(metric.standings) - CURVES),
        "standings": [_standing(standing) for standing in metric.standings],
    }


def _standing(standing: Standing) -> list[str]:
    at = f"{standing.best_step:,}" if math.isfinite(standing.best) else "-"
    return [
        standing.label,
        number(standing.end),
        number(standing.best),
        at,
        short(standing),
        printable(against(standing)),
    ]


def _finding(comparison: Comparison, code: str, label: str, found: Any) -> list[str]:
    """(severity or nothing, what to write)."""
    finding = found.get(label)
    if finding is not None:
        return [finding.severity.value, f"{finding.severity.value} since step {finding.step:,}"]
    return ["", "-" if code in comparison.entry(label).report.checked else "not checked"]
