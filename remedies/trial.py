"""Whether a change did any good: the judgement of a trial, on recorded numbers alone."""

# A controlled trial runs arms from one state, on the same batches with the same random numbers. Two things then fool a
# comparison: the smallest difference is significant, and what pays at once need not pay later (a lower rate does). So
# an arm has to win by a least effect, at two horizons, and its lead may not shrink; and the test is over points in
# time, as all batches judged at one moment share the luck of one trajectory.

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.diagnose import Evidence
from trainmedic.diagnose.robust import rejected_steps
from trainmedic.history import History

Array = NDArray[np.float64]


class Verdict(NamedTuple):
    """What a trial came to, with the numbers that were compared: without and with the change, or before and after."""

    kept: bool
    reason: str
    control: tuple[Evidence, ...] = ()
    treated: tuple[Evidence, ...] = ()
    worse: bool = True  # where it is not kept: whether what was learnt with it is worse than what was there before


LEAST_EFFECT = 0.05
"""Share of the control's loss by which an arm has to lie below it, at each horizon."""
ALPHA = 0.05
"""Level of the paired test at each horizon, divided by the number of arms (Bonferroni)."""
LEAD_KEPT = 0.9
"""Share of the effect at the first horizon that must be there at the last."""
POINTS, EACH = 5, 2
"""Moments, in the last third of each horizon, at which arms are judged, and batches at each of them."""


LOOKS = 2
"""Times in a window that a change is judged: the more often, the more often noise alone passes for a difference."""
TIED = 0.9
"""Correlation of neighbouring losses, at most: a window shows no longer memory."""


class Comparison(NamedTuple):
    """One arm against the control."""

    won: bool
    reason: str
    effect: float
    p_value: float
    control: tuple[Evidence, ...]
    treated: tuple[Evidence, ...]


def points(horizon: int, first: int = 0) -> tuple[int, ...]:
    """Steps after which arms are judged for a horizon: the last one is the horizon itself; none before ``first``."""
    apart = max(1, (horizon - max(first, horizon * 2 // 3)) // POINTS)
    return tuple(horizon - apart * (POINTS - 1 - i) for i in range(POINTS))


def compare(control: Sequence[Array], treated: Sequence[Array], horizons: Sequence[int], arms: int = 1) -> Comparison:
    """Judge an arm by its losses, (points in time x batches) for each horizon; of fewer horizons while it is under way.

    Losses that are not finite count as infinitely bad. The paired test is a one-sided t test over the points.
    """
    effects, p_values = [], []
    for without, with_ in zip(control, treated, strict=False):
        effects.append(effect_of(without, with_))
        p_values.append(_paired(without, with_))
    numbers = (_levels(control[: len(effects)], horizons), _levels(treated, horizons))
    reason = _shortfall(effects, p_values, horizons, arms)
    won = not reason
    return Comparison(won, reason or "the loss is lower with it than without", effects[-1], p_values[-1], *numbers)


def effect_of(control: Array, treated: Array) -> float:
    """Share by which the treated loss lies below the control's; 1 where only the control is not finite."""
    without, with_ = float(np.mean(control)), float(np.mean(treated))
    if not np.isfinite(with_):
        return -np.inf
    if not np.isfinite(without):
        return 1.0
    return (without - with_) / max(abs(without), 1e-12)


def _shortfall(effects: Sequence[float], p_values: Sequence[float], horizons: Sequence[int], arms: int) -> str:
    """Why an arm has not won; empty if it has."""
    for effect, p_value, horizon in zip(effects, p_values, horizons, strict=False):
        if effect == -np.inf:
            return f"its loss was not finite after {horizon} steps"
        if effect < LEAST_EFFECT:
            word = "lower" if effect >= 0 else "higher"
            return f"after {horizon} steps its loss was {100 * abs(effect):.2g} % {word} than without"
        if p_value > ALPHA / arms:
            return f"after {horizon} steps its lead was within the noise (p = {p_value:.2g})"
    if effects[-1] < LEAD_KEPT * effects[0]:
        return f"its lead shrank from {100 * effects[0]:.2g} to {100 * effects[-1]:.2g} %"
    return ""


def _paired(control: Array, treated: Array) -> float:
    from scipy import stats

    with np.errstate(invalid="ignore"):
        differences = (control - treated).mean(axis=1)
    if not np.isfinite(treated).all():
        return 1.0
    if not np.isfinite(differences).all():
        return 0.0  # only the control is not finite
    if np.ptp(differences) <= 1e-9 * max(float(np.abs(differences).max()), 1e-300):
        return 0.0 if differences[0] > 0 else 1.0
    return float(stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue)


def _levels(judged: Sequence[Array], horizons: Sequence[int]) -> tuple[Evidence, ...]:
    return tuple(
        _loss(f"loss after {steps} steps", float(np.mean(v))) for v, steps in zip(judged, horizons, strict=False)
    )


class Trial(ABC):
    """How a change is tried. ``verdict`` is asked after every step, until it answers."""

    kind: Literal["controlled", "sequential"]

    @abstractmethod
    def verdict(self, history: History, step: int) -> Verdict | None:
        """The verdict after ``step``, or ``None`` while it is still open."""


class SequentialTrial(Trial):
    """Applied, watched for a window of steps, and compared with the time before; such an outcome is "followed by".

    The change is kept if the median training loss in the second half of the window lies below where the time before
    was heading, by more than three standard errors of that comparison, ``LEAST_EFFECT`` of its value, and as much again
    as it was coming down by itself; by
    ``LEAST_FAILING`` in a run that had come down by nothing before. A run that was spoilt has no time
    before: then the loss must stay finite and either fall within the window, or have kept ``RECOVERED`` of what the
    state had learnt that it was put back to. Where nothing has come down at the end of the window the change is undone;
    what is not decided then is watched for up to ``PATIENCE`` windows.

    Args:
        start: first step taken with the change.
        window: steps to watch.
        since: first step of the time before that may be compared with.
        until: last one, unless it is the step before the start.
        spoilt: whether the run was not worth comparing with: its loss was no longer finite, or had left its range.
        failing: whether the run was getting nowhere.
        base: step of the state that the run was put back to for it, if it was: then what came of that state without the
            change is what it is compared with, after as many steps and at last.
        learnt: training loss at the start of the run, and at the state that a spoilt one was put back to.
        unless_worse: why the change stays unless a higher loss follows; empty where a lower one has to follow.
        ceiling: loss up to which it may rise, where the change is paid for with the loss that is logged.

    """

    kind = "sequential"
    PATIENCE = 3
    LEAST_FAILING = 0.005
    RECOVERED = 0.75  # of what was learnt
    FEW = 8  # values below which a window says nothing

    def __init__(
        self,
        *,
        start: int,
        window: int,
        since: int = 0,
        until: int | None = None,
        spoilt: bool = False,
        failing: bool = False,
        base: int | None = None,
        learnt: tuple[float, float] | None = None,
        unless_worse: str = "",
        ceiling: float = -np.inf,
    ) -> None:
        self.start, self.window, self.since, self.spoilt = start, window, since, spoilt
        self.until = start - 1 if until is None else until
        self.learnt, self.unless_worse, self.base, self.ceiling = learnt, unless_worse, base, ceiling
        self.least = self.LEAST_FAILING if failing else LEAST_EFFECT

    def verdict(self, history: History, step: int) -> Verdict | None:
        """See :class:`Trial`."""
        after = self._losses(history, self.start, step)
        if len(after) and not np.isfinite(after).all():
            return Verdict(False, "the loss was no longer finite", treated=(_loss("loss", float("nan")),))
        taken = step + 1 - self.start
        if taken < self.window or taken % max(self.window // LOOKS, 1):
            return None
        last = step + 1 >= self.start + self.PATIENCE * self.window
        if len(after) < self.FEW:
            kept = last and bool(self.unless_worse)
            return Verdict(True, f"hardly a step was taken; {self.unless_worse}") if kept else None
        first = self.until + 1 - 2 * self.window if self.base is None else self.base + 1
        before = self._losses(history, max(self.since, first), self.until)
        before = before[np.isfinite(before)]
        if self.spoilt or (len(before) < self.FEW and self.base is not None):  # hardly a step of it could be taken
            return self._from_itself(after, last)
        if len(before) < self.FEW:
            return self._without_before(after)
        return self._against_before(before, after, last)

    def _losses(self, history: History, first: int, last: int) -> Array:
        if "train/loss" not in history:
            return np.empty(0)
        steps, values = history.series("train/loss")
        within = (steps >= first) & (steps <= last)
        within &= ~np.isin(steps, rejected_steps(history))
        return values[within]

    def _from_itself(self, after: Array, last: bool) -> Verdict | None:
        third = len(after) // 3
        early, late = after[:third], after[-third:]
        control, treated = _level(early), _level(late)
        numbers = (_loss("loss at first", control),), (_loss("loss at last", treated),)
        if treated < control - self._margin(early, late):
            return Verdict(True, "the run was spoilt; since the change its loss is finite and falls", *numbers)
        if self.learnt is not None:
            start, level = self.learnt
            if start - level > LEAST_EFFECT * abs(start) and treated < start - self.RECOVERED * (start - level):
                numbers = (_loss("loss of the state put back", level),), numbers[1]
                return Verdict(True, "the run was spoilt; since the change it goes on from where it was well", *numbers)
        if self.unless_worse and treated < max(control + self._margin(early, late), self.ceiling):
            return Verdict(True, f"followed by no climbing loss; {self.unless_worse}", *numbers)
        hopeless = treated > control - _error(late)
        return Verdict(False, "the loss did not fall after the change", *numbers) if last or hopeless else None

    def _without_before(self, after: Array) -> Verdict:
        """There is nothing to compare with: only what stays unless it does harm can stay."""
        third = len(after) // 3
        early, late = after[:third], after[-third:]
        numbers = (_loss("loss at first", _level(early)),), (_loss("loss at last", _level(late)),)
        if self.unless_worse and _level(late) < _level(early) + self._margin(early, late):
            return Verdict(True, f"followed by no climbing loss; {self.unless_worse}", *numbers)
        return Verdict(False, "there was too little before it to compare with", *numbers, worse=False)

    def _against_before(self, before: Array, after: Array, last: bool) -> Verdict | None:
        late = after[len(after) // 2 :]
        treated = _level(late)
        newest = before[-max(len(before) // 3, self.FEW) :]
        if self.base is not None:  # it had come to nothing: no trend leads on from there
            before = before[len(after) // 2 : len(after)] if len(before) >= len(after) else newest  # of the same age
            control = _level(before)
            expected, error = min(control, _level(newest)), _error(before)
        else:
            control, error = _level(newest), _error(newest)
            # what has hardly begun leads no further ahead than it is long
            ahead = len(after) * 3 / 4 + self.start - 1 - self.until
            expected, doubt = _heading(before, min(ahead, len(before)) if len(before) < self.window else ahead)
            error = max(error, doubt)
            expected = min(control, expected)
        numbers = (_loss("loss before", control, expected),), (_loss("loss after", treated),)
        noise = 3 * float(np.hypot(error, _error(late)))
        promised, come = control - expected, control - treated
        # a trend tells what would have come only roughly: by as much again as it promises
        beyond = come - promised > noise or _by_orders(before, late, expected)
        if beyond and come - promised > max(self.least * abs(control), promised):
            return Verdict(True, "followed by a lower loss than the trend before led to", *numbers)
        # what began from an earlier state has cost the steps since then: they are not thrown away for a like loss
        better = _level(newest) - (self._margin(newest, late) if self.base is not None else 0.0)
        if treated > control + self._margin(newest, late):
            return Verdict(False, "followed by a higher loss", *numbers, worse=treated > better)
        if self.unless_worse:
            return Verdict(True, f"followed by no higher loss; {self.unless_worse}", *numbers)
        hopeless = come < float(np.hypot(error, _error(late))) and not beyond
        told = "followed by no difference beyond noise"
        return Verdict(False, told, *numbers, worse=treated > better) if last or hopeless else None

    def _margin(self, before: Array, after: Array) -> float:
        noise = 3 * float(np.hypot(_error(before), _error(after)))
        return max(noise, self.least * abs(_level(before)))


FRACTION = 0.25
"""Share of the lowest loss so far, below which no straight line is believed."""


def _heading(before: Array, ahead: float) -> tuple[float, float]:
    """Where the time before leads to so many steps ahead, and the standard error of that.

    By a straight line, unless the fall is seen to bend. One that flattens out goes on as a power of the time does: each
    fall from third to third is a share of the one before, and the next share is the root of that. One that speeds up
    goes on to do so, by the same share again, or as a parabola. A positive loss that a line would bring to a fraction
    of what it ever was falls by shares: there the line is one of its logarithms. Where the loss went down and up again,
    how far it is from a line is noise.
    """
    parts = np.array_split(before, 3)
    first, second, third = (float(np.median(part)) for part in parts)
    errors = [_error(part) for part in parts]
    earlier, later = first - second, second - third
    bent = float(np.hypot(np.hypot(errors[0], 2 * errors[1]), errors[2]))
    thirds = ahead / (len(before) / 3) + 0.5  # from the middle of the last third
    if earlier - later > 3 * bent and later > 0:
        newest = min(later + float(np.hypot(errors[1], errors[2])), earlier)
        falls = _rooted(newest / earlier, thirds)
        return third - newest * falls, float(np.hypot(errors[2], bent * falls))
    if later > 0 and later - earlier > 3 * bent:
        parabola = later * thirds + (later - earlier) * thirds * (thirds + 1) / 2
        share = min(later / earlier, 100.0) if earlier > bent else 1.0
        again = later * share * (share**thirds - 1) / (share - 1) if share > 1 else 0.0
        return third - max(parabola, again), float(np.hypot(errors[2], bent * thirds * (thirds + 1) / 2))
    count = len(before)
    expected, error = _line(np.arange(1.0, count + 1), before, count + ahead + 1)
    if (before > 0).all() and expected < float(before.min()) * FRACTION:
        expected, error = _line(np.arange(1.0, count + 1), np.log(before), count + ahead + 1)
        expected, error = float(np.exp(expected)), error * float(np.exp(expected))
    # noise may hide a bend from the test, but no fall to come is larger than the newest may have been
    most = max(later + 2 * float(np.hypot(errors[1], errors[2])), 0.0)
    swing = abs(earlier - later) / 6**0.5 if earlier * later < 0 else 0.0  # of three levels about their line
    return max(expected, third - most * thirds), float(np.hypot(error, swing))


def _rooted(share: float, thirds: float) -> float:
    """The sum of falls in units of the newest: each is a share of the one before, the root of the share before."""
    total, fall = 0.0, 1.0
    while thirds > 0:
        share = share**0.5
        fall *= share
        total += fall * min(thirds, 1.0)
        thirds -= 1
    return total


def _line(x: Array, values: Array, at: float) -> tuple[float, float]:
    """The height at ``at`` of a line through medians (Theil and Sen) of (x, values), and the standard error of that."""
    from scipy import stats

    slope = float(stats.theilslopes(values, x).slope)
    height = float(np.median(values - slope * x))
    residuals = values - height - slope * x
    noise = 1.4826 * float(np.median(np.abs(residuals)))
    near = residuals[np.abs(residuals) <= 3 * noise]
    noise = float(np.sqrt(np.sum(near**2) / max(len(near) - 2, 1)))
    away, spread = at - float(x.mean()), float(np.sum((x - x.mean()) ** 2))
    return height + slope * at, noise * (1 / len(values) + away * away / spread) ** 0.5


def _by_orders(before: Array, late: Array, expected: float) -> bool:
    """Whether positive losses lie below what was expected by more than the noise of their logarithms.

    A fall through orders of magnitude is no noise of the last of them.
    """
    if not ((before > 0).all() and (late > 0).all() and expected > 0):
        return False
    noise = 3 * float(np.hypot(_error(np.log(before)), _error(np.log(late))))
    return bool(np.log(expected) - np.log(_level(late)) > max(noise, np.log(ORDER)))


ORDER = 10.0
"""Times that a loss must be lower to be so by an order of magnitude."""


def _level(values: Array) -> float:
    return float(np.median(values))


def _error(values: Array) -> float:
    """Standard error of a median, from the median absolute deviation of values about their own trend.

    With correlation r of neighbours n values say as much as n (1 - r) / (1 + r) independent ones (Bartlett 1946).
    """
    from scipy import stats

    x = np.arange(float(len(values)))
    level = values - (float(stats.theilslopes(values, x).slope) * x if len(values) > 1 else 0.0)
    off = level - np.median(level)
    spread = 1.4826 * float(np.median(np.abs(off)))
    near = np.clip(off, -3 * spread, 3 * spread)
    square = float(np.sum(near * near))
    tied = float(np.clip(np.sum(near[1:] * near[:-1]) / square, 0.0, TIED)) if square > 0 else 0.0
    return float(1.2533 * spread * ((1 + tied) / (1 - tied) / max(len(values), 1)) ** 0.5)


def _loss(name: str, value: float, limit: float | None = None) -> Evidence:
    return Evidence(name=name, value=value, limit=limit)
