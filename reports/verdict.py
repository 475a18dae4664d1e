"""What there is to know of a run in a few words, the same wherever a report is shown."""

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from trainmedic.diagnose import Finding, Severity
from trainmedic.history import History
from trainmedic.reports.report import Report
from trainmedic.reports.wording import counted, listed, number

VARIES = 1e-3
"""Share by which a learning rate changes that is worth a curve: it shows in three digits."""
LONGEST_NAME = 40
NO_LOSS = re.compile(r"(?:.*[/_.])?(?:time|data|eta|seconds?|minutes?|timestamp|runtime|epochs?|_?steps?|iters?)")
"""Series that count or take time, under names that logs give them."""
LOSS = re.compile(r"(?:.*[^a-z])?(?:\w*loss|l1|l2|mse|mae|nll|ce|bce|kl|elbo|objective|cost)(?:[^a-z].*)?")
"""Names that may well be of a loss, though of which one is for the user to say."""


def verdict(report: Report) -> str:
    """What there is to know, in one sentence without a full stop. Names in it are made printable."""
    if not report.findings:
        return _calm(report)
    explained = len(report.findings) - len(report.roots)
    what = f"{how_many(report.roots)}: {listed(grouped(report.roots), 3)}"
    these = "it" if len({finding.code for finding in report.roots}) == 1 else "these"
    return what + (f" ({counted(explained, 'more finding')} explained by {these})" if explained else "")


def how_many(roots: Sequence[Finding]) -> str:
    """``2 things wrong, 1 suspicious``: each illness once, however many places show it, by the worst of them."""
    worst: dict[str, Severity] = {}
    for finding in roots:
        worst[finding.code] = max(finding.severity, worst.get(finding.code, finding.severity), key=lambda one: one.rank)
    kinds = {Severity.ERROR: "wrong", Severity.WARNING: "suspicious", Severity.INFO: "worth knowing"}
    counts = {kind: sum(found == severity for found in worst.values()) for severity, kind in kinds.items()}
    (first_kind, first_count), *others = [(kind, count) for kind, count in counts.items() if count]
    return f"{counted(first_count, 'thing')} {first_kind}" + "".join(f", {count:,} {kind}" for kind, count in others)


def grouped(findings: Sequence[Finding]) -> list[str]:
    """Each illness once, with its onset, or how often it was found and the first onset."""
    onsets: dict[str, list[int]] = {}
    for finding in findings:
        onsets.setdefault(f"{finding.code} {finding.name}", []).append(finding.step)
    return [
        f"{illness} since step {min(steps):,}" + (f" ({len(steps):,} times)" if len(steps) > 1 else "")
        for illness, steps in onsets.items()
    ]


def cost_text(report: Report) -> str:
    """What watching cost, empty where that is not known."""
    measured, steps = report.cost.get("measured"), report.cost.get("steps")
    share, seconds = report.cost.get("share"), report.cost.get("seconds")
    parts = []
    if measured is not None and steps is not None:
        parts.append(f"{number(measured)} of {number(steps)} steps measured")
    if share is not None:
        parts.append(f"watching cost {100 * share:.1f} % of the time")
    if seconds is not None:
        parts[-1:] = [f"{parts[-1] if parts else 'watching cost'} ({seconds:.2g} s)"]
    if (share or 0) > 0.1 and 2 * (measured or 0) > (steps or 0):  # what it costs by default is stated: about 1 %
        parts.append("because so short a run is measured in full")
    return ", ".join(parts)


def not_checked(report: Report) -> list[tuple[str, list[str]]]:
    """(reason, codes with names) of the rules that could not judge, those that share a reason together."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for entry in report.not_checked:
        by_reason[entry.reason].append(f"{entry.code} {entry.name}")
    return list(by_reason.items())


def understood(report: Report) -> list[tuple[str, str]]:
    """(heading, text) of what the names of a log were taken for; nothing for a run whose names are ours."""
    names = report.history.facts.get("names")
    if not isinstance(names, dict) or report.format in ("live", "trainmedic"):
        return []
    taken = [f"{ours} is {theirs!r}" for ours, theirs in names.items()]
    left = [name for name in report.history.names() if name not in names]
    rows = [("taken for", listed(taken, 8) if taken else "none")] if left or taken else []
    if left:
        hint = "" if "train/loss" in names else " (what one means says --name train/loss=NAME)"
        rows.append(("kept as they are", listed(left, 8) + hint))
    return rows


def unnamed(history: History) -> tuple[str, str] | None:
    """(what is missing, what to do) for a log that has series, but none that is known for a loss; else ``None``."""
    names = history.names()
    known = history.facts.get("names")
    if not isinstance(known, dict) or {"train/loss", "validation/loss"}.intersection(names):
        return None
    left = [name for name in names if name not in known and not NO_LOSS.fullmatch(name.lower())]
    if not left:
        return None
    short = [name for name in left if len(name) <= LONGEST_NAME and name.isprintable()]
    example = next((name for name in short if LOSS.fullmatch(name.lower())), short[0] if short else "NAME")
    argument = shlex.quote(f"train/loss={example}")
    shown = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in left]
    return f"no training loss among {listed(shown, 8)}", f"name it, as in --name {argument}"


def curves(report: Report) -> list[str]:
    """The series that are worth a line: the losses, the norm of the gradients, and the rate, if it is not constant."""
    names = report.history.names()
    losses = sorted(name for name in names if name in ("train/loss", "validation/loss"))
    losses = losses or [name for name in names if name.endswith("/loss")][:2]
    rate = "optimizer/learning_rate"
    rates = report.history.series(rate).values if rate in names else np.empty(0)
    rates = rates[np.isfinite(rates)]
    varies = len(rates) > 0 and float(np.ptp(rates)) > VARIES * float(np.abs(rates).max())
    return [*losses, *(name for name in names if name == "gradient/norm"), *([rate] if varies else [])]


def _calm(report: Report) -> str:
    steps = report.history.last_step - report.history.first_step + 1
    if not report.checked:
        missing = unnamed(report.history)
        return f"could not judge: {missing[0] if missing else 'this record holds nothing that a rule needs'}"
    checked = f"{counted(len(report.checked), 'rule')} checked over {counted(steps, 'step')}"
    return f"nothing wrong found: {checked}" + (f", {cost_text(report)}" if report.cost else "")
