"""The judgement of a sequential trial, on made-up losses."""

from typing import Any

import numpy as np
import pytest

from trainmedic.history import History
from trainmedic.remedies.trial import SequentialTrial, Verdict

WINDOW = 60


def losses(before: list[float], after: list[float]) -> History:
    return History.of(train_loss=[*before, *after])


def noisy(level: float, count: int, *, slope: float = 0.0, noise: float = 0.05, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    return list(level + slope * np.arange(count) + noise * random.standard_normal(count))


def decide(before: list[float], after: list[float], **given: Any) -> tuple[int, Verdict] | None:
    """Ask the trial after every step, as the Medic does; the step of the verdict, and the verdict."""
    history = losses(before, after)
    trial = SequentialTrial(start=len(before), window=WINDOW, **given)
    for step in range(len(before), len(before) + len(after)):
        known = History.of(train_loss=history.series("train/loss").values[: step + 1])
        verdict = trial.verdict(known, step)
        if verdict is not None:
            return step - len(before) + 1, verdict
    return None


def test_a_clear_fall_is_kept_at_the_end_of_the_window() -> None:
    taken, verdict = decide(noisy(2.3, 100), noisy(1.2, 300, seed=1))
    assert taken == WINDOW
    assert verdict.kept
    assert "followed by" in verdict.reason
    assert verdict.control[0].value == pytest.approx(2.3, abs=0.05)
    assert verdict.treated[0].value == pytest.approx(1.2, abs=0.05)


def test_a_rise_is_undone() -> None:
    taken, verdict = decide(noisy(1.0, 100), noisy(1.5, 300, seed=1))
    assert taken == WINDOW
    assert not verdict.kept
    assert verdict.reason == "followed by a higher loss"


def test_a_loss_that_is_no_longer_finite_ends_the_trial_at_once() -> None:
    taken, verdict = decide(noisy(1.0, 100), [*noisy(0.9, 5), float("nan")])
    assert taken == 6
    assert not verdict.kept


@pytest.mark.parametrize("seed", range(20))
def test_a_change_that_does_nothing_is_undone(seed: int) -> None:
    whole = noisy(1.0, 400, noise=0.2, seed=seed)
    taken, verdict = decide(whole[:100], whole[100:])
    assert not verdict.kept
    assert WINDOW <= taken <= 3 * WINDOW


@pytest.mark.parametrize("seed", range(20))
def test_a_fall_that_was_under_way_is_not_credited_to_the_change(seed: int) -> None:
    whole = noisy(2.0, 300, slope=-0.004, noise=0.1, seed=seed)
    _, verdict = decide(whole[:100], whole[100:])
    assert not verdict.kept


def test_a_spoilt_run_is_compared_with_itself() -> None:
    spoilt = [2.0, 30.0, 4e5, float("nan")]
    _, verdict = decide(spoilt, noisy(3.0, 300, slope=-0.01), spoilt=True)
    assert verdict.kept
    _, verdict = decide(spoilt, noisy(3.0, 300), spoilt=True)
    assert not verdict.kept


def test_without_losses_there_is_no_evidence() -> None:
    trial = SequentialTrial(start=10, window=WINDOW)
    assert trial.verdict(History.of(gradient_norm=[1.0] * 300), 299) is None


@pytest.mark.parametrize("seed", range(10))
def test_put_back_to_where_it_was_it_is_compared_with_what_came_of_that_state(seed: int) -> None:
    """Without the change that state came down to 1.0 and rose to 2.0 again."""
    without = [*noisy(1.0, 60, seed=seed), *noisy(2.0, 60, seed=seed + 100)]
    for level, kept in ((0.6, True), (1.1, False), (1.5, False)):
        _, verdict = decide(without, noisy(level, 180, seed=seed + 200), base=-1)
        assert verdict.kept is kept


def test_where_there_is_nothing_to_compare_with_nothing_is_kept_for_falling() -> None:
    after = noisy(3.0, 200, slope=-0.01, noise=0.01)
    assert not decide(after[:3], after[3:])[1].kept
    assert decide(after[:3], after[3:], unless_worse="it is right in any case")[1].kept


def test_after_an_undone_change_the_next_is_compared_with_the_time_before_that_one() -> None:
    before = [*noisy(1.0, 60), *noisy(3.0, 60, seed=1)]
    assert not decide(before, noisy(0.98, 180, seed=2), until=59)[1].kept
    assert decide(before, noisy(0.6, 180, seed=2), until=59)[1].kept


def test_a_fall_that_flattens_out_leads_no_further_down_than_it_bends() -> None:
    """Nearly all of the way to 2.0 is done: what stands at 1.7 then has done something."""
    random = np.random.default_rng(0)
    before = list(2.0 + 2.0 * np.exp(-np.arange(120) / 20) + 0.03 * random.standard_normal(120))
    assert decide(before, noisy(1.7, 200, noise=0.03, seed=1))[1].kept
    assert not decide(before, noisy(1.99, 200, noise=0.03, seed=1))[1].kept


@pytest.mark.parametrize("seed", range(10))
def test_noise_in_which_each_loss_follows_the_one_before_is_no_difference(seed: int) -> None:
    random, values = np.random.default_rng(seed), [0.0]
    for _ in range(399):
        values.append(0.9 * values[-1] + 0.1 * float(random.standard_normal()))
    whole = list(2.0 + np.array(values))
    assert not decide(whole[:120], whole[120:])[1].kept


def test_a_change_that_is_paid_for_with_the_loss_may_raise_it_as_far_as_knowing_nothing() -> None:
    given = {"spoilt": True, "unless_worse": "it weighs anew", "ceiling": 0.69}
    rising = [*noisy(0.02, 30, noise=0.01), *noisy(0.4, 200, noise=0.01)]
    assert decide(noisy(0.02, 100, noise=0.01), rising, **given)[1].kept
    assert not decide(noisy(0.02, 100, noise=0.01), [*rising[:30], *noisy(0.9, 200)], **given)[1].kept
    assert not decide(noisy(0.02, 100, noise=0.01), rising, **{**given, "ceiling": -np.inf})[1].kept


def test_what_began_from_an_earlier_state_stays_only_if_it_is_better_than_the_state_left() -> None:
    without = [*noisy(1.0, 60), *noisy(2.0, 60, seed=1)]
    assert not decide(without, noisy(1.2, 180, seed=2), base=-1)[1].worse
    assert decide(without, noisy(2.0, 180, seed=2), base=-1)[1].worse


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_that_speeds_up_by_itself_is_not_credited_to_the_change(seed: int) -> None:
    steps, noise = np.arange(300), 0.02 * np.random.default_rng(seed).standard_normal(300)
    whole = list(3.0 - (steps / 150) ** 2 + noise)
    assert not decide(whole[:120], whole[120:])[1].kept


def test_a_fall_through_orders_of_magnitude_is_no_noise_of_the_last_of_them() -> None:
    """Put back to its start, a run that had come down from 30,000 to 500 as slowly is at 0.5 at once."""
    without = list(3e4 * np.exp(-np.arange(120) / 15) * np.exp(0.3 * np.array(noisy(0.0, 120, noise=1.0))))
    assert decide(without, noisy(1e-3, 180, noise=1e-4, seed=1), base=-1)[1].kept
