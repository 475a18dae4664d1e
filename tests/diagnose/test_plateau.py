"""TM404 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from tests.diagnose.curves import quadratic
from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.plateau import Plateau, _run
from trainmedic.history import History, Layer


def look(history: History) -> list[Finding]:
    return list(Plateau().check(history))


def stuck(level: float, start: float, seed: int = 0) -> list[float]:
    noise = 0.02 * level * np.random.default_rng(seed).standard_normal(500)
    return list(np.concatenate([np.linspace(start, level, 60), np.full(440, level)]) + noise)


def test_told_after_half_of_the_run_without_progress() -> None:
    [finding] = look(_run(stuck(0.12, 1.0), 2e-2, same=True))
    assert 55 <= finding.step <= 110
    assert 300 <= finding.detected_at <= 345
    assert finding.message.endswith("12 % of that of the best constant answer, at a rate that is never lowered")


def test_classes_that_are_not_learnt() -> None:
    assert len(look(_run(stuck(1.5, 2.3), 3e-3, accuracy=0.35))) == 1
    assert look(_run(stuck(1.5, 2.3), 3e-3, accuracy=0.7)) == []  # most are right: the rest may be noise
    assert look(_run(stuck(1.5, 2.3), 1e-5, accuracy=0.35)) == []  # slow, not stuck
    assert look(_run(stuck(2.25, 2.3), 3e-3, accuracy=0.15)) == []  # nothing learnt at all


@pytest.mark.parametrize("seed", range(10))
def test_slow_progress_is_progress(seed: int) -> None:
    noise = 0.05 * np.random.default_rng(seed).standard_normal(500)
    losses = list(2.3 * np.linspace(1, 500, 500) ** -0.12 + noise)
    assert look(_run(losses, 3e-3, accuracy=0.35)) == []


def test_small_steps_have_settled() -> None:
    assert look(_run(stuck(0.12, 1.0), 2e-3, same=True)) == []
    assert look(_run(stuck(0.03, 1.0), 2e-2, same=True)) == []


def test_a_rate_that_was_lowered_is_not_too_large() -> None:
    history = _run(stuck(0.12, 1.0), 2e-2, same=True)
    history.add_series("optimizer/learning_rate", range(500), np.geomspace(0.01, 0.001, 500))
    assert look(history) == []


def test_language_models_and_runs_of_unknown_length_are_left_alone() -> None:
    history = _run(stuck(1.5, 2.3), 3e-3, accuracy=0.35)
    history.architecture["words"] = Layer("words", "Embedding", 0)
    assert look(history) == []
    history = _run(stuck(1.5, 2.3), 3e-3, accuracy=0.35)
    del history.facts["total_steps"]
    assert look(history) == []


def _cut(losses: list[float], at: int) -> History:
    """A run of a loss of unknown make, whose rate falls to a hundredth."""
    rates = [0.1 if step < at else 0.001 for step in range(len(losses))]
    return History.of(train_loss=losses, optimizer_learning_rate=rates, facts={"total_steps": len(losses)})


def test_a_rate_that_is_cut_while_the_loss_falls() -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(400)
    falls = [*(np.linspace(5.0, 3.0, 60) + noise[:60]), *(3.0 + noise[60:])]
    [finding] = look(_cut(falls, 60))
    assert finding.message.endswith("since its rate was cut while it fell")
    stands = [*(np.linspace(5.0, 3.0, 30) + noise[:30]), *(3.0 + noise[30:])]
    assert look(_cut(stands, 60)) == []  # it had come to rest: what is left may be noise
    late = [*(np.linspace(5.0, 3.0, 150) + noise[:150]), *(3.0 + noise[150:])]
    assert look(_cut(late, 150)) == []


def test_half_of_two_classes_may_be_luck() -> None:
    history = _run([*np.linspace(0.69, 0.5, 60), *([0.5, 0.49, 0.51, 0.505, 0.495] * 88)], 3e-3, accuracy=0.7)
    history.facts["classes"] = 2
    assert look(history) == []


@pytest.mark.parametrize(("rate", "floor", "told"), [(0.2, 0.2, True), (0.02, 0.2, False), (0.2, 4.0, False)])
def test_squared_errors_that_the_size_of_the_steps_holds_up(rate: float, floor: float, told: bool) -> None:
    history = quadratic(rate, 1.0, floor, batch_size=64)
    assert [finding.where for finding in look(history)] == [("train/loss",)] * told
    history.facts["scheduler"] = "CosineAnnealingLR"  # it is going to fall
    assert look(history) == []


def test_noise_hides_progress() -> None:
    noise = np.random.default_rng(0).standard_normal(500)
    losses = [*np.linspace(2.3, 1.5, 60), *np.full(440, 1.5)]
    assert len(look(_run(list(losses + 0.02 * noise), 3e-3, accuracy=0.35))) == 1
    assert look(_run(list(losses + 0.5 * noise), 3e-3, accuracy=0.35)) == []


def test_one_class_is_no_task() -> None:
    columns: dict[str, Any] = {"fc__update_ratio": [3e-3] * 500, "optimizer_learning_rate": [0.01] * 500}
    columns |= {f"{i}__label_share": [float(i == 0)] * 500 for i in range(10)}
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 500}
    layers = [Layer("fc", "parameter", 0, (8, 8))]
    assert look(History.of(train_loss=stuck(1.5, 2.3), facts=facts, layers=layers, **columns)) == []
