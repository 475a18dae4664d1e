"""TM301 and its look-alikes."""

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.dead_relu import DeadRelu
from trainmedic.history import History


def look(history: History) -> list[Finding]:
    return list(DeadRelu().check(history))


def test_layers_are_named_the_worst_first() -> None:
    [finding] = look(
        History.of(
            a__dead_units_lasting=[0.0] * 4 + [0.6] * 6,
            b__dead_units_lasting=[0.0] * 6 + [1.0] * 4,
            c__dead_units_lasting=[0.1] * 10,
            facts={"dead_after": 500},
        )
    )
    assert finding.where == ("b", "a")
    assert (finding.step, finding.detected_at, finding.severity) == (4, 6, Severity.ERROR)
    assert (
        finding.message == "100 % of the units of b (and 1 more rectifiers) were zero for each of the last 500 samples"
    )


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5])
def test_some_dead_units_are_healthy(share: float) -> None:
    assert look(History.of(a__dead_units_lasting=[share] * 50)) == []


def test_sparse_outputs_of_living_units_are_healthy() -> None:
    assert look(History.of(a__activation_zeros=[0.99] * 50, a__dead_units_lasting=[0.0] * 50)) == []


@pytest.mark.parametrize("silent", [1, 2])
def test_a_short_silence_is_healthy(silent: int) -> None:
    assert look(History.of(a__dead_units_lasting=[0.0] * 10 + [1.0] * silent)) == []


def test_units_that_came_back_are_healthy() -> None:
    assert look(History.of(a__dead_units_lasting=[1.0] * 20 + [0.1] * 3)) == []


def test_a_run_that_works_may_have_idle_units() -> None:
    learnt = list(np.geomspace(2.3, 0.2, 50))
    assert look(History.of(a__dead_units_lasting=[0.85] * 50, train_loss=learnt)) == []
    [finding] = look(History.of(a__dead_units_lasting=[1.0] * 50, train_loss=learnt))
    assert finding.severity == Severity.WARNING


def test_a_layer_that_was_measured_seldom_needs_as_many_measurements() -> None:
    nan = float("nan")
    assert look(History.of(a__dead_units_lasting=[0.9, nan, nan, 0.9, nan])) == []
    [finding] = look(History.of(a__dead_units_lasting=[0.9, nan, nan, 0.9, nan, 0.9, nan]))
    assert (finding.step, finding.detected_at) == (0, 5)


def test_an_explosion_at_the_start_is_no_level_to_have_learnt_from() -> None:
    losses = [2.3, 5e4, 1e4, 9e3, 800.0, 500.0] + [2.3] * 40
    [finding] = look(History.of(a__dead_units_lasting=[0.0] * 16 + [0.93] * 30, train_loss=losses))
    assert finding.severity == Severity.ERROR


def test_what_is_left_after_a_nan_says_nothing_about_units() -> None:
    losses = [2.3] * 10 + [float("nan")] * 30
    assert look(History.of(a__dead_units_lasting=[0.0] * 10 + [0.95] * 30, train_loss=losses)) == []
