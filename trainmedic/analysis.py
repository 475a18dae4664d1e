"""Judge after the fact: logs are read, every rule looks at them, and a ``Report`` comes out. Imports no torch."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainmedic.diagnose import Finding, Rule
from trainmedic.diagnose.judge import judge
from trainmedic.errors import UnreadableError, UsageError
from trainmedic.history import History
from trainmedic.parallel import mapped
from trainmedic.readers import find
from trainmedic.readers.own import recorded
from trainmedic.readers.reader import Options, Source
from trainmedic.remedies.change import Change
from trainmedic.reports.report import Report
from trainmedic.reports.verdict import unnamed
from trainmedic.settings import Settings

Given = Settings | Mapping[str, Any] | str | os.PathLike[str] | None


def examine(history: History, settings: Given = None) -> list[Finding]:
    """What is wrong in ``history``: roots first, each followed by what it explains."""
    if not isinstance(history, History):
        raise UsageError(f"examine() needs a History (trainmedic.read(path) gives some), but got {history!r:.60}")
    return list(judge(history, Settings.load(settings).configured_rules()).findings)


def analyze(path: str | os.PathLike[str], settings: Given = None) -> list[Report]:
    """One report for every run at ``path``, the worst first; broken logs are left out while there are others."""
    judged = analyze_all([os.fspath(path)], settings)
    if not judged.reports:
        raise UnreadableError(judged.unreadable[0][1])
    return judged.reports


@dataclass(frozen=True)
class Judged:
    """The runs that were judged, the worst first, and (path, reason) of what could not be read."""

    reports: list[Report]
    unreadable: list[tuple[str, str]]


Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Takes the results, as they come, and how many there will be; gives them on and shows how far it is."""


def analyze_all(
    paths: Iterable[str],
    settings: Given = None,
    options: Options | None = None,
    *,
    jobs: int = 1,
    progress: Progress = lambda results, count: results,
) -> Judged:
    """Every run at ``paths``, judged by up to ``jobs`` processes. The result does not depend on how many."""
    rules = Settings.load(settings).configured_rules()
    sources, unreadable = _found(paths)
    reports: list[Report] = []
    work = partial(_outcome, rules=rules, options=options or Options())
    for source, outcome in zip(sources, progress(mapped(work, sources, jobs, _lost), len(sources)), strict=True):
        if isinstance(outcome, str):
            unreadable.append((source.shown(source.path), outcome))
        else:
            reports += outcome
    return Judged(worst_first(reports), unreadable)


def _found(paths: Iterable[str]) -> tuple[list[Source], list[tuple[str, str]]]:
    sources: dict[Path, Source] = {}  # a path that is given twice, or lies in another one, counts once
    unreadable: list[tuple[str, str]] = []
    for path in paths:
        try:
            sources.update({source.path: source for source in find(path)})
        except UnreadableError as error:
            unreadable.append((path, str(error)))
    return list(sources.values()), unreadable


def _outcome(source: Source, rules: Sequence[Rule], options: Options) -> list[Report] | str:
    """The reports of one log, or why there are none."""
    try:
        return reports_of(source, rules, options)
    except UnreadableError as error:
        return str(error)


def _lost(source: Source) -> str:
    name = source.shown(source.path)
    return f"{name}: not judged: a process was killed at its work (out of memory?); fewer at once: --jobs 1"


def reports_of(source: Source, rules: Sequence[Rule], options: Options | None = None) -> list[Report]:
    """The runs of one log, judged. Of a watched run also what the medic did and what that cost."""
    reports = []
    place = source.shown(source.path.parent if source.reader.name == "trainmedic" else source.path)
    histories = source.read(options)
    for history in histories:
        notes = [str(note) for note in _list(history.facts.get("notes"))]
        missing = unnamed(history)
        notes += ["; ".join(missing)] if missing else []
        told = Report(history)
        try:
            run = recorded(source.path)
            told = Report.from_dict(run, history) if run else told
        except (UnreadableError, ValueError) as error:
            notes.append(f"what the medic reported of this run cannot be read: {_first_line(error)}")
        report = Report.from_history(
            history,
            rules,
            path=f"{place}#{history.facts['run']}" if len(histories) > 1 and "run" in history.facts else place,
            format=source.reader.name,
            treatments=told.treatments,
            refused=told.refused,
            cost=told.cost,
            notes=dict.fromkeys([*told.notes, *notes]),
        )
        onsets = {finding.id: source.line(history, finding.step) for finding in report.findings}
        lines = {id: line for id, line in onsets.items() if line is not None}
        reports.append(replace(report, advised=_advised(told, report), file=source.shown(source.file), lines=lines))
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
