"""TM405 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.slow_convergence import SlowConvergence, _moving
from trainmedic.history import History, Layer


def look(history: History) -> list[Finding]:
    return list(SlowConvergence().check(history))


FALLING = list(np.linspace(2.31, 2.2, 300))


def test_told_after_a_tenth_of_the_run() -> None:
    [finding] = look(_moving(FALLING, [5e-5] * 300))
    assert 29 <= finding.detected_at <= 36
    assert "weights move by 5.0e-05 of themselves per step" in finding.message


@pytest.mark.parametrize(
    ("losses", "updates", "facts"),
    [
        (FALLING, [1e-3] * 300, {}),  # steps as usual
        (FALLING, list(np.geomspace(1e-2, 1e-6, 300)), {}),  # they died: another illness
        ([1.5] * 300, [5e-5] * 300, {}),  # fine-tuning
        ([9.0] * 300, [5e-5] * 300, {}),  # far above chance: of another scale
        (FALLING, [0.0] * 300, {}),  # nothing moves: the optimizer holds something else
        (FALLING, [5e-5] * 300, {"loss": "L1Loss"}),
        (FALLING, [5e-5] * 300, {"optimizers": 2}),
    ],
)
def test_silent(losses: list[float], updates: list[float], facts: dict[str, Any]) -> None:
    history = _moving(losses, updates)
    history.facts.update(facts)
    assert look(history) == []


def test_a_warm_up_is_waited_for() -> None:
    history = _moving(FALLING, [5e-5] * 300)
    history.add_series("optimizer/learning_rate", range(300), np.linspace(1e-6, 1e-3, 300))
    assert look(history) == []
    history.add_series("optimizer/learning_rate", range(300), [*np.linspace(1e-6, 1e-3, 60), *[1e-3] * 240])
    [finding] = look(history)
    assert finding.detected_at >= 60


def _of_attention(last: float, *, momentum: float = 0.0, name: str = "encoder.self_attn") -> History:
    """Steps of the usual size, and a loss that comes down from 2.3 by ever less."""
    losses = last + (2.3 - last) * np.exp(-np.arange(300) / 100) + 0.02 * (-1.0) ** np.arange(300)
    history = _moving(list(losses), [5e-3] * 300)
    history.add_series("optimizer/learning_rate", range(300), [0.05] * 300)
    history.facts.update(optimizer="SGD", optimizer_options={"momentum": momentum})
    history.architecture[name] = Layer(name, "Linear", 1, (8, 8))
    return history


def test_gradient_descent_without_momentum_is_slow_on_attention() -> None:
    [finding] = look(_of_attention(1.5))
    assert finding.detected_at <= 0.5 * 300
    assert "SGD without momentum" in finding.message
    assert "AdamW" in finding.advice


def test_where_it_works_or_is_not_plain_nothing_is_said() -> None:
    assert look(_of_attention(0.5)) == []  # it gets there
    assert look(_of_attention(1.5, momentum=0.9)) == []
    assert look(_of_attention(1.5, name="encoder.attenuation")) == []
