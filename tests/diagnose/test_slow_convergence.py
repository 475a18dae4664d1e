"""TM405 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.slow_convergence import SlowConvergence, _moving
from trainmedic.history import History


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
