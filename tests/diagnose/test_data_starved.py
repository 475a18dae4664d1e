"""TM701 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.data_starved import DataStarved
from trainmedic.history import History


def look(data: Any, step: Any, **facts: Any) -> list[Finding]:
    return list(DataStarved().check(History.of(time_data=list(data), time_step=list(step), facts=facts)))


def test_half_of_the_time() -> None:
    [finding] = look([0.05] * 100, [0.1] * 100)
    assert (finding.step, finding.detected_at) == (5, 19)
    assert finding.message == (
        "50 % of the time goes by waiting for the loader, 50 ms a step: without it the run would be 2 times as fast"
    )


def test_workers_that_cannot_keep_up_wait_now_and_then() -> None:
    step = [0.02, 0.02, 0.02, 0.2]
    assert look([0.0, 0.0, 0.0, 0.18] * 20, step * 20)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15])
def test_a_little_is_healthy(share: float) -> None:
    noise = np.exp(0.3 * np.random.default_rng(0).standard_normal(500))
    assert look(share * 0.1 * noise, 0.1 * noise) == []


def test_the_first_epoch_may_read_the_files() -> None:
    data = [0.08] * 50 + [0.001] * 950
    step = [0.1] * 50 + [0.02] * 950
    for until in range(20, 1_000, 20):
        assert look(data[:until], step[:until], steps_per_epoch=50, total_steps=1_000) == []


def test_tiny_steps_are_not_worth_it() -> None:
    assert look([0.0006] * 200, [0.001] * 200) == []


def test_one_long_pause_is_no_lasting_state() -> None:
    assert look([0.001] * 50 + [60.0] + [0.001] * 200, [0.05] * 50 + [60.05] + [0.05] * 200) == []


def test_times_of_other_steps_are_not_compared() -> None:
    history = History()
    history.add_series("time/data", range(0, 200, 2), [0.05] * 100)
    history.add_series("time/step", range(1, 200, 2), [0.1] * 100)
    assert list(DataStarved().check(history)) == []


def test_a_loader_that_slows_down_late_is_told_of() -> None:
    data, step = [0.0005] * 140 + [0.01] * 60, [0.02] * 140 + [0.03] * 60
    [finding] = look(data, step)
    assert finding.step >= 120
    assert 140 < finding.detected_at < 199
    assert look(data[:140], step[:140]) == []


def test_what_measuring_takes_is_not_the_step() -> None:
    """Four in ten milliseconds are waited; a measured step takes another 15."""
    few = History.of(time_data=[0.004] * 60, time_step=[0.025] * 60, a__gradient_norm=[1.0] * 60)
    assert list(DataStarved().check(few))
    measured = [step < 20 or step % 4 < 2 for step in range(200)]
    some = History.of(time_data=[0.004] * 200, time_step=[0.025 if m else 0.01 for m in measured])
    some.add_layers("gradient_norm", [("a", np.flatnonzero(measured), np.ones(sum(measured)))])
    assert list(DataStarved().check(some))
    # measuring takes two seconds at most where all steps are measured: these take their time by themselves
    long = History.of(time_data=[0.04] * 200, time_step=[0.25] * 200, a__gradient_norm=[1.0] * 200)
    assert list(DataStarved().check(long)) == []


def test_small_batches_need_less_and_large_ones_are_stacked_in_the_process() -> None:
    assert look([0.0015] * 200, [0.004] * 200, batch_size=32)
    assert look([0.0015] * 200, [0.004] * 200, batch_size=256) == []
    assert look([0.0006] * 200, [0.001] * 200, batch_size=8) == []
