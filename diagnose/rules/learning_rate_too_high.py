"""TM601: steps so large that they replace the weights in place of improving them."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import Course, course_of, gains, matrices, moved, several, streak, tearing
from trainmedic.diagnose.learnt import chance
from trainmedic.diagnose.robust import Array, median
from trainmedic.diagnose.rules.noisy_gradient import NoisyGradient
from trainmedic.history import History, Layer


def _two(losses: list[float], first: list[float], second: list[float] | None = None) -> History:
    """An example: two weight matrices with their |update| / |weight|."""
    values: dict[str, Any] = {
        "a.weight__update_ratio": first,
        "b.weight__update_ratio": first if second is None else second,
    }
    layers = [Layer(f"{name}.weight", "parameter", i, (8, 8)) for i, name in enumerate("ab")]
    return History.of(train_loss=losses, layers=layers, **values)


class LearningRateTooHigh(Rule):
    """Single steps replace a large part of the weights, and the loss has not recovered from them.

    Why it is bad: each step overshoots what its gradient can tell of; the loss bounces, climbs or freezes at chance,
    and units die on the way.
    Usual causes: the rate of another optimizer (SGD's for Adam); a larger batch's rate; no warm-up; a schedule that
    climbs without end.
    Formula: u = |update| / |weight| that more than half of the weight matrices reach in a step. Either (1) the matrices
    are of at least the `size` of usual laws after u >= `large` in `replacing` steps, and `wait` losses later the loss
    has come down by less than `works` of its first level; or after u >= `half` once, and it has by less than `done`; or
    they are smaller, nothing pulls them to nothing, and after twice `wait` the loss is not by `learnt` better than that
    of a constant; or
    (2) u >= `fast` in `fast_steps` steps, most matrices have not shrunk to less than `shrunk`, and `wait` losses later
    the loss has come down by less than `learnt`; or (3) it is not finite after `replacing` large steps, or one with u
    >= `torn` that it climbed after, or that can overflow by itself ((1 + u) to the number of matrices). (4) Batches are
    large enough, and more than `held_up` of a loss that has come to rest, over `settled` losses, is the noise of the
    steps themselves (see noisy-gradient). Held back where these steps came out of a calm run (a median of u before them
    below `calm`, or the first of them `leap` times the largest before, over `early` measured steps or more): that is a
    bad batch.
    Remedies: rescale-loss, find-learning-rate, lower-learning-rate, warm-up, schedule-learning-rate, rewind.
    Known limits: rates that are a few times too large still train, only worse, and are not told; neither are runs with
    several models or optimizers, LBFGS, and logs without updates (a curve alone does not tell the cause).
    Source: |update| / |weight| near 1e-3 is usual, and runs that train well stay below 0.35 even in their first steps
    (the healthy ones of the clinic, LBFGS aside: no three steps above 0.3); at 1 nothing of the initialisation is left.
    A catapult (Lewkowycz et al. 2020, arXiv:2003.02218) settles in a few dozen steps, hence the waiting.
    """

    code: ClassVar[str] = "TM601"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.LEARNING_RATE
    needs: ClassVar[tuple[str, ...]] = ("update_ratio", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = (
        "rescale-loss",
        "find-learning-rate",
        "lower-learning-rate",
        "warm-up",
        "schedule-learning-rate",
        "rewind",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "exploding-gradient",
        "dead-relu",
        "non-finite",
        "vanishing-gradient",
        "saturated-activation",
        "noisy-gradient",
        "divergence",
        "loss-oscillation",
        "loss-spike",
        "collapsed-output",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that the learning rate is ten times or more too large for this optimizer. "
        "Do this: start again at a tenth of it, with a warm-up over the first steps. Otherwise check (a) the "
        "optimizer's options: optimizer.param_groups[0]['lr'], as Adam wants 1e-4 to 1e-2 where SGD wants 0.01 to 0.1; "
        "(b) the scale of inputs and targets: x.std(), y.std(); "
        "(c) the schedule: does scheduler.get_last_lr() climb for ever?"
    )

    torn: float = Field(1.0, gt=0, description="|update| / |weight|, a ratio (nothing of the old weights is left)")
    large: float = Field(
        0.3, gt=0, description="|update| / |weight|, a ratio (300 times the usual; nets with norms reach it for a step)"
    )
    half: float = Field(
        0.5, gt=0, description="|update| / |weight|, a ratio (half of what was drawn is gone in one step)"
    )
    done: float = Field(
        0.9, gt=0, lt=1, description="share of the first loss after which nothing is left to gain, 0 to 1 (most of it)"
    )
    replacing: int = Field(3, ge=1, description="steps (one or two are a catapult)")
    size: float = Field(
        0.6,
        ge=0,
        description="standard deviation x sqrt(fan), a ratio (torch's own is 0.58; those near zero may grow fast)",
    )
    works: float = Field(
        0.5, gt=0, lt=1, description="share of the first loss that makes it a run that works, 0 to 1 (half)"
    )
    fast: float = Field(0.1, gt=0, description="|update| / |weight|, a ratio (a hundred times the usual)")
    fast_steps: int = Field(10, ge=1, description="steps (first steps of Adam reach it, for a few)")
    learnt: float = Field(
        0.05, gt=0, lt=1, description="share of the first loss, 0 to 1 (above it something has been learnt)"
    )
    wait: int = Field(30, ge=1, description="losses after these steps (a catapult settles in a few dozen)")
    shrunk: float = Field(
        0.5, ge=0, lt=1, description="weight norm over its first, 0 to 1 (decay makes steps look large)"
    )
    held_up: float = Field(
        0.2, gt=0, description="share of the loss, 0 to 1 (a fifth; healthy runs that have come to rest are below 0.03)"
    )
    settled: int = Field(200, ge=48, description="losses that a rest is judged by (blocks of a dozen)")
    calm: float = Field(0.01, gt=0, description="|update| / |weight|, a ratio (ten times the usual)")
    leap: float = Field(
        10.0, gt=1, description="|update| / |weight| over the largest before, factor (no rate climbs like that)"
    )
    early: int = Field(30, ge=1, description="measured steps (before that no step is out of the ordinary)")

    def check(self, history: History) -> Iterator[Finding]:
        if several(history) or history.facts.get("optimizer") == "LBFGS":
            return
        course = course_of(history)
        steps, updates = moved(history)
        steps, updates = steps[~np.isnan(updates)], updates[~np.isnan(updates)]
        finite = course.all_steps[np.isfinite(course.losses)]
        if not len(course) or not len(finite):
            return
        if course.all_steps[-1] > finite[-1]:  # what follows the break did not make it
            steps, updates = steps[steps <= finite[-1]], updates[steps <= finite[-1]]
        if not len(steps):
            return
        progress = _filled(course.progress)  # what was learnt by the time that it broke
        learnt, works = progress >= self.learnt, progress >= self.works
        sick = np.zeros(len(course), dtype=bool)
        begun = []
        large, fast = steps[updates >= self.large], steps[updates >= self.fast]
        torn = steps[updates >= self.half]
        for ends, well in ((large[self.replacing - 1 :], works), (torn, progress >= self.done)):
            if len(ends) and not self._out_of_calm(steps, updates, large[0]):
                wait = self.wait
                if not self._of_size(history, int(ends[0])):
                    if self._shrunk(history, int(course.steps[-1])):
                        continue
                    wait = 2 * self.wait  # they may grow fast without harm
                    well = ~(course.level > (1 - self.learnt) * chance(history))  # not where chance is not known
                sick |= ~well & np.isfinite(course.level) & (course.since(ends[0]) > wait)
                begun.append(int(large[0]))
        enough = fast[min(len(fast), self.fast_steps) - 1] if len(fast) else 0
        if len(fast) and not self._out_of_calm(steps, updates, fast[0]) and not self._shrunk(history, int(enough)):
            ends = [*tearing(history, self.torn)[:1], *large[self.replacing - 1 :][:1]]
            broken = ~np.isfinite(course.level) & (course.steps > min(ends, default=np.inf))
            waited = (len(fast) >= self.fast_steps) & (course.since(enough) > self.wait)
            sick |= broken | (~learnt & waited)
            begun.append(int(fast[0]))
        start = streak(sick)
        if start is not None:
            yield self._told(course, steps, updates, min(begun), start, bool(course.progress[-1] >= self.learnt))
        else:
            yield from self._held_up(history)

    def _held_up(self, history: History) -> Iterator[Finding]:
        """A loss that stands still only because of how far each step goes, with batches that are large enough."""
        batch, parts = history.facts.get("batch_size"), history.facts.get("accumulation", 1)
        noisy = NoisyGradient(least=self.settled)
        if not isinstance(batch, int) or not isinstance(parts, int) or batch * parts <= noisy.batch:
            return
        rest = noisy.rest(history)
        if rest is not None and rest.share > self.held_up:
            yield self.finding(
                step=rest.step,
                detected_at=rest.detected_at,
                where=("gradient/norm",),
                severity=Severity.WARNING,
                message=f"the loss has stopped at {rest.level:.3g}, and steps of this size hold up about "
                f"{100 * min(rest.share, 1.0):.0f} % of it: the rate was never lowered",
                evidence=noisy.told(rest),
                confidence=0.7,
            )

    def _out_of_calm(self, steps: NDArray[np.int64], updates: Array, step: int) -> bool:
        before = updates[steps < step]
        if len(before) < self.early:
            return False
        leaps = float(updates[steps == step][0]) > self.leap * float(before.max())
        return leaps or float(np.median(before)) < self.calm

    def _of_size(self, history: History, step: int) -> bool:
        """Whether the steps have left weights of a usual size; those that were next to nothing may grow fast."""
        if "weight_std" not in history:
            return True
        found = gains(history, step)[1].values()
        return bool(found) and float(np.median([large for _, large in found])) >= self.size

    def _shrunk(self, history: History, step: int) -> bool:
        """Whether steps are large only beside weights that something pulls to nothing."""
        if "weight_norm" not in history:
            return False
        table = history.layers("weight_norm")
        rows = table.values[table.steps <= step][:, matrices(history, table)]
        shares = rows[-1:] / np.where(rows[:1] > 0, rows[:1], np.nan) if rows.size else rows
        return bool(median(shares.reshape(-1).astype(np.float64)) < self.shrunk)

    def _told(
        self, course: Course, steps: NDArray[np.int64], updates: Array, onset: int, start: int, learnt: bool
    ) -> Finding:
        detected = int(course.steps[start])
        among = updates[(steps >= onset) & (steps <= detected)]
        worst, count = float(among.max()), int((among >= self.fast).sum())
        level = float(course.level[-1])
        now = f"the loss is at {level:.3g}, from {course.start:.3g}" if level - level == 0 else "the loss is not finite"
        return self.finding(
            step=onset,
            detected_at=detected,
            where=("update_ratio",),
            severity=Severity.WARNING if learnt else Severity.ERROR,
            message=f"from step {onset} on, {count} steps moved most weight matrices by {self.fast:g} to {worst:.2g} "
            f"times their own size, and {now}",
            evidence=[
                Evidence(name="largest update over weight that most matrices reached", value=worst, limit=self.fast),
                Evidence(name="training loss", value=level, limit=(1 - self.learnt) * course.start),
            ],
            confidence=0.9 if worst >= self.torn else 0.75,
        )

    sick: ClassVar = (
        # Adam at 0.3: the first steps leave nothing of the weights, the loss comes back halfway
        _two([2.3, 40.0, 20.0, *[2.2] * 20, *[1.7] * 60], [4.0, 1.5, 0.6, 0.4] + [0.01] * 79),
        # all units dead after some large steps
        _two([2.3, 5.0, 9.0, 4.0] + [2.31] * 90, [0.1, 0.5, 0.4] * 4 + [0.0] * 82),
    )
    healthy: ClassVar = (
        # a rough start, then it learns
        _two([2.3, 4.0, 3.0] + [2.0] * 20 + [0.5] * 80, [0.4] * 10 + [0.01] * 93),
        # half of the matrices start at zero (adapters): their first step is as large as they are
        _two([1.0] * 100, [0.003] * 100, [float("inf"), 1.0, 0.6] + [0.01] * 97),
        # the edge of stability: large steps to and fro, and the loss comes down over many of them
        _two([0.7 * 0.99**i * (1 + 0.1 * (-1) ** i) for i in range(200)], [0.2] * 200),
        # small steps and a loss that stands: another illness
        _two([2.3] * 100, [0.003] * 100),
    )


def _filled(values: Array) -> Array:
    """Each value that is no number replaced by the last one before it that is; those at the start stay."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[last]
