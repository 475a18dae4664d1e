"""Which remedies are candidates, and in which order."""

from typing import Any, ClassVar

import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.judge import catalogue
from trainmedic.history import History
from trainmedic.remedies import choose as module
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.choose import allowed, choose
from trainmedic.remedies.remedy import Refused, Remedy, pharmacy
from trainmedic.remedies.run import Run


class Plain(Remedy):
    """Proposes."""

    treats: ClassVar = ("illness",)
    safety: ClassVar = Safety.SAFE

    def propose(self, finding: Finding, run: Run) -> Change | None:
        return Change(remedy=self.name, summary="done", code="pass")


class Deep(Plain):
    """Changes weights."""

    safety: ClassVar = Safety.UNSAFE


class Advice(Plain):
    """Is done by nobody."""

    safety: ClassVar = Safety.MANUAL


class Other(Plain):
    """Treats something else."""

    treats: ClassVar = ("another",)


class Unfit(Plain):
    """Does not fit what was measured."""

    def propose(self, finding: Finding, run: Run) -> Change | None:
        return None


class Cautious(Plain):
    """Cannot be made safely."""

    def propose(self, finding: Finding, run: Run) -> Change | None:
        raise Refused("the model is compiled")


class Broken(Plain):
    """Has an error in it."""

    def propose(self, finding: Finding, run: Run) -> Change | None:
        raise KeyError("fc1")


ALL = (Plain, Deep, Advice, Other, Unfit, Cautious, Broken)


@pytest.fixture(autouse=True)
def _shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pharmacy", lambda: ALL)


def ill(*remedies: str) -> Finding:
    return Finding(
        code="TM000",
        name="illness",
        severity=Severity.ERROR,
        step=0,
        detected_at=0,
        message=".",
        remedies=remedies or tuple(remedy.name for remedy in ALL),
    )


def names(finding: Finding, **options: Any) -> list[str]:
    candidates = choose(finding, Run([], [], History()), **{"fix": "unsafe", **options}).candidates
    assert [change.remedy for _, change in candidates] == [remedy.name for remedy, _ in candidates]
    return [remedy.name for remedy, _ in candidates]


def test_the_order_is_that_of_the_finding() -> None:
    assert names(ill("deep", "plain")) == ["deep", "plain"]
    assert names(ill("plain", "deep")) == ["plain", "deep"]


def test_the_level_decides_what_may_be_applied() -> None:
    assert names(ill(), fix="off") == []
    assert names(ill(), fix="safe") == ["plain"]
    assert names(ill(), fix="unsafe") == ["plain", "deep"]
    assert not allowed(Advice, "unsafe")


def test_what_was_tried_or_is_excluded_or_unknown_is_no_candidate() -> None:
    assert names(ill(), tried={"plain": 1}) == ["deep"]
    assert names(ill(), ignore=("deep",)) == ["plain"]
    assert names(ill("prayer", "plain")) == ["plain"]


def test_refusals_are_told_and_errors_hide_nothing() -> None:
    choice = choose(ill("broken", "cautious", "plain"), Run([], [], History()), fix="safe")
    assert choice.refused == [("broken", "it failed: KeyError: 'fc1'"), ("cautious", "the model is compiled")]
    assert [change.remedy for _, change in choice.candidates] == ["plain"]


def test_rules_name_the_remedies_that_treat_them() -> None:
    shelf = {remedy.name: remedy for remedy in pharmacy()}
    treated = {name for remedy in shelf.values() for name in remedy.treats}
    for rule in catalogue():
        if rule.name in treated:
            assert any(name in shelf and rule.name in shelf[name].treats for name in rule.remedies), rule.name
