"""Whether one curve ended better than another, beyond noise: paired at equal steps, with noise that lasts.

The two curves are brought to common steps, within the range that both cover. What is judged is the mean of their
difference over the end of that range. Its standard error comes from the second half of the difference, without its
straight trend: the spectrum of the noise at the lowest frequencies (equal-weighted cosines: Lazarus, Lewis, Stock and
Watson 2018, "HAR Inference: Recommendations for Practice", J. Business & Economic Statistics 36:4), over as many
frequencies as the correlation of neighbours leaves flat, and at most n^(2/3) of them. So a curve that wanders slowly
counts as the few independent values that it holds.

What this cannot know is what another seed would give: it is the noise within these two runs. Where several runs of
each kind are given, :func:`between_groups` takes the noise from how they differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import Series

ALPHA = 0.05
"""Share of equal runs, at most, that are called different: met where neighbours correlate by up to 0.8, from 8 values
on (`tests/reports/test_difference.py` draws them)."""
NOMINAL = 0.008
"""What the test is asked for, to keep ``ALPHA``: few values do not show how much their neighbours correlate."""
LEAST = 8
"""Common values, below which noise and difference cannot be told apart."""
END = 0.2
"""Share of the common values that "how it ended" is the mean of."""
FEWEST_AT_END = 6
VISIBLE = 1e-3
"""Share of the level, below which a difference is none: it does not show in three digits."""
SPIKE = 5.0
"""Standard deviations (by the median) beyond which a value counts no more than that: one spike decides nothing."""
FLAT = 0.5
"""Frequencies at which the noise of neighbours that correlate by r is flat: up to this times (1 - r) / sqrt(r)."""
MOST_FREQUENCIES = 64
"""More of them tell no more: a quantile of Student's distribution is within 4 % of the normal one."""
MOST_VALUES = 16_384
"""Common values that are looked at one by one."""
MAD_TO_SIGMA = 1.4826
WITHIN_NOISE = "within noise"

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Two curves at their common steps: ``steps`` (n,), ``a`` and ``b`` (n,), finite or not."""

    steps: Steps
    a: Floats
    b: Floats

    @property
    def count(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class Difference:
    """How the first of two curves ended against the second.

    - ``a``, ``b``: their levels at the end of the common range, means over the last fifth.
    - ``advantage``: by how much the first is better; negative where it is worse. In units of the curve.
    - ``margin``: what that could be by noise; infinite where it cannot be told.
    - ``p_value``: two-sided, of the advantage being noise.
    - ``verdict``: 1 the first is better beyond noise, -1 it is worse, 0 neither.
    - ``since``: the step since which it has been so, ``None`` without a verdict.
    - ``reached``: the step at which the better one had come to where the other one ended, where that was earlier.
    - ``first``, ``last``, ``count``: the common steps and values; ``reason``: why there is no verdict.
    """

    a: float
    b: float
    advantage: float
    margin: float
    p_value: float
    verdict: int
    since: int | None
    reached: int | None
    first: int
    last: int
    count: int
    reason: str = ""


def pair(a: Series, b: Series) -> Pairs:
    """Both curves at the steps of the coarser one, within the range that both cover. Empty where they do not meet.

    Where the finer one has values at those steps, these are taken (runs on the same batches share their noise). Else
    the mean of its values around each step is, or, where there are none, the straight line between its neighbours.
    """
    a, b = _sorted(a), _sorted(b)
    if not len(a.steps) or not len(b.steps):
        return Pairs(np.empty(0, np.int64), np.empty(0), np.empty(0))
    first, last = max(a.steps[0], b.steps[0]), min(a.steps[-1], b.steps[-1])
    a, b = _within(a, first, last), _within(b, first, last)
    if len(a.steps) > len(b.steps):
        turned = _at_steps_of(b, a)
        return Pairs(turned.steps, turned.b, turned.a)
    return _at_steps_of(a, b)


def difference(a: Series, b: Series, better: int, comparisons: int = 1) -> Difference:
    """How ``a`` ended against ``b``; ``better`` is 1 where more is better, -1 where less is.

    Of several ``comparisons``, made together, all have to be right at once (Bonferroni).
    """
    pairs = pair(a, b)
    broken = [_breaks(curve) for curve in (pairs.a, pairs.b)]
    if any(broken):
        return _of_broken(pairs, broken)
    finite = np.isfinite(pairs.a) & np.isfinite(pairs.b)
    steps, one, other = _condensed(pairs.steps[finite], pairs.a[finite], pairs.b[finite])
    if not len(steps):
        return _undecided(pairs, math.nan, math.nan, "they have no steps in common")
    end = _end(len(steps))
    level_a, level_b = float(one[-end:].mean()), float(other[-end:].mean())
    if len(steps) < LEAST:
        return _undecided(pairs, level_a, level_b, f"{len(steps)} common values are too few (at least {LEAST})", better)
    gain = better * (one - other)
    advantage, error, freedom = level(gain)
    wanted = NOMINAL / max(1, comparisons)
    margin = _quantile(wanted, freedom) * error
    p_value = min(1.0, _p_value(advantage, error, freedom) * ALPHA / NOMINAL * max(1, comparisons))
    found = Difference(
        level_a, level_b, advantage, margin, p_value, 0, None, None, *_range(pairs), int(np.count_nonzero(finite))
    )
    if abs(advantage) <= margin or not _visible(advantage, level_a, level_b):
        return replace(found, reason=WITHIN_NOISE if 0 < abs(advantage) <= margin else "the same to three digits")
    return _dated(replace(found, verdict=1 if advantage > 0 else -1), steps, one, other, better)


def _condensed(steps: Steps, a: Floats, b: Floats) -> tuple[Steps, Floats, Floats]:
    """Very long curves by the means of blocks: what decides are their slow movements."""
    size = -(-len(steps) // MOST_VALUES)
    if size < 2:
        return steps, a, b
    whole = len(steps) - len(steps) % size
    a, b = (np.asarray(curve[:whole].reshape(-1, size).mean(axis=1)) for curve in (a, b))
    return steps[:whole:size], a, b


def between_groups(a: Sequence[Series], b: Sequence[Series], better: int, comparisons: int = 1) -> Difference:
    """How the runs of one group ended against those of another; noise is how runs of one group differ (seeds).

    Student's two-sample test of the levels at the end of the range that all runs cover: exact for few runs, if their
    levels spread alike in both groups. At least three runs in all, two of them in one group.
    """
    pairs = pair(mean_curve(a), mean_curve(b))
    if not pairs.count:
        return _undecided(pairs, math.nan, math.nan, "they have no steps in common")
    first, last = _range(pairs)
    levels_a, levels_b = (np.array([_level(_within(_sorted(run), first, last)) for run in group]) for group in (a, b))
    freedom = len(levels_a) + len(levels_b) - 2
    level_a, level_b = float(levels_a.mean()), float(levels_b.mean())
    if not (math.isfinite(level_a) and math.isfinite(level_b)) or freedom < 1:
        reason = (
            "a run of it is not finite at its end" if freedom >= 1 else "one run each does not show how runs differ"
        )
        return _undecided(pairs, level_a, level_b, reason, better)
    squares = float(((levels_a - level_a) ** 2).sum() + ((levels_b - level_b) ** 2).sum())
    error = math.sqrt(squares / freedom * (1 / len(levels_a) + 1 / len(levels_b)))
    advantage = better * (level_a - level_b)
    margin = _quantile(ALPHA / max(1, comparisons), freedom) * error
    p_value = min(1.0, _p_value(advantage, error, freedom) * max(1, comparisons))
    verdict = (1 if advantage > 0 else -1) if abs(advantage) > margin and _visible(advantage, level_a, level_b) else 0
    found = Difference(level_a, level_b, advantage, margin, p_value, verdict, None, None, first, last, pairs.count)
    if not verdict:
        return replace(found, reason=WITHIN_NOISE if 0 < abs(advantage) <= margin else "the same to three digits")
    finite = np.isfinite(pairs.a) & np.isfinite(pairs.b)
    return _dated(found, *_condensed(pairs.steps[finite], pairs.a[finite], pairs.b[finite]), better)


def mean_curve(runs: Sequence[Series]) -> Series:
    """The mean of several curves at the steps of the one with the fewest, where all of them are."""
    curves = [_sorted(run) for run in runs]
    if any(not len(curve.steps) for curve in curves):
        return Series(np.empty(0, np.int64), np.empty(0))
    first, last = max(int(c.steps[0]) for c in curves), min(int(c.steps[-1]) for c in curves)
    curves = [_within(curve, first, last) for curve in curves]
    coarse = min(curves, key=lambda curve: len(curve.steps))
    together = [pair(coarse, curve) for curve in curves]
    steps = coarse.steps
    for pairs in together:
        steps = steps[np.isin(steps, pairs.steps)]
    if not len(steps):
        return Series(steps, np.empty(0))
    values = [pairs.b[np.isin(pairs.steps, steps)] for pairs in together]
    return Series(steps, np.asarray(np.mean(values, axis=0)))


def _level(run: Series) -> float:
    """Where a run ended: the mean of its last fifth; NaN where it ended in one."""
    if not len(run.values) or not math.isfinite(run.values[-1]):
        return math.nan
    end = run.values[-_end(len(run.values)) :]
    return float(end[np.isfinite(end)].mean())


def _visible(advantage: float, a: float, b: float) -> bool:
    return abs(advantage) >= VISIBLE * max(abs(a), abs(b))


def _dated(found: Difference, steps: Steps, a: Floats, b: Floats, better: int) -> Difference:
    """With the step since which it is so, and when the better one had come to where the other one ended."""
    gain = found.verdict * better * (a - b)
    winner, goal = (a, found.b) if found.verdict > 0 else (b, found.a)
    since = int(steps[_turn(gain, abs(found.advantage))])
    return replace(found, since=since, reached=_reached(steps, better * winner, better * goal))


def level(values: Floats) -> tuple[float, float, int]:
    """(mean of the end of a series, its standard error, degrees of freedom), for noise that correlates.

    ``values`` (n,) finite, n at least ``LEAST``.
    """
    count = len(values)
    half = values[-max(count // 2, min(count, LEAST)) :]
    time = np.arange(len(half)) - (len(half) - 1) / 2
    trend = half.mean() + time * (time @ half) / (time @ time)
    noise = half - trend
    bound = SPIKE * MAD_TO_SIGMA * float(np.median(np.abs(noise)))
    if bound > 0:
        noise = np.clip(noise, -bound, bound)
    end = _end(count)
    mean = float((trend + noise)[-end:].mean())
    frequencies = _flat_frequencies(noise)
    spectrum = float(np.mean(_cosines(noise, frequencies) ** 2))
    return mean, math.sqrt(spectrum / end), frequencies


def _flat_frequencies(noise: Floats) -> int:
    """How many cosines see the noise where its spectrum is flat: fewer, the more neighbours correlate; at least 2.

    The correlation is taken a standard error higher than it seems, and freed of what the trend took from it.
    """
    count = len(noise)
    power = float(noise @ noise)
    seen = float(noise[1:] @ noise[:-1]) / power if power > 0 else 0.0
    likely = seen + (2 + 4 * max(seen, 0.0)) / count
    high = min(max(likely + math.sqrt(max(1 - likely**2, 0.0) / count), 1e-9), 0.99)
    flat = FLAT * (1 - high) / math.sqrt(high) * count / math.pi - 1
    return max(2, min(int(count ** (2 / 3)), int(flat), MOST_FREQUENCIES))


def _cosines(noise: Floats, count: int) -> Floats:
    """(count,): the noise by cosines, from the second on; the first looks like the trend that was taken out."""
    time = (np.arange(len(noise)) + 0.5) / len(noise)
    waves = np.arange(2, count + 2)
    return np.asarray(np.sqrt(2 / len(noise)) * np.cos(np.pi * np.outer(waves, time)) @ noise)


def _quantile(p_value: float, freedom: int) -> float:
    """What |t| exceeds by chance in ``p_value`` of cases."""
    from scipy.special import stdtrit

    return float(-stdtrit(freedom, p_value / 2))


def _p_value(mean: float, error: float, freedom: int) -> float:
    from scipy.special import stdtr

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(mean) / error))


def _turn(gain: Floats, final: float) -> int:
    """Place since which ``gain`` has been at ``final`` rather than at 0: the likeliest change point (Page 1954)."""
    excess = np.clip(gain - final / 2, -1.5 * final, 1.5 * final)
    return int(len(gain) - 1 - np.argmax(np.cumsum(excess[::-1])))


def _reached(steps: Steps, winner: Floats, goal: float) -> int | None:
    """The step at which the smoothed winner came to where the other ended, if it got there before the last tenth."""
    width = max(1, min(_end(len(steps)), 50))
    smooth = np.convolve(winner, np.ones(width) / width, mode="valid")
    there = np.flatnonzero(smooth >= goal)
    if not len(there):
        return None
    step = int(steps[there[0] + width - 1])
    return step if step < steps[0] + 0.9 * (steps[-1] - steps[0]) else None


def _end(count: int) -> int:
    return max(math.ceil(END * count), min(count // 2, FEWEST_AT_END), 1)


def _breaks(curve: Floats) -> bool:
    """Whether a curve is not finite at its end, or in half of its last fifth."""
    end = curve[-_end(len(curve)) :]
    return len(curve) > 0 and (not math.isfinite(curve[-1]) or float(np.isfinite(end).mean()) <= 0.5)


def _of_broken(pairs: Pairs, broken: list[bool]) -> Difference:
    """One of the two ended in NaN: the other one is better, since then."""
    if all(broken):
        return _undecided(pairs, math.nan, math.nan, "neither is finite at its end")
    curve = pairs.a if broken[0] else pairs.b
    finite = np.flatnonzero(np.isfinite(curve))
    since = int(pairs.steps[finite[-1] + 1 if len(finite) and finite[-1] + 1 < pairs.count else 0])
    ends = [
        math.nan if bad else float(np.nanmean(c[-_end(len(c)) :]))
        for bad, c in zip(broken, (pairs.a, pairs.b), strict=True)
    ]
    verdict = -1 if broken[0] else 1
    return Difference(ends[0], ends[1], verdict * math.inf, 0.0, 0.0, verdict, since, None, *_range(pairs), pairs.count)


def _undecided(pairs: Pairs, a: float, b: float, reason: str, better: int = 1) -> Difference:
    return Difference(a, b, better * (a - b), math.inf, 1.0, 0, None, None, *_range(pairs), pairs.count, reason)


def _range(pairs: Pairs) -> tuple[int, int]:
    return (int(pairs.steps[0]), int(pairs.steps[-1])) if pairs.count else (0, 0)


def _sorted(curve: Series) -> Series:
    """A curve with each step once; of several values at one step the last one counts."""
    steps, back = np.unique(curve.steps[::-1], return_index=True)
    return Series(steps, np.asarray(curve.values[::-1][back], dtype=np.float64))


def _within(curve: Series, first: int, last: int) -> Series:
    part = (curve.steps >= first) & (curve.steps <= last)
    return Series(curve.steps[part], curve.values[part])


def _at_steps_of(coarse: Series, fine: Series) -> Pairs:
    steps = coarse.steps
    place = np.searchsorted(fine.steps, steps)
    same = np.isin(steps, fine.steps)
    if not len(fine.steps) or not len(steps):
        return Pairs(steps[:0], coarse.values[:0], fine.values[:0])
    if same.mean() >= 0.9:
        return Pairs(steps[same], coarse.values[same], fine.values[place[same]])
    return Pairs(steps, coarse.values, _around(fine, steps))


def _around(curve: Series, steps: Steps) -> Floats:
    """(n,) the mean of a curve within half a stretch of each step, on both sides alike; else between its neighbours.

    NaN where the curve is not finite there.
    """
    between = np.interp(steps, curve.steps, curve.values)
    if len(steps) < 2:
        return np.asarray(between)
    stretch = np.diff(steps)
    reach = np.minimum(np.append(stretch, stretch[-1]), np.insert(stretch, 0, stretch[0])) / 2
    left = np.searchsorted(curve.steps, steps - reach, side="left")
    right = np.searchsorted(curve.steps, steps + reach, side="right")
    before, after = np.searchsorted(curve.steps, steps, side="left") - left, right - np.searchsorted(curve.steps, steps)
    with np.errstate(invalid="ignore"):
        total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(curve.values, nan=0.0, posinf=0.0, neginf=0.0))])
        bad = np.concatenate([[0], np.cumsum(~np.isfinite(curve.values))])
        mean = (total[right] - total[left]) / np.maximum(right - left, 1)
    both_sides = (before > 0) & (after > 0)
    mean = np.where(bad[right] > bad[left], np.nan, mean)
    return np.asarray(np.where(both_sides, mean, between))
