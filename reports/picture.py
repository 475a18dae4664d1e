"""What pictures of a run are drawn from: one bounded, JSON-able value, the same for the page and for TensorBoard.

Every text in it is safe to show as text (see ``printable``); numbers travel as arrays in base64, so that NaN and
infinities stay what they are.
"""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from trainmedic.diagnose import Evidence, Finding
from trainmedic.history import SERIES, STATISTICS, History, LayerTable, Series
from trainmedic.remedies.change import Change, Treatment
from trainmedic.reports import thin
from trainmedic.reports.layermap import MAPS, LayerMap, colours, layer_map, wants_log
from trainmedic.reports.report import Report
from trainmedic.reports.verdict import verdict
from trainmedic.reports.wording import amount, columns, counted, evidence_text, lost, number, printable, tried

RUNS = 300
"""Runs of one page; of more the first ones, which are the worst where the order is by severity."""
BRIEF = 0.1
"""Share of the resolution below which a run is drawn in brief: without the curves that have no chart of their own."""
POINTS, LEAST_POINTS = 48_000, 60
"""Points of all curves together, and of one curve at least."""
MOST_POINTS = 2_400
CELLS, MOST_COLUMNS, LEAST_COLUMNS = 110_000, 256, 40
"""Cells of all layer maps together; columns of one map."""
ROWS = 2_000
"""Layers that a map shows."""
CURVES = 120
"""Curves besides those that have a chart of their own."""
TOGETHER = 6
"""Curves in one chart."""
PLACES = 60
"""Names of layers or series that a finding lists."""

BANDS = {"gradient_norm": "gradient norm of a layer", "update_ratio": "update / weight of a layer"}
"""Statistics whose 5th, 50th and 95th percentile over the layers are drawn as a curve."""
PERCENTILES = (5, 50, 95)


def document(reports: Sequence[Report]) -> dict[str, Any]:
    """All that a page of these runs is drawn from."""
    from trainmedic import __version__

    drawn = reports[:RUNS]
    share = min(1.0, 4 / max(len(drawn), 1))  # a page of many runs stays one that opens
    return {
        "version": __version__,
        "colours": colours(),
        "rules": _rules(),
        "runs": [picture(report, share) for report in drawn],
        "left_out": len(reports) - len(drawn),
    }


def picture(report: Report, share: float = 1.0) -> dict[str, Any]:
    """One run, bounded in size whatever its length; ``share`` of the usual resolution (0 to 1)."""
    history = report.history
    curves, charts, unseen = _curves(history, share)
    maps, unshown = _maps(report, share)
    return {
        "path": printable(report.path) or "this run",
        "format": printable(report.format),
        "steps": [history.first_step, history.last_step],
        "state": state(report),
        "verdict": verdict(report),
        "summary": [list(entry) for entry in _summary(report)],
        "curves": curves,
        "charts": charts,
        "maps": maps,
        "findings": [_finding(report, finding) for finding in report.findings],
        "treatments": [_treatment(treatment) for treatment in report.treatments],
        "refused": [[printable(remedy), printable(reason)] for remedy, reason in report.refused],
        "checked": list(map(printable, report.checked)),
        "not_checked": [[entry.code, printable(entry.name), printable(entry.reason)] for entry in report.not_checked],
        "cost": [list(entry) for entry in _cost(report)],
        "run": [list(entry) for entry in _facts(history)],
        "notes": [*map(printable, report.notes), *unseen, *unshown],
    }


STATES = ("error", "warning", "info", "unjudged", "fine")
"""From bad to good."""


def state(report: Report) -> str:
    """One of ``STATES``: the worst severity, ``fine`` where nothing was found, ``unjudged`` where none could judge."""
    if report.severity:
        return report.severity.value
    return "fine" if report.checked else "unjudged"


def packed(values: Any) -> dict[str, str]:
    """An array as JSON can hold it: ``type`` (as JavaScript's typed arrays are called) and ``data`` in base64."""
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        fits = not array.size or (array.min() >= 0 and array.max() < 2**32)
        kind = "Uint16" if array.dtype == np.uint16 else "Uint32" if fits else "Float64"
    else:
        size = np.abs(array[np.isfinite(array) & (array != 0)])
        kind = "Float32" if not size.size or (size.max() < 3e38 and size.min() > 1e-37) else "Float64"
    little_endian = np.dtype(kind.lower()).newbyteorder("<")
    return {"type": kind, "data": base64.b64encode(array.astype(little_endian).tobytes()).decode()}


# -- curves ----------------------------------------------------------------------------------------------------------


class Chart(NamedTuple):
    """Curves that are drawn together."""

    title: str
    names: list[str]
    main: bool = True


def _curves(history: History, share: float) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The curves by name, the charts that show them, and a note on those that are left out."""
    bands = {statistic: band(history.layers(statistic)) for statistic in BANDS if statistic in history}
    every = {name: history.series(name) for name in history.names()}
    for statistic, found in bands.items():
        every.update({f"{BANDS[statistic]}, p{p}": series for p, series in found.items()})
    charts = list(_charts(history.names(), [statistic for statistic, found in bands.items() if found]))
    others = [chart for chart in charts if not chart.main]
    left_out = others[CURVES if share > BRIEF else 0 :]
    shown = [chart for chart in charts if chart not in left_out]
    names = [name for chart in shown for name in chart.names]
    most = int(min(MOST_POINTS, max(LEAST_POINTS, share * POINTS / max(len(names), 1))))
    return (
        {printable(name): curve_data(name, every[name], most) for name in names},
        [
            {
                "title": printable(chart.title),
                "curves": [printable(name) for name in chart.names],
                "main": chart.main,
                "log": wants_log([every[name].values for name in chart.names]),
            }
            for chart in shown
        ],
        [f"{counted(len(left_out), 'curve')} of {len(every):,} are not drawn"] if left_out else [],
    )


def _charts(names: Sequence[str], bands: Sequence[str]) -> Iterator[Chart]:
    """Which curves belong together: those that people look at first, then every other one by itself."""
    left = dict.fromkeys(names)

    def take(*wanted: str) -> list[str]:
        taken = [name for name in dict.fromkeys(wanted) if name in left][:TOGETHER]
        for name in taken:
            del left[name]
        return taken

    def percentiles(statistic: str) -> list[str]:
        return [f"{BANDS[statistic]}, p{p}" for p in PERCENTILES] if statistic in bands else []

    first = True
    for metric in ("loss", *_metrics(names)):
        ends = [name for name in names if name == metric or name.endswith(f"/{metric}")]
        if found := take(*[name for name in ("train/loss", "validation/loss") if name in ends], *ends):
            yield Chart(metric.capitalize(), found)
            first = False
    groups = {
        "Gradient norm": [*take("gradient/norm"), *percentiles("gradient_norm")],
        "Update / weight": percentiles("update_ratio"),
        "Learning rate": take(*[name for name in names if name.startswith("optimizer/learning_rate")]),
        "Time of a step": take("time/step", "time/data"),
        "Memory": take("memory/host", "memory/device"),
    }
    yield from (Chart(title, found) for title, found in groups.items() if found)
    for name in left:
        yield Chart(name, [name], main=first)  # a log without any loss opens with its first curve
        first = False


def _metrics(names: Sequence[str]) -> list[str]:
    """What is measured on training or validation data besides the loss, at most four of them."""
    metrics = (name.rpartition("/")[2] for name in names if name.startswith(("validation/", "train/")))
    return [metric for metric in dict.fromkeys(metrics) if metric != "loss"][:4]


def band(table: LayerTable) -> dict[int, Series]:
    """Percentiles over the layers at each step; empty where there are fewer than three layers."""
    values = table.values.astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    measured = np.isfinite(values).sum(axis=1) >= 3
    if not measured.any():
        return {}
    values = values[measured]
    found = np.empty((len(PERCENTILES), len(values)))
    whole = ~np.isnan(values).any(axis=1)
    found[:, whole] = np.percentile(values[whole], PERCENTILES, axis=1)  # many times as fast as nanpercentile
    found[:, ~whole] = np.nanpercentile(values[~whole], PERCENTILES, axis=1)
    return {p: Series(table.steps[measured], row) for p, row in zip(PERCENTILES, found, strict=True)}


def curve_data(name: str, series: Series, most: int) -> dict[str, Any]:
    """One curve of about ``most`` points as the pages draw it; ``name`` says its unit and what it is."""
    holes = thin.gaps(series.steps)
    steps, values = thin.points(series, most, keep=[at for hole in holes for at in (hole, hole + 1)])
    finite = series.values[np.isfinite(series.values)]
    return {
        "about": printable(SERIES.get(name, "")),
        "steps": packed(steps),
        "values": packed(values),
        "gaps": [[int(series.steps[hole]), int(series.steps[hole + 1])] for hole in holes],
        "count": len(series.steps),
        "not_finite": int(len(series.values) - len(finite)),
        "first": number(float(series.values[0])),
        "last": number(float(series.values[-1])),
        "least": number(float(finite.min())) if len(finite) else "-",
        "most": number(float(finite.max())) if len(finite) else "-",
        "unit": "s" if name.startswith("time/") else "bytes" if name.startswith("memory/") else "",
    }


# -- layers ----------------------------------------------------------------------------------------------------------


def _maps(report: Report, share: float) -> tuple[list[dict[str, Any]], list[str]]:
    """The layer maps, the important ones first, as many as fit; and a note on what is left out."""
    history = report.history
    found = [name for name in MAPS if name in history]
    unknown = [name for name in history.statistics() if name not in STATISTICS]
    named = {place for finding in report.findings for place in finding.where}
    maps: list[dict[str, Any]] = []
    notes: list[str] = []
    room = share * CELLS
    for statistic in (*found, *unknown):
        table = history.layers(statistic)
        rows = _rows(table, named)
        least = len(rows) * min(LEAST_COLUMNS, len(table.steps))
        if maps and room < least:
            notes.append(f"the layer map of {printable(statistic)} is not drawn: too many layers for all maps")
            continue
        wanted = share * CELLS / max(len(rows) * len(found), 1)
        columns = int(min(MOST_COLUMNS, max(LEAST_COLUMNS, wanted)))
        maps.append(_map(history, layer_map(history, statistic, columns, rows)))
        room -= maps[-1]["columns"] * len(rows)
        if len(rows) < len(table.layers):
            notes.append(f"the layer map of {printable(statistic)} shows {len(rows):,} of {len(table.layers):,} layers")
    return maps, list(dict.fromkeys(notes))


def _rows(table: LayerTable, named: set[str]) -> list[int]:
    """Which layers a map shows: all, or those that findings name and, evenly spread, others."""
    count = len(table.layers)
    if count <= ROWS:
        return list(range(count))
    chosen = [i for i, layer in enumerate(table.layers) if layer in named][: ROWS // 2]
    return sorted({*chosen, *np.linspace(0, count - 1, ROWS - len(chosen)).astype(int).tolist()})


def _map(history: History, drawn: LayerMap) -> dict[str, Any]:
    return {
        "statistic": printable(drawn.statistic),
        "title": printable(drawn.title),
        "about": printable(STATISTICS.get(drawn.statistic, "")),
        "log": drawn.log,
        "low": drawn.low,
        "high": drawn.high,
        "layers": list(map(printable, drawn.layers)),
        "kinds": [_kind(history, layer) for layer in drawn.layers],
        "columns": len(drawn.steps),
        "steps": packed(drawn.steps),
        "last": drawn.last,
        "gaps": drawn.gaps,
        "shown": packed(drawn.shown),
        "other": None if np.array_equal(drawn.shown, drawn.other) else packed(drawn.other),
    }


def _kind(history: History, layer: str) -> str:
    known = history.architecture.get(layer)
    if known is None:
        return ""
    shape = " x ".join(map(str, known.shape))
    return printable(f"{known.kind} {shape}".strip())


# -- findings and treatments -----------------------------------------------------------------------------------------


def _finding(report: Report, finding: Finding) -> dict[str, Any]:
    treated = [t.step for t in report.treatments if t.finding == finding.id and t.outcome == "kept"]
    return {
        "id": printable(finding.id),
        "code": printable(finding.code),
        "name": printable(finding.name),
        "severity": finding.severity.value,
        "step": finding.step,
        "detected": finding.detected_at,
        "until": min(treated, default=None),
        "where": [printable(place) for place in finding.where[:PLACES]],
        "more": max(0, len(finding.where) - PLACES),
        "message": printable(finding.message),
        "evidence": [_evidence(evidence) for evidence in finding.evidence],
        "advice": printable(finding.advice),
        "remedies": list(map(printable, finding.remedies)),
        "confidence": finding.confidence,
        "root": finding in report.roots,
        "explained_by": printable(finding.explained_by or ""),
        "explains": [printable(other.id) for other in report.explained_by(finding)],
        "advised": [_change(change) for of, change in report.advised if of == finding.id],
    }


def _evidence(evidence: Evidence) -> dict[str, Any]:
    value, limit = evidence.value, evidence.limit
    known = limit is not None and math.isfinite(value) and math.isfinite(limit) and value > 0 and limit > 0
    return {
        "name": printable(evidence.name),
        "value": amount(value, evidence.unit),
        "limit": "" if limit is None else amount(limit, evidence.unit),
        "ratio": value / limit if known and limit else None,
    }


def _change(change: Change) -> dict[str, str]:
    return {
        "remedy": printable(change.remedy),
        "summary": printable(change.summary),
        "code": "\n".join(printable(line.expandtabs(4)) for line in change.code.splitlines()),
    }


TOLD = frozenset(Treatment.model_fields)
"""What is known of a treatment here; a subclass may know more."""


def _treatment(treatment: Treatment) -> dict[str, Any]:
    """A treatment, how it was tried, and what lost against it; what else is known of it is told by its own name."""
    before, after = columns(treatment)
    others = {key: value for key, value in treatment if key not in TOLD and value not in (None, "", ())}
    return {
        "finding": printable(treatment.finding),
        "code": printable(treatment.code),
        "illness": printable(treatment.illness),
        "change": _change(treatment.change),
        "step": treatment.step,
        "decided": treatment.decided_at,
        "trial": printable(treatment.trial),
        "outcome": printable(treatment.outcome),
        "reason": printable(treatment.reason),
        "columns": [before, after],
        "compared": _compared(treatment),
        "tried": tried(treatment),
        "lost": [list(rival) for rival in lost(treatment)],
        "others": [[printable(key.replace("_", " ")), _told(value)] for key, value in others.items()],
    }


def _compared(treatment: Treatment) -> list[dict[str, Any]]:
    rows = []
    for control, treated in zip_longest(treatment.control, treatment.treated):
        known = control or treated
        rows.append(
            {
                "name": printable(known.name),
                "control": _side(control),
                "treated": _side(treated),
                "limit": next((amount(e.limit, e.unit) for e in (control, treated) if e and e.limit is not None), ""),
            }
        )
    return rows


def _side(evidence: Evidence | None) -> dict[str, Any]:
    if evidence is None:
        return {"text": "-", "value": None}
    finite = math.isfinite(evidence.value)
    return {"text": amount(evidence.value, evidence.unit), "value": evidence.value if finite else None}


def _told(value: Any) -> str:
    """Any value in words."""
    if isinstance(value, Evidence):
        return evidence_text(value)
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{printable(str(key))} {_told(entry)}" for key, entry in list(value.items())[:20])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_told(entry) for entry in value[:20])
    return printable(str(value))[:400]


# -- numbers at a glance ---------------------------------------------------------------------------------------------


def _summary(report: Report) -> Iterator[tuple[str, str, str]]:
    """(what, value, detail) of what to know first."""
    history = report.history
    roots = [finding.severity.value for finding in report.roots]
    counts = [counted(roots.count(kind), kind) for kind in ("error", "warning") if kind in roots]
    counts += [f"{roots.count('info')} info"] if "info" in roots else []
    checked = counted(len(report.checked), "rule")
    explained = len(report.findings) - len(report.roots)
    yield "Findings", ", ".join(counts) or "none", f"{explained} more explained" if explained else f"{checked} checked"
    for name, title in (("train/loss", "Training loss"), ("validation/loss", "Validation loss")):
        if name in history:
            steps, values = history.series(name)
            finite = np.isfinite(values)
            best = int(np.argmin(np.where(finite, values, np.inf))) if finite.any() else 0
            yield title, number(float(values[-1])), f"best {number(float(values[best]))} at step {steps[best]:,}"
    kept = sum(treatment.outcome == "kept" for treatment in report.treatments)
    if report.treatments:
        yield "Treatments", f"{kept} kept", f"of {len(report.treatments)} made"
    if "share" in report.cost:
        measured, steps_taken = report.cost.get("measured", 0), report.cost.get("steps", 0)
        yield (
            "Watching",
            f"{100 * report.cost['share']:.1f} % of the time",
            f"{number(measured)} of {number(steps_taken)} steps measured",
        )
    elif report.format != "live":
        yield "Read as", printable(report.format), counted(len(history.names()), "series", "series")


def _cost(report: Report) -> Iterator[tuple[str, str]]:
    words = {
        "seconds": ("Time spent", 1, "s"),
        "share": ("Share of the run's time", 100, "%"),
        "measured": ("Steps measured in full", 1, ""),
        "steps": ("Steps in all", 1, ""),
        "interval": ("Steps from one measured to the next, at the end", 1, ""),
    }
    for key, value in report.cost.items():
        title, times, unit = words.get(key, (printable(key), 1, ""))
        yield title, amount(float(f"{times * value:.3g}") if unit else value, unit)


FACTS = 40


def _facts(history: History) -> Iterator[tuple[str, str]]:
    """What the run was given, as far as it is known and short."""
    for key, value in list(history.facts.items())[:FACTS]:
        if key not in ("notes", "names", "columns", "source", "time") and value not in (None, "", [], {}):
            yield printable(str(key).replace("_", " ")), _told(value)[:300]


def _rules() -> dict[str, str]:
    """Code to name of every rule."""
    from trainmedic.diagnose.judge import catalogue

    return {rule.code: rule.name for rule in catalogue()}
