"""TM801 and its look-alikes."""

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.incomplete_log import IncompleteLog
from trainmedic.history import History


def look(history: History) -> list[Finding]:
    return list(IncompleteLog().check(history))


def test_a_loss_that_ends_in_the_middle() -> None:
    [finding] = look(History.of(train_loss=[1.0] * 100, gradient_norm=[1.0] * 250))
    assert (finding.step, finding.severity) == (99, Severity.WARNING)
    assert finding.detected_at <= 120
    assert finding.message == "no loss is logged after step 99, while the run went on to step 249"


def test_a_step_that_is_counted_anew() -> None:
    history = History.of(gradient_norm=[1.0] * 126)
    history.add_series("train/loss", list(range(21)) * 6, [1.0] * 126)
    [finding] = look(history)
    assert "126 losses stand at 21 steps: the step was counted anew" in finding.message


def test_a_resumed_run_is_worth_knowing_and_a_doubled_one_a_warning() -> None:
    history = History.of(train_loss=[1.0] * 100)
    history.facts["restarts"] = [{"row": 60, "from": 59, "to": 50}]
    assert [finding.severity for finding in look(history)] == [Severity.INFO]
    twice = History.of(steps=[step for step in range(50) for _ in range(2)], train_loss=[1.0] * 100)
    twice.facts["restarts"] = [{"row": 50, "from": 49, "to": 0}]
    assert [finding.severity for finding in look(twice)] == [Severity.WARNING]


def test_a_hole() -> None:
    steps = [*range(100), *range(300, 400)]
    [finding] = look(History.of(steps=steps, train_loss=[1.0] * 200))
    assert (finding.step, finding.detected_at, finding.severity) == (99, 300, Severity.INFO)


@pytest.mark.parametrize("every", [1, 2, 10, 50])
def test_a_loss_that_is_logged_now_and_then(every: int) -> None:
    history = History.of(gradient_norm=[1.0] * 1_000, optimizer_learning_rate=[0.1] * 1_000)
    history.add_series("train/loss", range(0, 1_000, every), np.ones(-(-1_000 // every)))
    history.add_series("validation/loss", range(199, 1_000, 200), np.ones(5))
    for step in range(999, 0, -37):
        history.drop_after(step)
        assert look(history) == []


def test_a_thinned_recording_is_whole() -> None:
    history = History(bounded=True)
    for step in range(40_000):
        history.add("train/loss", step, 1.0)
        history.add("gradient/norm", step, 1.0)
    assert look(history) == []


def test_broken_facts_do_no_harm() -> None:
    for restarts in ("x", [1, None], [{}], {"from": 1}):
        history = History.of(train_loss=[1.0] * 30, facts={"restarts": restarts})
        look(history)


def test_a_hole_in_a_live_log_is_told_where_the_run_went_on() -> None:
    history = History(bounded=True)
    history.add_series("gradient/norm", range(300), [1.0] * 300)
    history.add_series("train/loss", [*range(100), *range(200, 300)], [1.0] * 200)
    [finding] = look(history)
    assert (finding.step, finding.severity) == (99, Severity.WARNING)
    assert finding.message == "no loss is logged from step 99 to 200, while the run went on"
    thinned = History(bounded=True)
    thinned.add_series("train/loss", [*range(100), *range(200, 300)], [1.0] * 200)
    assert look(thinned) == []
