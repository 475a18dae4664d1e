"""TM403 and its look-alikes."""

import numpy as np
import pytest

from tests.diagnose.curves import NOISES, SHAPES, healthy
from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.loss_oscillation import LossOscillation, _sorted
from trainmedic.history import History, Snapshot

WAVES = 1.0 + 0.7 * np.sin(np.arange(600) / 8)


def look(history: History) -> list[Finding]:
    return list(LossOscillation().check(history))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [0.02, 0.2, 0.5])
def test_healthy_curves(shape: str, noise: str, level: float) -> None:
    if noise == "correlated" and level == 0.5:
        pytest.skip("what wanders by half of itself without getting anywhere does swing")
    for seed, count in enumerate((40, 300, 3_000)):
        history = History.of(train_loss=healthy(shape, noise, level, count, seed))
        if shape == "restarts":
            history.add_series("optimizer/learning_rate", range(count), 1.1 - np.arange(count) * 5 / count % 1)
        assert look(history) == []


def test_waves_of_momentum() -> None:
    [finding] = look(History.of(train_loss=WAVES))
    assert finding.severity == Severity.WARNING
    assert finding.detected_at < 500


@pytest.mark.parametrize("facts", [{"optimizers": 2}, {"scheduler": "CyclicLR"}])
def test_players_and_cycles_are_left_alone(facts: dict[str, object]) -> None:
    assert look(History.of(train_loss=WAVES, facts=facts)) == []


def test_a_rate_that_is_cycled_by_hand() -> None:
    rates = 0.05 + 0.04 * np.sin(np.arange(600) / 8)
    assert look(History.of(train_loss=WAVES, optimizer_learning_rate=rates)) == []


def test_waves_that_come_down_get_somewhere() -> None:
    assert look(History.of(train_loss=WAVES * np.geomspace(1, 0.1, 600))) == []


def test_a_policy_gradient_swings_around_zero() -> None:
    assert look(History.of(train_loss=WAVES - 1)) == []


def test_batches_in_the_order_of_the_classes() -> None:
    [finding] = look(_sorted(400))
    assert (finding.detected_at, finding.severity) == (31, Severity.ERROR)
    assert "batches come in the order of their classes" in finding.message


@pytest.mark.parametrize("batch", [4, 32, 256])
def test_shuffled_batches_of_any_size(batch: int) -> None:
    random = np.random.default_rng(batch)
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "batch_size": batch}
    history = History.of(train_loss=[2.3] * 200, facts=facts)
    for step in range(200):
        counts = random.multinomial(batch, [0.1] * 10) / batch
        history.record(Snapshot(step, layers={"label_share": {str(i): float(share) for i, share in enumerate(counts)}}))
    assert look(history) == []


def test_order_that_does_no_harm() -> None:
    history = _sorted(400)
    history.add_series("train/loss", range(400), np.geomspace(2.3, 0.1, 400))
    assert look(history) == [] or look(history)[0].detected_at < 100
    history.add_series("train/loss", range(400), [0.3] * 400)
    assert look(history) == []


def test_single_spikes_are_no_swings() -> None:
    losses = 0.3 + 0.02 * np.random.default_rng(0).standard_normal(300)
    for at in (180, 200, 220, 240, 260):
        losses[at : at + 2] = 5.0
    assert look(History.of(train_loss=[*np.linspace(2.3, 0.3, 40), *losses])) == []


def test_what_a_far_larger_spike_leaves_behind_is_that_spikes_doing() -> None:
    waves = 1.0 + 0.7 * np.sin(np.arange(200) / 2.5)
    assert look(History.of(train_loss=waves))
    waves[[130, 170]] = 1e4
    assert look(History.of(train_loss=waves)) == []
