"""TM205 and its look-alikes, by hand and on a quadratic that can be solved."""

from typing import Any

import numpy as np
import pytest

from tests.diagnose.curves import quadratic
from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.learning_rate_too_high import LearningRateTooHigh
from trainmedic.diagnose.rules.noisy_gradient import NoisyGradient
from trainmedic.history import History


def look(history: History) -> list[Finding]:
    return list(NoisyGradient().check(history))


@pytest.mark.parametrize(("rate", "noise"), [(0.1, 0.5), (0.1, 1.0), (0.2, 1.0)])
def test_the_estimate_is_what_noise_really_adds(rate: float, noise: float) -> None:
    history = quadratic(rate, noise)
    [finding] = look(history)
    real = float(np.mean(history.series("train/loss").values[500:])) - 1.0
    level = 1.0 + real
    assert finding.evidence[0].value / 100 * level == pytest.approx(real, rel=0.2)


def test_large_batches_are_left_to_the_rate() -> None:
    history = quadratic(0.2, 1.0, batch_size=64)
    assert look(history) == []
    [finding] = LearningRateTooHigh().check(history)
    assert finding.name == "learning-rate-too-high"
    assert "never lowered" in finding.message


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 0.5), (0.003, 1.0)])
def test_a_rate_that_fits_the_noise(rate: float, noise: float) -> None:
    assert look(quadratic(rate, noise)) == []


def test_a_schedule_will_see_to_it() -> None:
    assert look(quadratic(0.2, 1.0, scheduler="CosineAnnealingLR")) == []


@pytest.mark.parametrize("facts", [{"loss": None}, {"optimizers": 2}, {"models": 2}, {"optimizer": "LBFGS"}])
def test_what_cannot_be_judged(facts: dict[str, Any]) -> None:
    assert look(quadratic(0.2, 1.0, **facts)) == []


def test_full_batches_at_the_edge_of_stability() -> None:
    assert look(quadratic(0.5, 0.0, floor=0.1)) == []
