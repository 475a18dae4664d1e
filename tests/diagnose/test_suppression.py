"""Suppression: by rule, by name, by step; what is left is judged as ever, and what suppresses nothing is told."""

import numpy as np
import pytest

from trainmedic.diagnose import Suppression
from trainmedic.diagnose.judge import Diagnosis, judge
from trainmedic.diagnose.rules.dead_relu import DeadRelu
from trainmedic.diagnose.rules.non_finite import NonFinite
from trainmedic.history import History

TWO_DEAD = History.of(encoder_0__dead_units_lasting=[0.9] * 20, head_0__dead_units_lasting=[0.0] * 10 + [0.8] * 10)
NAN = float("nan")


def told(history: History, *suppressed: Suppression) -> Diagnosis:
    return judge(history, [DeadRelu().suppressing(suppressed), NonFinite()])


def dead(**fields: str) -> Suppression:
    return Suppression(rule="dead-relu", **fields)


def test_a_layer_is_not_looked_at() -> None:
    (finding,) = told(TWO_DEAD, dead(where="encoder*")).findings
    assert finding.where == ("head_0",)
    assert "encoder" not in finding.message
    assert (finding.step, finding.evidence[0].value) == (10, pytest.approx(80))


def test_all_of_a_rule_goes_by_several_globs() -> None:
    diagnosis = told(TWO_DEAD, dead(where="encoder*", reason="sparse by design"), dead(where="head*"))
    assert diagnosis.findings == ()
    assert diagnosis.checked == ("TM301",)
    assert set(diagnosis.suppressed) == {
        "suppressed: dead-relu of encoder*: sparse by design",
        "suppressed: dead-relu of head*",
    }


def test_what_begins_after_the_steps_is_told() -> None:
    (finding,) = told(TWO_DEAD, dead(steps="0-5")).findings
    assert set(finding.where) == {"encoder_0", "head_0"}
    assert finding.step == 6
    (later,) = told(TWO_DEAD, dead(where="encoder*", steps="0-12")).findings
    assert {"encoder_0", "head_0"} == set(later.where)


def test_a_step_range_for_good() -> None:
    assert told(TWO_DEAD, dead(steps="0-")).findings == ()


def test_series_can_be_named_too() -> None:
    history = History.of(train_loss=np.linspace(2, 1, 20), validation_loss=[1.0, NAN, 1.0])
    rule = NonFinite().suppressing([Suppression(rule="TM101", where="validation/*")])
    assert judge(history, [NonFinite()]).findings
    assert judge(history, [rule]).findings == ()


def test_what_suppresses_nothing_is_told() -> None:
    diagnosis = told(TWO_DEAD, dead(where="decoder.*", steps="3-4"))
    assert len(diagnosis.findings) == 1
    assert diagnosis.suppressed == (
        "unused suppression: nothing was found for dead-relu of decoder.* in steps 3-4; take it out of the settings",
    )


def test_a_rule_that_cannot_judge_says_nothing_of_its_suppressions() -> None:
    assert told(History.of(train_loss=[1.0] * 9), dead()).suppressed == ()


@pytest.mark.parametrize("steps", ["", "10", "5-3", "a-b", "-1-3", "1..2"])
def test_steps_are_a_range(steps: str) -> None:
    with pytest.raises(ValueError, match="must be a range of steps"):
        dead(steps=steps)


def test_a_history_without_some_of_it_shares_the_rest() -> None:
    part = TWO_DEAD.without(lambda name: name == "head_0", 12, 15)
    assert list(part.layers("dead_units_lasting").column("head_0").steps) == [*range(12), *range(16, 20)]
    assert len(part.layers("dead_units_lasting").column("encoder_0").steps) == 20
    assert len(TWO_DEAD.layers("dead_units_lasting").column("head_0").steps) == 20
