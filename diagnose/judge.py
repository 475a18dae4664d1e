"""Every rule over one history, and which finding explains which."""

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from trainmedic.diagnose import rules as rules_package
from trainmedic.diagnose.finding import Finding
from trainmedic.diagnose.memo import remembering
from trainmedic.diagnose.rule import Rule
from trainmedic.history import History


@cache
def catalogue() -> tuple[type[Rule], ...]:
    """All rules, by code. The package is walked: a file in ``diagnose/rules/`` is a rule, there is no second list."""
    found = []
    for module in pkgutil.iter_modules(rules_package.__path__):
        loaded = importlib.import_module(f"{rules_package.__name__}.{module.name}")
        found += [
            thing
            for thing in vars(loaded).values()
            if isinstance(thing, type) and issubclass(thing, Rule) and thing.__module__ == loaded.__name__
        ]
    return tuple(sorted(found, key=lambda rule: rule.code))


@dataclass(frozen=True)
class NotChecked:
    """A rule that could not judge this history, and why."""

    code: str
    name: str
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """What all rules say of one history. Findings lead with the root cause; what it explains follows it."""

    findings: tuple[Finding, ...] = ()
    checked: tuple[str, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    errors: tuple[str, ...] = field(default=())
    suppressed: tuple[str, ...] = ()
    """What was not told because the user does not want it, and suppressions that nothing was found for."""


def judge(history: History, rules: Sequence[Rule] | None = None) -> Diagnosis:
    """Run ``rules`` (all, with their defaults, unless given) over ``history``.

    A rule that raises is listed as not checked with its error, and hides no other.
    """
    findings: list[Finding] = []
    checked: list[str] = []
    not_checked: list[NotChecked] = []
    errors: list[str] = []
    suppressed: list[str] = []
    with remembering(history):
        for rule in rules if rules is not None else [rule() for rule in catalogue()]:
            try:
                reason = rule.unmet(history)
                if reason is None:
                    told, remarks = _suppressed(rule, history, list(rule.check(history)))
                    findings += told  # all of it or, if it raises, nothing
                    suppressed += remarks
                    checked.append(rule.code)
            except Exception as error:
                reason = f"the rule failed: {type(error).__name__}: {error}"
                errors.append(f"{rule.code} {rule.name}: {reason}")
            if reason is not None:
                not_checked.append(NotChecked(rule.code, rule.name, reason))
    return Diagnosis(
        tuple(order(findings)), tuple(checked), tuple(not_checked), tuple(errors), suppressed=tuple(suppressed)
    )


def _suppressed(rule: Rule, history: History, found: list[Finding]) -> tuple[list[Finding], list[str]]:
    """What is left of a rule's findings where something is suppressed, and a remark for each suppression."""
    waiting, remarks, view = list(rule.suppressed), [], history
    while touching := next((one for one in waiting if any(one.touches(finding) for finding in found)), None):
        waiting.remove(touching)
        reason = f": {touching.reason}" if touching.reason else ""
        remarks.append(f"suppressed: {touching}{reason}")
        view = touching.hide(view)
        again = list(rule.check(view)) if rule.unmet(view) is None else []
        found = [finding for finding in again if not touching.covers(finding)]
    unused = [f"unused suppression: nothing was found for {one}; take it out of the settings" for one in waiting]
    return found, remarks + unused


def order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with ids and ``explained_by``: roots first, by severity and onset, each followed by what it explains."""
    by_code = {rule.code: rule for rule in catalogue()}

    def suspicion(finding: Finding) -> tuple[int, int, int]:
        rule = by_code.get(finding.code)
        return -finding.severity.rank, rule.root if rule else 9, finding.step

    ordered = sorted(findings, key=suspicion)
    numbered = [finding.model_copy(update={"id": f"f{i}"}) for i, finding in enumerate(ordered, start=1)]
    causes = {finding.id: _cause(finding, numbered, by_code) for finding in numbered}
    explained = [finding.model_copy(update={"explained_by": causes[finding.id]}) for finding in numbered]

    def unfolded(finding: Finding) -> list[Finding]:
        return [finding, *(below for f in explained if f.explained_by == finding.id for below in unfolded(f))]

    # a root weighs as much as the worst that it brings about
    groups = [unfolded(finding) for finding in explained if finding.explained_by is None]
    groups.sort(key=lambda group: -max(finding.severity.rank for finding in group))
    folded = [finding for group in groups for finding in group]
    ids = {finding.id: f"f{i}" for i, finding in enumerate(folded, start=1)}
    return [
        finding.model_copy(update={"id": ids[finding.id], "explained_by": ids.get(finding.explained_by or "")})
        for finding in folded
    ]


def _cause(finding: Finding, others: Sequence[Finding], by_code: dict[str, type[Rule]]) -> str | None:
    """The id of the most suspicious finding that brings this one about and began no later than it was detected, if any.

    Which illness brings about which is declared by the rules (``explains``), and never runs in a circle.
    """
    candidates = [
        other
        for other in others
        if other.code in by_code and finding.name in by_code[other.code].explains and other.step <= finding.detected_at
    ]
    return min(candidates, key=lambda other: (by_code[other.code].root, other.step)).id if candidates else None
