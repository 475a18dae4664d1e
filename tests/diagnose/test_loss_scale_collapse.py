"""TM102 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.loss_scale_collapse import LossScaleCollapse
from trainmedic.history import History


def scaler(overflows: Any, growth: int = 2_000, start: float = 65_536.0, logged: bool = True) -> History:
    """What torch.amp.GradScaler does where ``overflows(step, scale)`` says that gradients are not finite."""
    scale, clean, scales, skipped = start, 0, [], []
    for step in range(400):
        hit = bool(overflows(step, scale))
        scale, clean = (scale / 2, 0) if hit else (scale, clean + 1)
        if clean == growth:
            scale, clean = scale * 2, 0
        scales.append(scale)
        skipped.append(float(hit))
    values = {"optimizer_loss_scale": scales, **({"optimizer_skipped": skipped} if logged else {})}
    return History.of(**values)


def look(history: History) -> list[Finding]:
    return list(LossScaleCollapse().check(history))


@pytest.mark.parametrize("logged", [True, False])
def test_a_nan_whatever_the_scale(logged: bool) -> None:
    [finding] = look(scaler(lambda step, scale: step >= 100, logged=logged))
    assert finding.step == 100
    assert 100 < finding.detected_at <= 125
    assert "loss scale has fallen to" in finding.message


def test_every_fifth_batch_is_broken() -> None:
    assert look(scaler(lambda step, scale: step % 5 == 0))


@pytest.mark.parametrize("largest", [2.0**k for k in range(-3, 17)])
@pytest.mark.parametrize("growth", [10, 2_000])
def test_a_scale_that_is_found_is_healthy(largest: float, growth: int) -> None:
    """Also with a scaler that tries a larger one every ten steps."""
    if growth == 2_000 or largest > 2:
        assert look(scaler(lambda step, scale: scale > largest, growth)) == []


def test_a_broken_batch_now_and_then() -> None:
    assert look(scaler(lambda step, scale: step % 80 == 79)) == []


def test_steps_left_out_in_a_log_without_the_scale() -> None:
    assert look(History.of(optimizer_skipped=[0.0] * 100 + [1.0] * 100))
    assert look(History.of(optimizer_skipped=(np.arange(300) % 4 == 0).astype(float))) == []
