"""TM401 and its look-alikes."""

import numpy as np
import pytest

from tests.diagnose.curves import NOISES, SHAPES, healthy
from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.divergence import Divergence
from trainmedic.history import History

LEARNT = list(np.geomspace(2.3, 0.2, 100))


def look(history: History) -> list[Finding]:
    return list(Divergence().check(history))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [0.02, 0.2, 0.5])
def test_healthy_curves(shape: str, noise: str, level: float) -> None:
    for seed, count in enumerate((40, 300, 3_000)):
        assert look(History.of(train_loss=healthy(shape, noise, level, count, seed))) == []


def test_lost_is_told_within_a_sixth_of_the_run() -> None:
    [finding] = look(History.of(train_loss=[*LEARNT, *np.linspace(0.2, 2.4, 20), *[2.4] * 100]))
    assert 95 <= finding.step <= 125
    assert finding.detected_at <= 155
    assert finding.severity == Severity.ERROR
    assert finding.message == "the loss climbed from 0.2101 to 2.4 and stays there; it began at 2.244"


def test_half_lost_is_a_warning_where_the_rate_is_not_up() -> None:
    climb = [*LEARNT, *np.linspace(0.2, 1.5, 20), *[1.5] * 100]
    assert [finding.severity for finding in look(History.of(train_loss=climb))] == [Severity.WARNING]
    rates = [0.01] * 100 + [0.1] * 120
    assert look(History.of(train_loss=climb, optimizer_learning_rate=rates)) == []


def test_a_climb_that_comes_down_again_is_not_told() -> None:
    assert look(History.of(train_loss=[*LEARNT, *np.linspace(0.2, 2.4, 20), *np.linspace(2.4, 0.2, 60)])) == []


def test_chance_is_where_a_bad_start_is_lost_to() -> None:
    """It began at 6 by bad weights, learnt, and fell back to chance."""
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10}
    losses = [*np.geomspace(6, 0.3, 80), *[2.3] * 80]
    assert [finding.severity for finding in look(History.of(train_loss=losses, facts=facts))] == [Severity.ERROR]


@pytest.mark.parametrize("facts", [{"optimizers": 2}, {"scheduler": "CyclicLR"}])
def test_players_and_cycles_are_left_alone(facts: dict[str, object]) -> None:
    losses = [*LEARNT, *np.linspace(0.2, 2.4, 20), *[2.4] * 100]
    assert look(History.of(train_loss=losses, facts=facts)) == []


def test_rewards_in_the_log_make_the_loss_no_measure() -> None:
    history = History.of(train_loss=[*LEARNT, *[2.4] * 100])
    history.add_series("rollout/ep_reward", range(200), np.arange(200.0))
    assert look(history) == []


def test_no_end_below_zero() -> None:
    [finding] = look(History.of(train_loss=1 - np.geomspace(0.01, 1e5, 150)))
    assert finding.message.startswith("the loss runs off below zero")
    for slow in (1 - np.arange(1000.0), 1 - 50 * np.log1p(np.arange(1000.0))):
        assert look(History.of(train_loss=slow)) == []


def test_few_epochs_prove_nothing() -> None:
    for count in range(1, 8):
        history = History.of(train_loss=[2.3, 1.0, 0.5, 3.0, 3.0, 3.0, 3.0][:count], facts={"time": "epoch"})
        assert look(history) == []


def test_of_a_million_steps() -> None:
    random = np.random.default_rng(0)
    losses = np.concatenate([np.geomspace(2.3, 0.2, 300_000), np.full(700_000, 2.4)]) * random.uniform(0.9, 1.1, 10**6)
    history = History()
    history.add_series("train/loss", np.arange(10**6), losses)
    [finding] = look(history)
    assert 299_000 < finding.step < 301_000


@pytest.mark.parametrize(("total", "told"), [(300, True), (3000, False)])
def test_what_comes_back_too_slowly_for_the_run_is_lost(total: int, told: bool) -> None:
    losses = [*np.geomspace(3.0, 1.0, 150), *np.geomspace(4.5, 2.9, 150)]
    assert bool(look(History.of(train_loss=losses, facts={"total_steps": total}))) == told
