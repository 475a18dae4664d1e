"""``judge``: ids, order, causes, and rules that cannot judge or that break."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.judge import catalogue, judge, order
from trainmedic.diagnose.rules.dead_relu import DeadRelu
from trainmedic.diagnose.rules.exploding_gradient import ExplodingGradient
from trainmedic.diagnose.rules.non_finite import NonFinite
from trainmedic.diagnose.rules.overfitting import Overfitting
from trainmedic.diagnose.rules.vanishing_gradient import VanishingGradient
from trainmedic.history import History

NAN = float("nan")
EXPLODED = History.of(
    gradient_norm=[471, 8811, 157520, NAN],
    train_loss=[162, 5e3, 9e5, NAN],
    relu__dead_units_lasting=[0.95, 0.95, 0.95, 0.95],
)


def found(rule: type[Rule], step: int, detected_at: int, severity: Severity = Severity.ERROR) -> Finding:
    evidence = [Evidence(name="x", value=1.0)]
    return rule().finding(
        step=step, detected_at=detected_at, where=("x",), message="x", evidence=evidence, severity=severity
    )


def told(findings: list[Finding] | tuple[Finding, ...]) -> list[tuple[str, str | None]]:
    """Names, each with the name of what explains it."""
    names = {finding.id: finding.name for finding in findings}
    return [(finding.name, names.get(finding.explained_by or "")) for finding in findings]


class Broken(Rule):
    """A rule that raises."""

    code: ClassVar[str] = "TM999"
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)

    def check(self, history: History) -> Iterator[Finding]:
        raise ZeroDivisionError("of course")
        yield


def test_the_root_leads_and_what_it_explains_follows() -> None:
    diagnosis = judge(EXPLODED)
    assert told(diagnosis.findings) == [
        ("exploding-gradient", None),
        ("dead-relu", "exploding-gradient"),
        ("non-finite", "exploding-gradient"),
    ]
    assert {"TM101", "TM202", "TM301"} <= set(diagnosis.checked)
    assert not {"TM201", "TM501"} & set(diagnosis.checked)


def test_ids_are_unique_and_count_from_one() -> None:
    assert sorted(finding.id for finding in judge(EXPLODED).findings) == ["f1", "f2", "f3"]


def test_a_cause_that_began_after_the_finding_was_certain_explains_nothing() -> None:
    assert told(order([found(NonFinite, 5, 5), found(ExplodingGradient, 6, 9)])) == [
        ("exploding-gradient", None),
        ("non-finite", None),
    ]


def test_unrelated_findings_do_not_explain_each_other() -> None:
    assert told(order([found(Overfitting, 50, 90), found(DeadRelu, 3, 6)])) == [
        ("dead-relu", None),
        ("overfitting", None),
    ]


def test_the_most_suspicious_of_several_causes_explains() -> None:
    given = [
        found(NonFinite, 9, 9),
        found(VanishingGradient, 2, 60),
        found(DeadRelu, 4, 8),
        found(ExplodingGradient, 1, 4),
    ]
    assert told(order(given)) == [
        ("exploding-gradient", None),
        ("dead-relu", "exploding-gradient"),
        ("vanishing-gradient", "exploding-gradient"),
        ("non-finite", "exploding-gradient"),
    ]


def test_errors_come_before_warnings_then_the_order_of_suspicion_then_onset() -> None:
    given = [
        found(NonFinite, 0, 0, Severity.WARNING),
        found(Overfitting, 7, 30),
        found(Overfitting, 5, 40),
        found(VanishingGradient, 9, 60),
    ]
    assert [(finding.name, finding.step) for finding in order(given)] == [
        ("vanishing-gradient", 9),
        ("overfitting", 5),
        ("overfitting", 7),
        ("non-finite", 0),
    ]


def test_the_order_of_the_rules_does_not_matter() -> None:
    rules = [rule() for rule in catalogue()]
    one, other = judge(EXPLODED, rules), judge(EXPLODED, rules[::-1])
    assert told(one.findings) == told(other.findings)


def test_a_rule_that_raises_hides_no_other() -> None:
    diagnosis = judge(EXPLODED, [Broken(), *(rule() for rule in catalogue())])
    assert told(diagnosis.findings) == told(judge(EXPLODED).findings)
    assert diagnosis.errors == ("TM999 broken: the rule failed: ZeroDivisionError: of course",)
    assert "TM999" not in diagnosis.checked
    reasons = {one.code: one.reason for one in diagnosis.not_checked}
    assert reasons["TM999"] == "the rule failed: ZeroDivisionError: of course"


def test_what_could_not_be_checked_is_listed_with_the_reason() -> None:
    diagnosis = judge(History.of(train_loss=[1.0, 0.5]))
    assert diagnosis.findings == ()
    assert "TM101" in diagnosis.checked
    assert {one.name: one.reason for one in diagnosis.not_checked}.items() >= {
        "vanishing-gradient": "no gradient_norm in this history",
        "exploding-gradient": "no gradient/norm in this history",
        "dead-relu": "no dead_units_lasting in this history",
        "overfitting": "no validation loss in this history",
    }.items()
    assert len(diagnosis.checked) + len(diagnosis.not_checked) == len(catalogue())


def test_only_the_given_rules_judge() -> None:
    diagnosis = judge(EXPLODED, [NonFinite()])
    assert told(diagnosis.findings) == [("non-finite", None)]
    assert diagnosis.checked == ("TM101",)
    assert diagnosis.not_checked == ()


def test_an_empty_history_is_judged_by_nobody() -> None:
    diagnosis = judge(History())
    assert (diagnosis.findings, diagnosis.checked) == ((), ())
    assert {one.code for one in diagnosis.not_checked} == {rule.code for rule in catalogue()}


@pytest.mark.parametrize("rule", catalogue(), ids=lambda rule: rule.name)
def test_every_finding_in_the_judgement_of_a_sick_example_has_its_cause_before_it(rule: type[Rule]) -> None:
    for history in rule.sick:
        seen: list[str | None] = [None]
        for finding in judge(history).findings:
            assert finding.explained_by in seen
            seen.append(finding.id)
