"""TM702 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.memory_growth import MemoryGrowth
from trainmedic.history import History

MB = 1e6


def look(values: Any, **facts: Any) -> list[Finding]:
    return list(MemoryGrowth().check(History.of(memory_host=list(values), facts=facts)))


def test_a_leak() -> None:
    [finding] = look(500 * MB + 0.5 * MB * np.arange(400))
    assert finding.where == ("memory/host",)
    assert finding.detected_at < 130
    assert "500 kB a step" in finding.message


def test_a_leak_under_the_noise_of_sequence_lengths() -> None:
    noise = np.random.default_rng(0).uniform(0, 100 * MB, 1_000)
    assert look(500 * MB + noise + 1 * MB * np.arange(1_000))
    assert look(500 * MB + noise) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_wanders_or_saturates_is_healthy(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = np.arange(1_000)
    wandering = 1_000 * MB + 5 * MB * np.cumsum(random.standard_normal(1_000))
    saturating = 500 * MB + 200 * MB * (1 - np.exp(-steps / random.uniform(20, 150)))
    stairs = 500 * MB + 60 * MB * (steps // 300)
    for values in (wandering, saturating, stairs, 500 * MB + 50 * MB * np.log1p(steps)):
        for until in range(60, 1_001, 94):
            assert look(values[:until]) == []


def test_the_first_epoch_may_fill_a_cache() -> None:
    values = 500 * MB + 0.5 * MB * np.minimum(np.arange(600), 300)
    for until in range(50, 601, 25):
        assert look(values[:until], steps_per_epoch=300) == []


def test_small_beside_what_is_in_use() -> None:
    assert look(50_000 * MB + 0.5 * MB * np.arange(400)) == []


def test_a_long_record_is_judged_fast() -> None:
    assert look(500 * MB + 100.0 * np.arange(300_000))


def test_after_the_first_epoch_a_leak_is_told_soon() -> None:
    leak = 500 * MB + 1.5 * MB * np.arange(93)
    [finding] = look(leak, steps_per_epoch=31)
    assert finding.detected_at < 70
    assert look(leak[:62], steps_per_epoch=31) == []
