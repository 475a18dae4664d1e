"""Which curve is better: against truths that are known because they were drawn so."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from trainmedic.history import Series
from trainmedic.reports.difference import (
    ALPHA,
    LEAST,
    VISIBLE,
    Difference,
    between_groups,
    difference,
    mean_curve,
    pair,
)

Floats = NDArray[np.float64]


def noise(count: int, correlation: float, seed: int) -> Floats:
    """Noise of spread 1 whose neighbours correlate (a process of first order)."""
    drawn = np.random.default_rng(seed).standard_normal(count + 200) * math.sqrt(1 - correlation**2)
    for i in range(1, len(drawn)):
        drawn[i] += correlation * drawn[i - 1]
    return np.asarray(drawn[200:])


def curve(count: int, noisy: Floats, every: int = 1, worse: float = 0.0, since: float = 0.0) -> Series:
    """A loss that falls from 30 to 10 as losses do, with noise, and what makes it worse from a share of it on."""
    time = np.arange(count)
    values = 10 + 20 * np.exp(-6 * time / count) + 0.1 * noisy + worse * (time >= since * count)
    return Series(time.astype(np.int64) * every, values)


def of(a: Series, b: Series, better: int = -1) -> Difference:
    return difference(a, b, better)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(("count", "draws"), [(LEAST, 150), (20, 150), (100, 150), (1_000, 60)])
def test_equal_runs_are_called_different_no_more_often_than_is_said(count: int, draws: int, correlation: float) -> None:
    called = [
        of(curve(count, noise(count, correlation, 2 * i)), curve(count, noise(count, correlation, 2 * i + 1))).verdict
        for i in range(draws)
    ]
    chance = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / draws)  # three standard errors of the count itself
    assert np.mean(np.abs(called)) <= chance


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_real_differences_are_found_with_their_size_and_since_when(correlation: float) -> None:
    """A shift as large as the noise of single values, from 60 % of the run on."""
    found = [
        of(
            curve(1_000, noise(1_000, correlation, 2 * i)),
            curve(1_000, noise(1_000, correlation, 2 * i + 1), worse=0.1, since=0.6),
        )
        for i in range(40)
    ]
    assert np.mean([one.verdict == 1 for one in found]) >= 0.9
    assert np.mean([abs(one.advantage - 0.1) <= one.margin for one in found]) >= 0.95
    since = [one.since for one in found if one.since is not None]
    assert 550 <= np.median(since) <= 650


def test_few_clear_values_suffice() -> None:
    """Ten evaluations, apart by fifteen times their noise."""
    found = of(curve(10, noise(10, 0, 1)), curve(10, noise(10, 0, 2), worse=1.5))
    assert found.verdict == 1
    assert found.since == 0
    turned = of(curve(10, noise(10, 0, 2), worse=1.5), curve(10, noise(10, 0, 1)))
    assert (turned.verdict, turned.advantage) == (-1, pytest.approx(-found.advantage))


def test_too_few_values_are_not_judged() -> None:
    found = of(curve(LEAST - 1, noise(20, 0, 1)[: LEAST - 1]), curve(LEAST - 1, noise(20, 0, 2)[: LEAST - 1], worse=5))
    assert found.verdict == 0
    assert found.reason == "7 common values are too few (at least 8)"
    assert found.margin == math.inf


def test_more_is_better_where_it_is() -> None:
    low, high = curve(100, noise(100, 0, 1)), curve(100, noise(100, 0, 2), worse=1)
    assert of(high, low, better=1).verdict == 1
    assert of(high, low, better=-1).verdict == -1


def test_the_same_noise_cancels() -> None:
    """Runs on the same batches: a difference far below the noise of either is seen."""
    shared = noise(500, 0.3, 1)
    found = of(curve(500, shared), curve(500, shared + 0.02 * noise(500, 0, 2), worse=0.02))
    assert found.verdict == 1
    assert found.margin < 0.005


def test_what_nobody_would_see_is_no_difference() -> None:
    exact = curve(500, np.zeros(500))
    nearly = Series(exact.steps, exact.values * (1 + VISIBLE / 2))
    assert of(exact, nearly).verdict == 0
    assert of(exact, nearly).reason == "the same to three digits"
    assert of(exact, exact).verdict == 0


def test_one_spike_decides_nothing() -> None:
    a, b = curve(200, noise(200, 0, 1)), curve(200, noise(200, 0, 2))
    a.values[195] = 1e6
    assert of(a, b).verdict == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_run_that_ends_in_nan_is_worse_since_then(broken: float) -> None:
    a, b = curve(100, noise(100, 0, 1)), curve(100, noise(100, 0, 2))
    b.values[70:] = broken
    found = of(a, b)
    assert (found.verdict, found.since, found.advantage) == (1, 70, math.inf)
    assert of(b, a).verdict == -1
    both = of(b, b)
    assert (both.verdict, both.reason) == (0, "neither is finite at its end")


def test_a_nan_in_between_is_left_out() -> None:
    a, b = curve(100, noise(100, 0, 1)), curve(100, noise(100, 0, 2), worse=1)
    a.values[50] = math.nan
    assert of(a, b).verdict == 1


def test_different_steps_meet_in_their_common_range_only() -> None:
    fine, coarse = curve(2_000, noise(2_000, 0, 1)), curve(100, noise(100, 0, 2), every=10)
    pairs = pair(fine, coarse)
    assert (pairs.steps[0], pairs.steps[-1], pairs.count) == (0, 990, 100)
    np.testing.assert_array_equal(pairs.b, coarse.values)
    np.testing.assert_array_equal(pairs.a, fine.values[:1_000:10])
    shifted = Series(coarse.steps + 5_000, coarse.values)
    nothing = of(fine, shifted)
    assert (nothing.verdict, nothing.count, nothing.reason) == (0, 0, "they have no steps in common")


def test_steps_that_never_meet_are_taken_from_both_sides() -> None:
    """A straight line, read at other steps, is still that line: no advantage for who logs later."""
    steps = np.arange(0, 1_000, 7, dtype=np.int64)
    between = Series(steps, 5.0 - steps / 500)
    others = np.arange(3, 1_000, 50, dtype=np.int64)
    pairs = pair(between, Series(others, 5.0 - others / 500))
    np.testing.assert_allclose(pairs.a, pairs.b, atol=1e-2)
    assert of(between, Series(others, 5.0 - others / 500)).verdict == 0


def test_when_the_better_one_was_where_the_other_ended() -> None:
    time = np.arange(1_000)
    fast, slow = (Series(time, 2.0 - 1.5 * np.minimum(time / end, 1)) for end in (500, 1_400))
    found = of(fast, slow)
    assert found.verdict == 1
    assert found.reached is not None
    assert 300 < found.reached < 420  # 2 - 1.5 * 0.64 (the mean of the slow one's last fifth) after 323 steps, smoothed


def test_several_values_at_a_step_and_any_order_do_no_harm() -> None:
    a = Series(np.array([3, 1, 1, 2]), np.array([3.0, 9.0, 1.0, 2.0]))
    pairs = pair(a, a)
    np.testing.assert_array_equal(pairs.steps, [1, 2, 3])
    np.testing.assert_array_equal(pairs.a, [1, 2, 3])


def test_many_comparisons_ask_for_more() -> None:
    a, b = curve(100, noise(100, 0, 5)), curve(100, noise(100, 0, 6), worse=0.05)
    one, many = difference(a, b, -1), difference(a, b, -1, comparisons=45)
    assert many.margin > 1.3 * one.margin
    assert many.p_value >= one.p_value


def test_very_long_runs_are_compared_as_well() -> None:
    a, b = curve(100_003, noise(100_003, 0.5, 5)), curve(100_003, noise(100_003, 0.5, 6), worse=0.02, since=0.5)
    found = of(a, b)
    assert (found.verdict, found.first, found.last) == (1, 0, 100_002)
    assert found.since is not None
    assert 45_000 < found.since < 55_000


# -- groups of repeats -------------------------------------------------------------------------------------------


def group(runs: int, seed: int, worse: float = 0.0, spread: float = 0.3) -> list[Series]:
    """Repeats of one setting: each ends where its seed leads it, with little noise within."""
    apart = np.random.default_rng(seed).standard_normal(runs) * spread
    return [curve(100, noise(100, 0.3, 50 * seed + i), worse=worse + apart[i]) for i in range(runs)]


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_groups_that_differ_by_their_seeds_only_are_not_called_different(runs: int) -> None:
    """Single runs of them would be: the noise within a run says nothing of another seed."""
    called = [between_groups(group(runs, 2 * i), group(runs, 2 * i + 1), -1).verdict for i in range(150)]
    assert np.mean(np.abs(called)) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 150)
    alone = [of(group(1, 2 * i)[0], group(1, 2 * i + 1)[0]).verdict for i in range(50)]
    assert np.mean(np.abs(alone)) > 0.5


def test_groups_that_differ_by_more_are() -> None:
    found = [between_groups(group(4, 2 * i, worse=1.5), group(4, 2 * i + 1), -1) for i in range(40)]
    assert np.mean([one.verdict == -1 for one in found]) > 0.9
    assert np.mean([abs(one.advantage + 1.5) < one.margin for one in found]) >= 0.85
    assert all(one.since is not None for one in found if one.verdict)


def test_a_group_of_one_is_held_against_one_of_several() -> None:
    many = group(5, 1)
    assert between_groups(many, group(1, 2, worse=5.0), -1).verdict == 1
    one_each = between_groups(group(1, 1), group(1, 2, worse=5.0), -1)
    assert (one_each.verdict, one_each.reason) == (0, "one run each does not show how runs differ")
    broken = group(3, 3)
    broken[0].values[50:] = math.nan
    assert between_groups(many, broken, -1).reason == "a run of it is not finite at its end"


def test_the_mean_of_curves_with_other_steps() -> None:
    steps = np.arange(0, 100)
    one, other = Series(steps, steps * 1.0), Series(steps[5::10], steps[5::10] * 3.0)
    mean = mean_curve([one, other])
    np.testing.assert_array_equal(mean.steps, steps[5::10])
    np.testing.assert_allclose(mean.values, 2.0 * steps[5::10])
