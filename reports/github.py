"""Annotations of GitHub Actions: workflow commands on standard output, the whole table in the summary of the step.

GitHub shows ten errors, ten warnings and ten notices of a step. So there is one annotation for each rule, at the worst
of its findings, and what does not fit stands in the summary alone.

Source: GitHub's documentation of workflow commands and of its problem matchers' limits.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from trainmedic.diagnose import Finding, Severity
from trainmedic.reports.markdown import text as literally
from trainmedic.reports.report import Report
from trainmedic.reports.wording import counted, printable

MOST = 10
"""Annotations of one level that GitHub shows."""
SUMMARY_BYTES = 1 << 20
"""Size of the summaries of one step together."""
PLACES = 5
COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


class Placed(NamedTuple):
    """A finding, and where it is."""

    finding: Finding
    report: Report

    @property
    def line(self) -> int | None:
        return self.report.lines.get(self.finding.id)

    @property
    def place(self) -> str:
        """The run, and the line of onset where there is one."""
        return printable(self.report.path) + (f":{self.line}" if self.line else "")


def render(reports: Sequence[Report], unreadable: Sequence[tuple[str, str]] = ()) -> str:
    """The annotations, one line each; the worst first."""
    lines = []
    if unreadable:
        path, reason = unreadable[0]
        others = f" (and {counted(len(unreadable) - 1, 'other')})" if len(unreadable) > 1 else ""
        lines.append(_command("error", "could not be judged", path, None, f"{reason}{others}"))
    groups = _by_rule(reports)
    for severity, command in COMMANDS.items():
        of_level = [group for group in groups if group[0].finding.severity == severity]
        room = MOST - (len(lines) if severity is Severity.ERROR else 0)
        lines += [_annotation(command, group) for group in of_level[:room]]
    return "".join(f"{line}\n" for line in lines)


def summary(reports: Sequence[Report], unreadable: Sequence[tuple[str, str]] = (), room: int = SUMMARY_BYTES) -> str:
    """All findings as a table in Markdown, by rule, in at most ``room`` bytes."""
    sick = [report for report in reports if report.findings]
    head = f"### trainmedic: {counted(len(sick), 'run')} of {len(reports):,} with findings\n\n"
    if sick:
        head += "| severity | rule | run | since step | what was seen |\n|---|---|---|--:|---|\n"
    return _within(room, head, [*_rows(reports), *_not_judged(unreadable)])


def _rows(reports: Sequence[Report]) -> Iterator[str]:
    for group in _by_rule(reports):
        for placed in group:
            finding = placed.finding
            yield (
                f"| {finding.severity} | {finding.code} {literally(finding.name)} | {literally(placed.place)} "
                f"| {finding.step:,} | {literally(finding.message)} |\n"
            )


def _not_judged(unreadable: Sequence[tuple[str, str]]) -> Iterator[str]:
    if unreadable:
        yield "\nCould not be judged:\n\n"
    for _, reason in unreadable:
        yield f"* {literally(reason)}\n"


def _within(room: int, head: str, rows: Sequence[str]) -> str:
    """As many rows as there is room for, and how many are left out."""
    parts, used = [head], len(head.encode()) + 100
    for place, row in enumerate(rows):
        used += len(row.encode())
        if used > room:
            parts.append(f"\nand {len(rows) - place:,} lines more\n")
            break
        parts.append(row)
    return "".join(parts) if len(head.encode()) + 100 <= room else ""


def _by_rule(reports: Iterable[Report]) -> list[list[Placed]]:
    """Findings by rule, within each the worst first; rules by the worst of theirs."""
    groups: dict[str, list[Placed]] = {}
    for report in reports:
        for finding in report.findings:
            groups.setdefault(finding.code, []).append(Placed(finding, report))
    for group in groups.values():
        group.sort(key=lambda placed: -placed.finding.severity.rank)
    return sorted(groups.values(), key=lambda group: -group[0].finding.severity.rank)


def _annotation(command: str, group: Sequence[Placed]) -> str:
    first = group[0]
    finding = first.finding
    title = f"{finding.code} {finding.name}" + (f" ({len(group):,} times)" if len(group) > 1 else "")
    text = f"{printable(finding.message)} (since step {finding.step:,})"
    others = [f"{placed.place} since step {placed.finding.step:,}" for placed in group[1 : 1 + PLACES]]
    if len(group) > 1 + PLACES:
        others.append(f"and {len(group) - 1 - PLACES:,} more")
    text += "".join(f"\n{other}" for other in others)
    return _command(command, title, first.report.file or first.report.path, first.line, text)


def _command(command: str, title: str, file: str, line: int | None, text: str) -> str:
    properties = {"title": printable(title), "file": printable(file), "line": str(line or 1)}
    told = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{command} {told}::{_data(text)}"


def _data(text: str) -> str:
    lines = "\n".join(map(printable, text.split("\n")))
    return lines.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
