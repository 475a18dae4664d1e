"""TM502 and its look-alikes."""

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.underfitting import Underfitting, _classes, _patches
from trainmedic.history import History


def look(history: History) -> list[Finding]:
    rule = Underfitting()
    return list(rule.check(history)) if rule.unmet(history) is None else []


def noisy(level: np.ndarray, seed: int = 0) -> list[float]:
    return list(level + 0.02 * np.random.default_rng(seed).standard_normal(len(level)))


def test_a_little_better_than_chance_and_no_more() -> None:
    [finding] = look(_classes(noisy(np.full(400, 2.25)), 0.2))
    assert 199 <= finding.detected_at <= 225
    assert finding.where == ("train/loss",)


@pytest.mark.parametrize("accuracy", [0.1, 0.11])
def test_no_better_than_chance_is_not_learning(accuracy: float) -> None:
    assert look(_classes(noisy(np.full(400, 2.25)), accuracy)) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_gets_there_by_its_end_is_healthy(seed: int) -> None:
    losses = noisy(np.concatenate([np.full(150, 2.29), np.linspace(2.29, 1.2, 250)]), seed)
    history = _classes(losses, 0.3)
    for end in (160, 200, 240, 300, 399):
        history.drop_after(end) if end < 399 else None
        assert look(history) == [] or end < 0
        history = _classes(losses, 0.3)


def test_lost_is_not_underfit() -> None:
    assert look(_classes([*np.linspace(2.3, 0.5, 100), *[2.29] * 300], 0.2)) == []


def test_a_validation_loss_that_is_better_says_dropout_is_on() -> None:
    history = _classes(noisy(np.full(400, 2.25)), 0.2)
    history.add_series("validation/loss", range(0, 400, 40), [1.5] * 10)
    assert look(history) == []


def test_a_narrow_code_is_told_by_what_it_leaves() -> None:
    losses = [1.0] * 10 + noisy(np.full(390, 0.2))
    [finding] = look(_patches(losses, 1))
    assert "with 1 numbers for 64 in its narrowest layer" in finding.message
    assert look(_patches(losses, 8)) == []
    assert look(_patches([1.0] * 10 + noisy(np.linspace(0.4, 0.1, 390)), 1)) == []


def test_noise_in_targets_is_no_fault_of_the_model() -> None:
    history = _patches([1.0] * 10 + noisy(np.full(390, 0.6)), 1)
    history.add_series("input/std", range(400), [3.0] * 400)  # targets are something else
    assert look(history) == []
