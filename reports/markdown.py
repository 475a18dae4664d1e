"""The report as Markdown for pull requests and notes: GitHub's kind, and readable as it stands.

Every text that comes from a run goes through :func:`text` or into a code span, so that it stands there and does
nothing: it makes no link, picture, mention, heading or cell.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Treatment
from trainmedic.reports.report import Report
from trainmedic.reports.sparkline import sparkline
from trainmedic.reports.verdict import cost_text, curves, grouped, how_many, not_checked, verdict
from trainmedic.reports.wording import (
    advice_parts,
    amount,
    code_block,
    columns,
    compared,
    counted,
    listed,
    lost,
    markdown,
    number,
    printable,
    tried,
)

LIMIT = 64_000
"""Bytes of UTF-8; a comment on GitHub may have 65,536 characters."""
LONGEST = 600
"""Characters of one text of a run."""
ROWS = 50
"""Rows of one table."""
BREAK = "&#8203;"
"""A space without width: it parts what GitHub would make a mention, a reference or a link of."""


def render(*reports: Report) -> str:
    """Reports as one Markdown text of at most ``LIMIT`` bytes; of several a table first, then those with findings."""
    one = len(reports) == 1
    return bounded(_run(reports[0], f"### trainmedic: {_title(reports[0])}") if one else _runs(reports))


def text(given: str) -> str:
    """``given`` as Markdown that shows it literally within a line: no markup, mention, reference, link or emoji."""
    escaped = re.sub(r"([~$])", r"\\\1", markdown(_clipped(given)))
    return _harmless(escaped)


def span(given: str) -> str:
    """``given`` as a code span, whatever it holds. Not for tables, where a bar would end the cell: see :func:`cell`."""
    content = printable(_clipped(given))
    longest = max(map(len, re.findall(r"`+", content)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or not content.strip() or content[:1] == " " else ""
    return f"{fence}{space}{content}{space}{fence}"


def cell(given: str) -> str:
    """``given`` as a code span in a table; as text where it holds a bar, which no code span can hide for sure."""
    return text(given) if "|" in given else span(given)


def _plain_html(given: str) -> str:
    """``given`` as text within an HTML tag."""
    return _harmless(html.escape(printable(_clipped(given)), quote=True))


def _harmless(escaped: str) -> str:
    return re.sub(r"@(?=\w)|(?<!&)#(?=\w)|\bGH-(?=\d)|:(?=//|[\w+-]+:)|\bwww(?=\.)", rf"\g<0>{BREAK}", escaped)


def _clipped(given: str) -> str:
    return given if len(given) <= LONGEST else given[: LONGEST - 1] + "…"


def _title(report: Report) -> str:
    if report.findings:
        return how_many(report.roots)
    return "nothing wrong found" if report.checked else "could not judge"


def _runs(reports: Sequence[Report]) -> Iterator[str]:
    sick = [report for report in reports if report.findings]
    yield f"### trainmedic: {len(sick):,} of {counted(len(reports), 'run')} with findings"
    rows = [
        (
            report.severity.value if report.severity else "fine" if report.checked else "not judged",
            cell(report.path or "this run"),
            text(listed(grouped(report.roots), 2)),
        )
        for report in reports
    ]
    yield table(("", "run", "findings"), rows)
    for report in sick:
        yield from _run(report, f"#### {span(report.path or 'this run')}")


def _run(report: Report, title: str) -> Iterator[str]:
    """The blocks of one report. Each stands for itself: what follows can be left out."""
    history = report.history
    yield title
    where = [span(report.path)] if report.path else []
    where += [f"steps {history.first_step:,} to {history.last_step:,}"]
    where += [f"read as {text(report.format)}"] if report.format != "live" else []
    yield ", ".join(where)
    yield f"**{text(verdict(report))}**"
    yield from _curves(report)
    if report.findings:
        yield _findings_table(report)
    told: set[str] = set()
    for place, finding in enumerate(_in_order(report)):
        yield _finding(report, finding, opened=place == 0, advise=finding.advice not in told)
        told.add(finding.advice)
    if report.treatments:
        yield "**Treatments**"
    for treatment in report.treatments:
        yield _treatment(treatment)
    yield from _advised(report)
    yield from _list("Refused", (f"{text(remedy)}: {text(reason)}" for remedy, reason in report.refused))
    reasons = not_checked(report)
    if reasons:
        lines = [f"* {text(', '.join(rules))}: {text(reason)}" for reason, rules in reasons]
        yield _folded(f"Not checked: {counted(len(report.not_checked), 'rule')}", "\n".join(lines))
    yield from _list("Notes", map(text, report.notes))
    if report.findings and report.cost:
        yield cost_text(report)


def _in_order(report: Report) -> list[Finding]:
    """Roots in order, each followed by all that it explains."""
    placed: dict[str, Finding] = {}

    def place(finding: Finding) -> None:
        if finding.id not in placed:
            placed[finding.id] = finding
            for other in report.explained_by(finding):
                place(other)

    for root in report.roots:
        place(root)
    return list(placed.values())


def _findings_table(report: Report) -> str:
    roots = {finding.id for finding in report.roots}
    rows = [
        (
            finding.severity.value,
            f"**{text(finding.code)} {text(finding.name)}**"
            if finding.id in roots
            else f"↳ {text(finding.code)} {text(finding.name)}",
            f"{finding.step:,}",
            _where(finding.where, 3, cell),
        )
        for finding in _in_order(report)
    ]
    return table(("", "finding", "since step", "where"), rows, align="llrl")


def _finding(report: Report, finding: Finding, *, opened: bool, advise: bool) -> str:
    lines = [text(finding.message[:1].upper() + finding.message[1:]) + "."]
    rows = [
        (text(entry.name), text(amount(entry.value, entry.unit)), text(amount(entry.limit, entry.unit)))
        for entry in finding.evidence
    ]
    if rows:
        lines += ["", table(("measured", "value", "limit"), rows, align="lrr")]
    if finding.where:
        lines += ["", f"**Where:** {_where(finding.where, 8)}"]
    if finding.id in report.lines:
        lines += ["", f"**In the log:** {span(f'{report.file}:{report.lines[finding.id]}')}"]
    if finding.advice:
        lines += ["", _advised_text(finding.advice) if advise else "**What to do:** as above"]
    if finding.remedies and advise:
        lines += ["", f"**Remedies:** {', '.join(map(span, finding.remedies[:8]))}"]
    cause = next((other for other in report.findings if other.id == finding.explained_by), None)
    if cause is not None and cause.id != finding.id:
        lines += ["", f"Explained by {text(cause.code)} {text(cause.name)}."]
    sure = f", confidence {100 * finding.confidence:.0f} %" if finding.confidence < 1 else ""
    late = f", evident at step {finding.detected_at:,}" if finding.detected_at != finding.step else ""
    title = f"{finding.severity.value}: {finding.code} {finding.name} since step {finding.step:,}{late}{sure}"
    return _folded(title, "\n".join(lines), opened=opened)


def _advised_text(advice: str) -> str:
    cause, act, checks = advice_parts(advice)
    lines = [f"**Usually:** {text(cause)}", ""] if cause else []
    lines += [f"**What to do:** {text(act)}"]
    return "\n".join(
        [*lines, *(["", "**Otherwise check**", ""] if checks else []), *(f"* {text(check)}" for check in checks)]
    )


def _treatment(treatment: Treatment) -> str:
    change = treatment.change
    decided = "" if treatment.decided_at is None else f" at step {treatment.decided_at:,}"
    lines = [text(change.summary[:1].upper() + change.summary[1:]) + ".", ""]
    rows = compared(treatment)
    if rows:
        lines += [table(("", *columns(treatment)), [tuple(map(text, row)) for row in rows], align="lrr"), ""]
    if tried(treatment):
        lines += [f"**Tried:** {text(tried(treatment))}", ""]
    lines += [f"**Lost:** {text(what)}: {text(why)}\n" for what, why in lost(treatment)[:ROWS]]
    if treatment.reason:
        lines += [f"**Why {treatment.outcome}:** {text(treatment.reason)}", ""]
    title = f"step {treatment.step:,}: {change.remedy} for {treatment.code} {treatment.illness}: "
    title += f"{treatment.outcome}{decided} ({treatment.trial} trial)"
    return _folded(title, "\n".join([*lines, code_block(_short(change.code))]))


def _advised(report: Report) -> Iterator[str]:
    by_id = {finding.id: finding for finding in report.findings}
    if report.advised:
        yield "**What would be done, as code**"
    for identity, change in report.advised:
        yield _advice(change, by_id.get(identity))


def _advice(change: Change, finding: Finding | None) -> str:
    title = change.remedy + (f" for {finding.code} {finding.name}" if finding else "") + f": {change.summary}"
    return _folded(title, code_block(_short(change.code)))


def _curves(report: Report) -> Iterator[str]:
    lines = []
    for name in curves(report):
        steps, values = report.history.series(name)
        if len(values) > 1:
            ends = f"{number(values[0])} to {number(values[-1])}"
            lines.append(f"{span(name)} `{sparkline(values, 30, steps)}` {ends}")
    if lines:
        yield "  \n".join(lines)


def _where(names: Sequence[str], first: int, shown_as: Callable[[str], str] = span) -> str:
    shown = ", ".join(map(shown_as, names[:first]))
    return shown if len(names) <= first else f"{shown} and {len(names) - first:,} more"


def _short(code: str) -> str:
    lines = [_clipped(line) for line in code.splitlines()]
    return "\n".join(lines if len(lines) <= 40 else [*lines[:38], f"# and {len(lines) - 38:,} lines more"])


def _list(title: str, entries: Iterable[str]) -> Iterator[str]:
    lines = [f"* {entry}" for entry in entries]
    more = [f"* and {len(lines) - ROWS:,} more"] if len(lines) > ROWS else []
    if lines:
        yield "\n".join([f"**{title}**", "", *lines[:ROWS], *more])


def _folded(title: str, content: str, *, opened: bool = False) -> str:
    start = "<details open>" if opened else "<details>"
    return f"{start}\n<summary>{_plain_html(title)}</summary>\n\n{content}\n\n</details>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    rule = "|".join("--:" if side == "r" else "---" for side in align or "l" * len(head))
    lines = [f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows[:ROWS])]
    more = f"\n\nAnd {len(rows) - ROWS:,} more." if len(rows) > ROWS else ""
    return "\n".join(lines) + more


def bounded(parts: Iterable[str]) -> str:
    """The blocks that fit, whole, and a line that says so where some do not."""
    shown: list[str] = []
    room = LIMIT
    for block in parts:
        room -= len(block.encode()) + 2
        if room < 0:
            shown.append("*There is more than fits here; all of it: `trainmedic analyze --format json`.*")
            break
        shown.append(block)
    return "\n\n".join(shown) + "\n"
