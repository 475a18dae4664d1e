"""The report in a terminal: the verdict first, then each root cause with what it explains folded beneath.

Every text goes through ``printable`` and is placed as it is, never as markup: a name in a log can neither colour nor
move anything.
"""

import io
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainmedic.diagnose import Finding, Severity
from trainmedic.remedies.change import Change, Treatment
from trainmedic.reports.report import Report
from trainmedic.reports.sparkline import Floats, Steps, column, spans_decades, sparkline
from trainmedic.reports.verdict import cost_text, curves, grouped, not_checked, understood, verdict
from trainmedic.reports.wording import (
    advice_parts,
    columns,
    compared,
    counted,
    evidence_text,
    listed,
    lost,
    number,
    printable,
    tried,
)

WIDTH = 100
NARROWEST = 40
FULL = 3
"""Illnesses shown in full; the others get a line or two each."""
SHORT = 12
"""Findings of one illness, or explained by one, that get a line each."""
SPARKS = 40
"""Columns of a curve, at most."""
CALLED = {"gradient/norm": "gradient norm", "optimizer/learning_rate": "learning rate"}
ENDS = 22
"""Columns for where it began and ended."""
CODES = 3
"""Changes whose code is shown."""
SUMMARIES = 200
"""Runs that get a line in a list of several."""

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold cyan", None: "bold green"}
OUTCOMES = {"kept": "green", "undone": "yellow", "refused": "yellow", "on trial": "cyan"}


class Code:
    """Lines of code, indented and never wrapped, so that they can be copied; of very many the first ones."""

    MOST = 12

    def __init__(self, text: str) -> None:
        self.lines = [printable(line.expandtabs(4)) for line in text.splitlines()]
        if len(self.lines) > self.MOST:
            more = len(self.lines) - self.MOST + 2
            self.lines = [*self.lines[: self.MOST - 2], f"# and {more:,} lines more (all of them: --format json)"]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.lines:
            yield Text("    " + line, style="cyan", no_wrap=True, overflow="ignore")


class Line:
    """One line that is never wrapped: rich forgets that of a text that it prints by itself."""

    def __init__(self, text: Text) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.no_wrap, self.text.overflow = True, "ignore"
        yield self.text


def render(*reports: Report, width: int | None = None, color: bool = False) -> str:
    """Reports as text, ``width`` columns wide, with colours (ANSI) only if asked for.

    One report is shown in full. Of several each has a line, in the given order, and those with findings follow in full.
    """
    return printed(_all_parts(reports), width=width, color=color)


def printed(parts: Iterable[RenderableType], width: int | None = None, color: bool = False) -> str:
    """What rich prints of ``parts``, as text. Nothing in them is taken for markup."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=max(width or WIDTH, NARROWEST),
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part, markup=False, highlight=False, emoji=False, crop=False)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().split("\n")) + "\n"


def _all_parts(reports: Sequence[Report]) -> Iterator[RenderableType]:
    if len(reports) == 1:
        yield from _parts(reports[0])
        return
    for report in reports[:SUMMARIES]:
        yield Line(summary(report))
    if len(reports) > SUMMARIES:
        yield f"and {len(reports) - SUMMARIES:,} more runs"
    yield ""
    for report in reports:
        if report.findings:
            yield from _parts(report)
            yield ""


def summary(report: Report) -> Text:
    """One line of a list of runs: severity, path, findings at the root."""
    name = report.severity.value if report.severity else "fine" if report.checked else "not judged"
    text = Text(
        f"{name:<10} ",
        style=STYLES[report.severity] if report.checked or report.findings else "bold magenta",
    )
    text.append(printable(report.path) or "this run", style="default not bold")
    if report.findings:
        text.append(": " + listed(grouped(report.roots), 2), style="not bold")
    elif not report.checked:
        text.append(": nothing in it that a rule needs", style="not bold")
    return text


def _parts(report: Report) -> Iterator[RenderableType]:
    yield _header(report)
    style = STYLES[report.severity] if report.checked or report.findings else "bold magenta"
    yield Text(printable(verdict(report)), style=style)
    yield Curves(report)
    by_illness: dict[str, list[Finding]] = {}
    for finding in report.roots:
        by_illness.setdefault(finding.code, []).append(finding)
    for shown, alike in enumerate(by_illness.values()):
        yield from _illness(report, alike, full=shown < FULL)
    yield from _treatments(report.treatments)
    yield from _advised(report)
    yield from _block("refused", ((remedy, reason) for remedy, reason in report.refused))
    yield from _not_checked(report)
    yield from _block("names in the log", understood(report), style="dim")
    yield from _block("notes", (("", note) for note in report.notes))
    if report.findings and report.cost:
        yield Text(f"\n{cost_text(report)}", style="dim")


def _header(report: Report) -> Text:
    history = report.history
    text = Text(printable(report.path) or "this run", style="bold")
    text.append(f"  steps {history.first_step:,} to {history.last_step:,}", style="dim not bold")
    text.append(f", {counted(len(history.names()), 'series', 'series')}", style="dim not bold")
    return text if report.format == "live" else text.append(f", read as {report.format}", style="dim not bold")


class Curves:
    """The main curves of a run, below each other step by step, and marks where its findings begin."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        history = self.report.history
        names = [name for name in curves(self.report) if len(history.series(name).values) > 1]
        if not names:
            return
        span = (history.first_step, history.last_step)
        shown = [printable(CALLED.get(name, name)) for name in names]
        longest = min(max(map(len, shown)), 24)
        numbers = options.max_width - longest - ENDS >= 20  # where it is too narrow, the curves matter most
        sparks = min(SPARKS, options.max_width - longest - 4 - (ENDS + 2 if numbers else 0))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, overflow="ellipsis", max_width=longest, style="dim")
        for style in ("blue", "dim"):
            grid.add_column(no_wrap=True, overflow="crop", style=style)
        for name, label in zip(names, shown, strict=True):
            line, ends = _curve(name, *history.series(name), span=span, width=sparks)
            grid.add_row(label, line, ends if numbers else "")
        if self.report.roots and span[1] > span[0]:
            marks, codes = _onsets(self.report.roots, span, sparks)
            grid.add_row("findings", marks, codes if numbers else "")
        if self.report.treatments and span[1] > span[0]:
            grid.add_row("treatments", _changes(self.report.treatments, span, sparks))
        yield Padding(grid, (0, 0, 0, 2))


def _curve(name: str, steps: Steps, values: Floats, *, span: tuple[int, int], width: int) -> tuple[str, str]:
    """(sparkline, where it began and ended)."""
    logarithm = name == "gradient/norm" and spans_decades(values)
    ends = f"{number(values[0])} to {number(values[-1])}" + (" (log)" if logarithm else "")
    if (values == values[0]).all():
        ends = f"{number(values[0])}, constant"
    return sparkline(values, width, steps, span, logarithm=logarithm), ends


def _onsets(roots: Sequence[Finding], span: tuple[int, int], width: int) -> tuple[Text, str]:
    """A mark at the step of each onset; of several in one column the worst one's."""
    worst: dict[int, Finding] = {}
    for finding in roots:
        place = column(finding.step, span, width)
        if place not in worst or finding.severity.rank > worst[place].severity.rank:
            worst[place] = finding
    line = Text()
    for place in range(max(worst) + 1):
        found = worst.get(place)
        line.append("▲" if found else " ", style=STYLES[found.severity] if found else "")
    codes = [worst[place].code for place in sorted(worst)]
    return line, listed(list(dict.fromkeys(codes)), 4)


def _changes(treatments: Sequence[Treatment], span: tuple[int, int], width: int) -> Text:
    """A mark at the first step taken with each change."""
    outcomes = {column(treatment.step, span, width): treatment.outcome for treatment in treatments}
    line = Text()
    for place in range(max(outcomes) + 1):
        line.append("◆" if place in outcomes else " ", style=OUTCOMES.get(outcomes.get(place, ""), ""))
    return line


def _illness(report: Report, alike: Sequence[Finding], *, full: bool) -> Iterator[RenderableType]:
    """Findings of one illness: the first with all that belongs to it, the others in a line each."""
    finding, *others = alike
    yield _head(finding, gap=full)
    yield Padding(Text(printable(finding.message)), (0, 0, 0, 2))
    if not full:
        yield from (
            [Padding(Text(f"and {counted(len(others), 'more of these', 'more of these')}", style="dim"), (0, 0, 0, 2))]
            if others
            else []
        )
        return
    cause, act, checks = advice_parts(printable(finding.advice))
    explained = [_line(other) for one in alike for other in _explained(report, one, seen=())]
    also = [_line(other, name=False) for other in others]
    yield _rows(
        [
            *(("evidence", evidence_text(evidence)) for evidence in finding.evidence),
            ("where", listed(finding.where)),
            ("line", f"{printable(report.file)}:{report.lines[finding.id]}" if finding.id in report.lines else ""),
            *(("explains", line) for line in _first(explained)),
            *(("also", line) for line in _first(also)),
            ("cause", f"usually: {cause}" if cause else ""),
            ("do", act),
            *(("else", check) for check in checks),
            ("remedies", listed(finding.remedies, 6)),
        ]
    )


def _head(finding: Finding, *, gap: bool) -> Text:
    head = Text("\n" if gap else "", style=STYLES[finding.severity])
    head.append(f"{finding.severity.value} {finding.code} {printable(finding.name)}")
    head.append(f"  since step {finding.step:,}", style="dim not bold")
    if finding.detected_at != finding.step:
        head.append(f", evident at step {finding.detected_at:,}", style="dim not bold")
    if finding.confidence < 1:
        head.append(f", confidence {100 * finding.confidence:.0f} %", style="dim not bold")
    return head


def _explained(report: Report, finding: Finding, seen: tuple[str, ...]) -> Iterator[Finding]:
    """Each finding below this one, however deep."""
    for other in report.explained_by(finding):
        if other.id not in seen:
            yield other
            yield from _explained(report, other, (*seen, finding.id))


def _line(finding: Finding, *, name: bool = True) -> Text:
    """A finding in one line, cut off where the line ends."""
    text = Text(f"{finding.code} {printable(finding.name)} " if name else "", no_wrap=True, overflow="ellipsis")
    return text.append(f"since step {finding.step:,}: {printable(finding.message)}")


def _first(lines: Sequence[Text]) -> list[Text]:
    more = len(lines) - SHORT
    return [*lines[:SHORT], Text(f"and {more:,} more")] if more > 0 else list(lines)


def _treatments(treatments: Sequence[Treatment]) -> Iterator[RenderableType]:
    if treatments:
        yield Text("\ntreatments", style="bold")
    for treatment in treatments:
        yield from _treatment(treatment)


def _treatment(treatment: Treatment) -> Iterator[RenderableType]:
    change = treatment.change
    text = Text(f"step {treatment.step:,}  ")
    text.append(printable(change.remedy), style="bold")
    text.append(f" for {treatment.code} {printable(treatment.illness)}: ")
    text.append(treatment.outcome, style=OUTCOMES[treatment.outcome])
    decided = "" if treatment.decided_at is None else f" at step {treatment.decided_at:,}"
    yield Padding(text.append(f"{decided} ({treatment.trial} trial)", style="dim"), (0, 0, 0, 2))
    before, after = columns(treatment)
    numbers = "; ".join(f"{name} {before} {one}, {after} {other}" for name, one, other in compared(treatment))
    also = [("lost", f"{what}: {why}") for what, why in lost(treatment)]
    rows = [("done", printable(change.summary)), ("numbers", numbers), ("tried", tried(treatment))]
    yield _rows([*rows, ("why", printable(treatment.reason)), *also])


def _advised(report: Report) -> Iterator[RenderableType]:
    by_id = {finding.id: finding for finding in report.findings}
    if report.advised:
        yield Text("\nwhat would be done, as code", style="bold")
    for place, (finding_id, change) in enumerate(report.advised):
        yield from _change(change, by_id.get(finding_id), code=place < CODES)
    if len(report.advised) > CODES:
        yield Padding(Text("their code: --format json", style="dim"), (0, 0, 0, 2))


def _change(change: Change, finding: Finding | None, *, code: bool) -> Iterator[RenderableType]:
    text = Text(printable(change.remedy), style="bold")
    if finding:
        text.append(f" for {finding.code} {printable(finding.name)}", style="not bold")
    yield Padding(text.append(f": {printable(change.summary)}", style="not bold"), (0, 0, 0, 2))
    if code:
        yield Code(change.code)


def _not_checked(report: Report) -> Iterator[RenderableType]:
    """Rules that could not judge, by what they lack, in one paragraph: there may be many."""
    reasons = not_checked(report)
    if not reasons:
        return
    rules = len(report.not_checked) + len(report.checked)
    yield Text(f"\nnot checked: {len(report.not_checked):,} of {counted(rules, 'rule')}", style="bold dim")
    told = [
        f"{printable(reason.removesuffix(' in this history'))}: "
        + ", ".join(codes if len(codes) > 1 or len(reasons) > 4 else names)
        for reason, names in reasons
        for codes in [[name.split(" ")[0] for name in names]]
    ]
    yield Padding(Text("; ".join(told), style="dim"), (0, 0, 0, 2))


def _block(title: str, rows: Iterable[tuple[str, str]], style: str = "") -> Iterator[RenderableType]:
    lines = [f"{printable(label)}: {printable(text)}" if label else printable(text) for label, text in rows]
    if lines:
        yield Text(f"\n{title}", style=f"bold {style}".strip())
    for line in lines:
        yield Padding(Text(line, style=style), (0, 0, 0, 2))


def _rows(rows: Iterable[tuple[str, str | Text]]) -> RenderableType:
    """Labels in one column, texts wrapped in the next; rows without text are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim", width=8)
    grid.add_column(overflow="fold")
    previous = ""
    for label, text in rows:
        if text:
            grid.add_row("" if label == previous else label, text if isinstance(text, Text) else Text(text))
            previous = label
    return Padding(grid, (0, 0, 0, 2))
