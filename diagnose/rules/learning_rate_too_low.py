"""TM602: steps so small that all of them together cannot get the weights anywhere."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import Course, course_of, moved, several, streak
from trainmedic.diagnose.learnt import chance
from trainmedic.diagnose.robust import SQUARES, Array, medians, uniform_level
from trainmedic.diagnose.rules.bad_initialization import of_nothing
from trainmedic.history import History, Layer

RECENT = 10  # measured steps whose pace is taken for the rest of the run


def _one(
    losses: list[float],
    updates: list[float],
    rates: list[float] | None = None,
    spread: float | None = None,
    **facts: Any,
) -> History:
    """An example: one weight matrix with its |update| / |weight|, towards targets of this standard deviation."""
    values: dict[str, Any] = {"a.weight__update_ratio": updates}
    if spread is not None:
        values["target_std"] = [spread] * len(losses)
    if rates is not None:
        values["optimizer_learning_rate"] = rates
    return History.of(train_loss=losses, layers=[Layer("a.weight", "parameter", 0, (8, 8))], facts=facts, **values)


class LearningRateTooLow(Rule):
    """At their pace, all steps of the run together move the weights by a tenth of their size or so.

    Why it is bad: the run ends about where it began, whatever it costs.
    Usual causes: a rate of fine-tuning in a training from scratch; a decimal too many; gradients clipped to next to
    nothing; a huge epsilon in Adam; a loss scaled down.
    Formula: path = sum of |update| / |weight| that more than half of the weight matrices reach, over all steps so far,
    and at the pace of the newest ones to the end of the run (`total_steps`, or as long again where it is not known).
    Told where path < `reach` after at least `least` losses and `share` of the run, while neither the rate nor the pace
    (`rises`) is on its way up and the loss has come down by less than `learnt` of its first level, or of that of a
    constant where this is lower.
    Remedies: rescale-loss, find-learning-rate, raise-learning-rate, schedule-learning-rate.
    Known limits: silent on what may be fine-tuning (frozen parameters, or a loss that starts at less than `pretrained`
    of chance), on several models or optimizers, and on logs without updates.
    Source: the path is an upper bound of how far weights can get from where they were drawn. Nets that were trained
    have gone 0.3 to several times their own size, and hardly any of it in a straight line.
    """

    code: ClassVar[str] = "TM602"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.LEARNING_RATE
    needs: ClassVar[tuple[str, ...]] = ("update_ratio", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = (
        "rescale-loss",
        "find-learning-rate",
        "raise-learning-rate",
        "schedule-learning-rate",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that the learning rate is a hundred times or more too small. "
        "Do this: raise it tenfold until the loss moves, or run a range test over 1e-6 to 1. Otherwise check (a) "
        "the clipping: is the limit of clip_grad_norm_ far below what it returns? (b) the optimizer's options: "
        "optimizer.param_groups[0], above all lr and eps; (c) the schedule: what does scheduler.get_last_lr() say?"
    )

    reach: float = Field(
        0.15,
        gt=0,
        description="path of the whole run, in sizes of the weights (half of the least that trained nets go)",
    )
    learnt: float = Field(
        0.2, gt=0, lt=1, description="share of the first loss, 0 to 1 (a fifth: what moves it is large enough)"
    )
    least: int = Field(20, ge=10, description="losses (momentum takes about ten steps to build up, a median ten more)")
    rises: float = Field(
        1.5, gt=1, description="pace over that at half of the time, factor (momentum builds up to 1.35 in 20 steps)"
    )
    share: float = Field(0.08, ge=0, le=1, description="of the whole run, 0 to 1 (short warm-ups are over by then)")
    pretrained: float = Field(
        0.6, gt=0, le=1, description="first loss over chance, a ratio (it knows the task already)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        if several(history) or history.facts.get("optimizer") == "LBFGS" or _tuned_finely(history):
            return
        course = course_of(history)
        if not len(course) or course.start < self.pretrained * uniform_level(history) < np.inf:
            return
        path, pace, total, rising = _paths(history, course.steps, self.rises)
        start = _start(history, course)
        done = course.steps - course.all_steps[0] + 1
        with np.errstate(all="ignore"):
            sick = (path < self.reach) & (pace > 0) & ~rising & ~_rising(history, course.steps)
            sick &= (
                (course.level > (1 - self.learnt) * start)
                & (done >= self.share * total)
                & (course.places + 1 >= self.least)
            )
        since = streak(sick)
        if since is not None:
            yield self._told(course, path, pace, since, start)

    def _told(self, course: Course, path: Array, pace: Array, since: int, start: float) -> Finding:
        return self.finding(
            step=course.all_steps[0],
            detected_at=course.steps[since],
            where=("update_ratio",),
            message=f"a step moves the weights by {pace[-1]:.2g} of their size, the whole run by at most "
            f"{path[-1]:.2g}, and the loss is at {course.level[-1]:.3g}, from {course.start:.3g}",
            evidence=[
                Evidence(
                    name="path of the weights over the whole run, in their sizes", value=path[-1], limit=self.reach
                ),
                Evidence(name="training loss", value=course.level[-1], limit=(1 - self.learnt) * start),
            ],
            confidence=0.9 if path[-1] < self.reach / 3 else 0.75,
        )

    sick: ClassVar = (
        _one([2.3 - 1e-4 * i for i in range(300)], [1e-5] * 300, total_steps=300),
        # how long it will run is not known
        _one([2.3] * 200, [3e-5] * 200),
        # targets are 0.35 on average, give or take 0.3: a bias that learns the mean has learnt nothing
        _one(
            list(np.linspace(0.21, 0.1, 300)),
            [1e-5] * 300,
            spread=0.3,
            total_steps=300,
            loss="MSELoss",
            reduction="mean",
        ),
    )
    healthy: ClassVar = (
        # a long warm-up from nothing
        _one([2.3] * 100, [1e-8 * (i + 1) for i in range(100)], [1e-8 * (i + 1) for i in range(100)], total_steps=1000),
        # tiny on purpose, and it learns
        _one([2.3 - 0.003 * i for i in range(300)], [1e-5] * 300, total_steps=300),
        # fine-tuning from a good start
        _one([0.3] * 300, [1e-5] * 300, classes=10, loss="CrossEntropyLoss", reduction="mean"),
        # nothing arrives at all: another illness
        _one([2.3] * 300, [0.0] * 300),
        # small steps, but a million of them
        _one([2.3] * 300, [1e-5] * 300, total_steps=1_000_000),
    )


def _start(history: History, course: Course) -> float:
    """The first level of the loss, or that of a constant, where it is lower: to come down to it is to learn nothing."""
    guess = chance(history)
    far = max(4 * guess, 2 * of_nothing(history) if guess > 0 and history.facts.get("loss") in SQUARES else 0.0)
    return guess if guess < course.start < far else course.start  # far above it may be a sum


def _tuned_finely(history: History) -> bool:
    """Whether a part of the parameters is frozen, as in fine-tuning."""
    parameters, trainable = history.facts.get("parameters"), history.facts.get("trainable")
    counted = isinstance(parameters, int) and isinstance(trainable, int) and trainable < parameters
    return counted or any(not layer.trainable for layer in history.architecture.values() if layer.kind == "parameter")


def _paths(history: History, moments: NDArray[np.int64], rises: float) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """At each moment: the path of the whole run, the pace (of one step) now, and how long the run will be, in steps.

    NaN where too few updates were measured by then. And whether that pace is ``rises`` times what it was half of the
    way back, so that nobody knows how far it will get.
    """
    steps, updates = moved(history)
    known = np.isfinite(updates)
    steps, updates = steps[known], updates[known]
    first = history.first_step
    done = (moments - first + 1).astype(np.float64)
    given = history.facts.get("total_steps")
    total = np.maximum(done, given) if isinstance(given, int) and given > 0 else 2 * done
    at = np.searchsorted(steps, moments, side="right") - 1  # the newest update by then
    with np.errstate(all="ignore"):
        gone = np.cumsum(updates * np.diff(steps, prepend=first - 1))
        if len(steps) < RECENT:
            nothing = np.full(len(moments), np.nan)
            return nothing, nothing, total, np.zeros(len(moments), dtype=bool)
        newest = np.maximum(at, RECENT - 1)
        pace = medians(updates[newest[:, None] - np.arange(RECENT)])
        before = medians(updates[np.maximum(newest // 2, RECENT - 1)[:, None] - np.arange(RECENT)])
        path = gone[newest] + pace * (total - done + moments - steps[newest])
    enough = at >= RECENT - 1
    return np.where(enough, path, np.nan), np.where(enough, pace, np.nan), total, pace > rises * before


def _rising(history: History, moments: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the learning rate was clearly lower half of the way back."""
    if "optimizer/learning_rate" not in history:
        return np.zeros(len(moments), dtype=bool)
    steps, rates = history.series("optimizer/learning_rate")
    now = np.maximum(np.searchsorted(steps, moments, side="right") - 1, 0)
    with np.errstate(all="ignore"):
        return np.asarray(rates[now] > 1.1 * rates[now // 2])
