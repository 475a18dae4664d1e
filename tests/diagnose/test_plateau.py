"""TM404 and its look-alikes."""

import numpy as np
import pytest

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
