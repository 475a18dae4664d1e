"""TM602 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.learning_rate_too_low import LearningRateTooLow
from trainmedic.history import History, Layer


def look(losses: Any, updates: Any, rates: Any = None, frozen: bool = False, **facts: Any) -> list[Finding]:
    values: dict[str, Any] = {"a.weight__update_ratio": list(updates), "b.weight__update_ratio": list(updates)}
    if rates is not None:
        values["optimizer_learning_rate"] = list(rates)
    layers = [Layer("a.weight", "parameter", 0, (8, 8)), Layer("c", "parameter", 1, (8, 8), trainable=not frozen)]
    layers.append(Layer("b.weight", "parameter", 1, (8, 8)))
    history = History.of(train_loss=list(losses), layers=layers, facts=facts, **values)
    return list(LearningRateTooLow().check(history))


def test_the_whole_run_leads_nowhere() -> None:
    [finding] = look([2.3] * 300, [1e-4] * 300, total_steps=300)
    assert finding.step == 0
    assert 19 <= finding.detected_at <= 31
    assert finding.message.startswith("a step moves the weights by 0.0001 of their size, the whole run by at most 0.03")


def test_how_long_a_run_will_be_counts() -> None:
    assert look([2.3] * 300, [1e-4] * 300, total_steps=3_000) == []
    assert look([2.3] * 300, [3e-4] * 300) == []  # as long again makes 0.18


def test_a_rate_on_its_way_up_is_waited_for() -> None:
    rates = [*np.linspace(0, 1e-3, 200), *[1e-3] * 100]
    for until in range(20, 300, 20):
        assert look([2.3] * until, np.array(rates[:until]), rates[:until], total_steps=300) == []


def test_what_was_covered_before_the_rate_fell_counts() -> None:
    assert look([2.3] * 300, np.geomspace(1e-2, 1e-6, 300), total_steps=300) == []


@pytest.mark.parametrize("frozen", [True, False])
def test_fine_tuning_may_be_slow(frozen: bool) -> None:
    found = look([2.3] * 300, [1e-5] * 300, frozen=frozen, total_steps=300)
    assert bool(found) is not frozen


def test_it_learns() -> None:
    assert look(np.linspace(2.3, 1.0, 300), [1e-4] * 300, total_steps=300) == []


def test_a_good_start_is_fine_tuning() -> None:
    facts = {"classes": 10, "loss": "CrossEntropyLoss", "reduction": "mean", "total_steps": 300}
    assert look([0.8] * 300, [1e-5] * 300, **facts) == []
    assert look([2.3] * 300, [1e-5] * 300, **facts)


@pytest.mark.parametrize("update", [0.0, float("nan"), float("inf")])
def test_no_update_at_all_is_another_illness(update: float) -> None:
    assert look([2.3] * 300, [update] * 300, total_steps=300) == []


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_a_bias_that_learns_the_mean_has_learnt_nothing(spread: float) -> None:
    losses = np.linspace(0.21, 0.1, 300)
    series: dict[str, Any] = {"target_std": [spread] * 300, "a.weight__update_ratio": [1e-5] * 300}
    facts: dict[str, Any] = {"total_steps": 300, "loss": "MSELoss", "reduction": "mean"}
    layers = [Layer("a.weight", "parameter", 0, (8, 8))]
    history = History.of(train_loss=list(losses), layers=layers, facts=facts, **series)
    assert bool(list(LearningRateTooLow().check(history))) == (spread < 0.5)
