"""Judge after the fact: logs are read, every rule looks at them, and a ``Report`` comes out. Imports no torch."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trainmedic.diagnose import Finding, Rule
from trainmedic.diagnose.judge import judge
from trainmedic.errors import UnreadableError, UsageError
from trainmedic.history import History
from trainmedic.readers import find
from trainmedic.readers.own import recorded
from trainmedic.readers.reader import Source
from trainmedic.remedies.change import Change
from trainmedic.reports.report import Report
from trainmedic.settings import Settings

Given = Settings | Mapping[str, Any] | str | os.PathLike[str] | None


def examine(history: History, settings: Given = None) -> list[Finding]:
    """What is wrong in ``history``: roots first, each followed by what it explains."""
    if not isinstance(history, History):
        raise UsageError(f"examine() needs a History (trainmedic.read(path) gives some), but got {history!r:.60}")
    return list(judge(history, Settings.load(settings).configured_rules()).findings)


def analyze(path: str | os.PathLike[str], settings: Given = None) -> list[Report]:
    """One report for every run at ``path``, the worst first; broken logs are left out while there are others."""
    rules = Settings.load(settings).configured_rules()
    reports: list[Report] = []
    errors: list[UnreadableError] = []
    for source in find(path):
        try:
            reports += reports_of(source, rules)
        except UnreadableError as error:
            errors.append(error)
    if not reports:
        raise errors[0]
    return worst_first(reports)


def reports_of(source: Source, rules: Sequence[Rule]) -> list[Report]:
    """The runs of one log, judged. Of a watched run also what the medic did and what that cost."""
    reports = []
    for history in source.read():
        notes = [str(note) for note in _list(history.facts.get("notes"))]
        told = Report(history)
        try:
            run = recorded(source.path)
            told = Report.from_dict(run, history) if run else told
        except (UnreadableError, ValueError) as error:
            notes.append(f"what the medic reported of this run cannot be read: {_first_line(error)}")
        report = Report.from_history(
            history,
            rules,
            path=str(source.path.parent if source.reader.name == "trainmedic" else source.path),
            format=source.reader.name,
            treatments=told.treatments,
            refused=told.refused,
            cost=told.cost,
            notes=dict.fromkeys([*told.notes, *notes]),
        )
        reports.append(replace(report, advised=_advised(told, report)))
    return reports


def recorded_report(source: Source) -> Report:
    """The report of a watched run exactly as the medic gave it; ``UnreadableError`` where it left none."""
    run = recorded(source.path)
    if run is None:
        raise UnreadableError(f"{source.path}: no trainmedic.json beside it (is it the logdir of a watched run?)")
    try:
        return Report.from_dict(run, source.read()[0])
    except ValueError as error:
        raise UnreadableError(f"{source.path.parent}: {_first_line(error)}") from error


def _advised(told: Report, report: Report) -> tuple[tuple[str, Change], ...]:
    """What the medic advised, where the finding that it is for is found again; findings may have other ids now."""
    keys = {finding.id: finding.key for finding in told.findings}
    ids = {finding.key: finding.id for finding in report.findings}
    return tuple((ids[keys[old]], change) for old, change in told.advised if keys.get(old) in ids)


def worst_first(reports: Iterable[Report]) -> list[Report]:
    """Reports by severity, then by number of root causes; runs that no rule could judge last."""

    def badness(report: Report) -> tuple[int, int, bool]:
        severity = report.severity
        return -(severity.rank + 1 if severity else 0), -len(report.roots), not report.checked

    return sorted(reports, key=badness)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
