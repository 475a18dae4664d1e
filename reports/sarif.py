"""SARIF 2.1.0, the format in which code hosts take the findings of tools.

Every rule is declared, also those that found nothing: otherwise an alert that is gone could not be closed. A finding
points at the log, and at the line of its onset where the format has lines.

Source: SARIF 2.1.0 (OASIS, 2020) and what GitHub asks for beyond it: a line for each result, at most 25,000 results,
and fingerprints that stay the same while a log grows.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainmedic.diagnose import Finding, Rule, Severity
from trainmedic.diagnose.judge import catalogue
from trainmedic.reports.report import Report, plain
from trainmedic.reports.wording import counted, evidence_text, listed, printable

SCHEMA = "https://json.schemastore.org/sarif-2.1.0-rtm.5.json"
MOST_RESULTS = 25_000
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(reports: Sequence[Report], unreadable: Iterable[tuple[str, str]] = (), root: Path | None = None) -> str:
    """Reports as SARIF; files below ``root`` (the working directory unless given) are named relative to it."""
    root = root or Path.cwd()
    rules = catalogue()
    places = {rule.code: place for place, rule in enumerate(rules)}
    results = [result for report in reports for result in _results(report, places, root)]
    troubles = [_trouble(f"{path}: {reason}" if path not in reason else reason) for path, reason in unreadable]
    if len(results) > MOST_RESULTS:
        left_out = counted(len(results) - MOST_RESULTS, "finding")
        troubles.append(_trouble(f"{left_out} of the least severe runs are left out: more are not taken"))
    run = {
        "tool": {"driver": _driver(rules)},
        "columnKind": "utf16CodeUnits",
        "invocations": [{"executionSuccessful": not troubles, "toolExecutionNotifications": troubles}],
        "results": results[:MOST_RESULTS],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, allow_nan=False) + "\n"


def _driver(rules: Iterable[type[Rule]]) -> dict[str, Any]:
    from trainmedic import __version__

    return {"name": "trainmedic", "version": __version__, "rules": [_rule(rule) for rule in rules]}


def _rule(rule: type[Rule]) -> dict[str, Any]:
    sections = rule.sections()
    what = sections.get("What it is", rule.name)
    text = "\n\n".join(f"{heading}: {told}" for heading, told in sections.items() if heading != "What it is")
    return {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.name.replace("-", " ")},
        "fullDescription": {"text": what},
        "help": {"text": f"{what}\n\n{text}\n\nWhat to do: {rule.advice}"},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
        "properties": {"tags": ["training", rule.root.name.lower().replace("_", "-")]},
    }


def _results(report: Report, places: Mapping[str, int], root: Path) -> Iterable[dict[str, Any]]:
    seen: Counter[tuple[str, ...]] = Counter()
    by_id = {finding.id: finding for finding in report.findings}
    for finding in report.findings:
        kind = (_uri(report.path, root), finding.code, *finding.where[:1])
        seen[kind] += 1
        location: dict[str, Any] = {
            "physicalLocation": {
                "artifactLocation": {"uri": _uri(report.file or report.path, root)},
                "region": {"startLine": report.lines.get(finding.id, 1)},
            }
        }
        if finding.where:
            location["logicalLocations"] = [{"name": printable(name)} for name in finding.where[:10]]
        result: dict[str, Any] = {
            "ruleId": finding.code,
            "level": LEVELS[finding.severity],
            "message": {"text": _message(report, finding, by_id.get(finding.explained_by or ""))},
            "locations": [location],
            "partialFingerprints": {"trainmedic/v1": _digest(*kind, str(seen[kind]))},
            "properties": {
                "run": printable(report.path),
                "step": finding.step,
                "detectedAt": finding.detected_at,
                "confidence": finding.confidence,
                "evidence": [plain(evidence.model_dump(mode="json")) for evidence in finding.evidence],
            },
        }
        if finding.code in places:
            result["ruleIndex"] = places[finding.code]
        yield result


def _message(report: Report, finding: Finding, cause: Finding | None) -> str:
    """What was seen and since when. No text of a log makes a link in it."""
    parts = [
        f"{printable(finding.message)} (since step {finding.step:,}, evident at step {finding.detected_at:,}, "
        f"in {printable(report.path)})"
    ]
    if finding.where:
        parts.append(f"Where: {listed(finding.where)}.")
    if finding.evidence:
        parts.append(f"Evidence: {'; '.join(map(evidence_text, finding.evidence))}.")
    if cause is not None:
        parts.append(f"Explained by {cause.code} {printable(cause.name)}.")
    if finding.advice:
        parts.append(printable(finding.advice))
    return "\n".join(parts).replace("](", "] (")


def _trouble(text: str) -> dict[str, Any]:
    return {"level": "error", "message": {"text": printable(text)}}


def _uri(path: str, root: Path) -> str:
    """The path as a reference: relative where it lies below ``root``, for a host that knows only the repository."""
    if "://" in path:
        return quote(path, safe=":/#")
    absolute = root / path
    try:
        return quote(absolute.relative_to(root).as_posix())
    except ValueError:
        return absolute.as_uri()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32]
