"""TM402 and its look-alikes."""

import numpy as np
import pytest

from tests.diagnose.curves import NOISES, SHAPES, healthy
from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.loss_spike import LossSpike
from trainmedic.history import History

NAN = float("nan")
CALM = [*np.linspace(2.3, 0.3, 100)]


def look(history: History) -> list[Finding]:
    return list(LossSpike().check(history))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [0.02, 0.2, 0.5])
def test_healthy_curves(shape: str, noise: str, level: float) -> None:
    for seed, count in enumerate((40, 300, 3_000)):
        history = History.of(train_loss=healthy(shape, noise, level, count, seed))
        if shape == "restarts" and level < 0.5:
            history.add_series("optimizer/learning_rate", range(count), 1.1 - np.arange(count) * 5 / count % 1)
        assert look(history) == []


def test_one_broken_batch_and_the_network_is_gone() -> None:
    [finding] = look(History.of(train_loss=[*CALM, 300.0, *[2.3] * 60]))
    assert (finding.step, finding.detected_at, finding.severity) == (100, 120, Severity.ERROR)
    assert finding.message == "the loss jumped from 0.7949 to 300 at step 100, and what had been learnt is gone"


def test_a_spike_that_ends_in_nan() -> None:
    [finding] = look(History.of(train_loss=[*CALM, 1e4, *[NAN] * 20]))
    assert (finding.step, finding.detected_at) == (100, 120)


def test_one_that_comes_back_is_not_told_and_three_are() -> None:
    assert look(History.of(train_loss=[*CALM, 40.0, *[0.3] * 60])) == []
    [finding] = look(History.of(train_loss=[*CALM, *[40.0, *[0.3] * 30] * 3]))
    assert (finding.step, finding.detected_at, finding.severity) == (100, 162, Severity.WARNING)


def test_a_jump_of_a_language_model_that_stays() -> None:
    calm = [*np.geomspace(10.8, 3.0, 200), *(3 + 0.02 * np.cos(7 * np.arange(200)))]
    rates = [1e-3] * 540
    [finding] = look(History.of(train_loss=[*calm, *np.linspace(7, 6, 40)], optimizer_learning_rate=rates[:440]))
    assert (finding.step, finding.severity) == (400, Severity.WARNING)
    back = [*calm, *np.geomspace(7, 3, 40), *[3.0] * 100]
    assert look(History.of(train_loss=back, optimizer_learning_rate=rates)) == []
    assert look(History.of(train_loss=[*calm, *[7.0] * 40])) == []  # a restart, for all that is known


def test_a_rate_that_jumped_explains_it() -> None:
    calm = [*np.geomspace(10.8, 3.0, 200), *(3 + 0.02 * np.cos(7 * np.arange(200)))]
    rates = [0.001] * 395 + [0.01] * 45
    assert look(History.of(train_loss=[*calm, *[7.0] * 40], optimizer_learning_rate=rates)) == []


@pytest.mark.parametrize("seed", range(20))
def test_heavy_tails_are_no_spikes(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = np.linspace(2.3, 0.5, 2_000) * (1 + random.pareto(3, 2_000))
    assert look(History.of(train_loss=losses)) == []


def test_gradual_divergence_is_another_illness() -> None:
    assert look(History.of(train_loss=[*CALM, *np.geomspace(0.3, 50, 100)])) == []


@pytest.mark.parametrize("history", LossSpike.sick)
def test_the_loss_told_is_above_the_limit_told(history: History) -> None:
    (finding,) = LossSpike().check(history)
    assert finding.evidence[0].limit is not None
    assert finding.evidence[0].value > finding.evidence[0].limit
