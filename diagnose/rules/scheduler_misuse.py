"""TM603: the learning rate reaches its end long before the run does, or never gets off the ground."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import Course, course_of, several, streak
from trainmedic.diagnose.robust import CYCLES, Array
from trainmedic.history import History


def _run(losses: list[float], rates: list[float], **facts: Any) -> History:
    return History.of(train_loss=losses, optimizer_learning_rate=rates, facts={"total_steps": 400, **facts})


class SchedulerMisuse(Rule):
    """The schedule and the run do not fit: the rate has died early, is exactly zero, or is still on its way up late.

    Why it is bad: all steps after the rate has died are wasted, and so are those before it has risen.
    Usual causes: scheduler.step() after each batch where the schedule counts epochs, or the other way round; T_max or
    total_steps of another run; a warm-up that starts at zero and is stepped once per epoch.
    Formula: (1) the rate is at most `dead` of its peak and has been since a share of at most `early` of the run, for
    longer than it took to get there and for `wait` of the run, while the loss, which was still coming down by `falling`
    of its first level over the second half of that time or has not come down by `little` at all, has come down by less
    than `works`; or since a share below `sooner` where the rate fell within the first epoch (`steps_per_epoch`:
    it is stepped per batch), the loss had come down by `falling` by then and has not come down by `little` since. Or,
    of a rate that does not come back by design, the sum of all rates, with the present one until the end,
    has been below `worth` of what the peak would make it for `held` of the run, the rate is below `faded` of its peak
    and the loss has come down by less than `little`. (2) The rate of all groups has
    been exactly zero since the start, for `idle` of the run and `idle_steps` steps. (3) A one-cycle schedule has not
    turned down after `late` of the run, or a rate that has never come down is `climbs` times what it was at half of
    that time (and twice that from the start). The run is `total_steps` long; where that is not known, (1) takes the run
    so far, and nothing is told of (2) and (3): logs round small rates to zero.
    Remedies: schedule-learning-rate, raise-learning-rate.
    Known limits: silent on rates lowered at plateaus (ReduceLROnPlateau), and on schedules that are a few times too
    short. A schedule that is lowered to next to nothing on purpose for most of the run looks the same.
    Source: PyTorch's documentation of torch.optim.lr_scheduler: a schedule counts calls of step(), whatever they stand
    for.
    """

    code: ClassVar[str] = "TM603"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.WIRING
    needs: ClassVar[tuple[str, ...]] = ("optimizer/learning_rate", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = ("schedule-learning-rate", "raise-learning-rate")
    explains: ClassVar[tuple[str, ...]] = (
        "learning-rate-too-low",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that scheduler.step() is called for each batch of a schedule that counts epochs, or the "
        "other way round. "
        "Do this: give the schedule the number of its own calls, epochs * len(loader) if it is stepped per batch, "
        "epochs otherwise. Otherwise check (a) print(scheduler.get_last_lr()) at the end of each epoch; (b) T_max, "
        "step_size, total_steps: of which run are they? (c) a warm-up that starts at zero: LambdaLR(optimizer, "
        "lambda step: min(1, (step + 1) / n))."
    )

    dead: float = Field(
        0.01, gt=0, lt=1, description="rate over its peak, 0 to 1 (two decades: no schedule trains there)"
    )
    early: float = Field(0.25, gt=0, lt=1, description="share of the run, 0 to 1 (three quarters are wasted)")
    sooner: float = Field(
        0.4, gt=0, lt=1, description="share of the run, 0 to 1 (an exponential one down to 1e-4 is there at half)"
    )
    wait: float = Field(0.1, ge=0, lt=1, description="share of the run, 0 to 1 (longer than restarts stay down)")
    falling: float = Field(
        0.05, gt=0, lt=1, description="share of the first loss, 0 to 1 (well above noise of its level)"
    )
    little: float = Field(
        0.5, gt=0, lt=1, description="share of the first loss, 0 to 1 (half of it: the task is not learnt)"
    )
    works: float = Field(0.9, gt=0, le=1, description="share of the first loss, 0 to 1 (no more rate is needed)")
    worth: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="sum of the rates over peak x steps (cosine, linear 0.5; steps at 30, 60 and 80 % 0.33; 1e-4 at "
        "the end of an exponential one 0.11)",
    )
    faded: float = Field(0.1, gt=0, lt=1, description="rate over its peak, 0 to 1 (a decade)")
    held: float = Field(0.05, gt=0, lt=1, description="share of the run, 0 to 1 (restarts stay down for less)")
    idle: float = Field(
        0.05, gt=0, lt=1, description="share of the run, 0 to 1 (a warm-up from zero leaves it at once)"
    )
    idle_steps: int = Field(20, ge=2, description="steps (a scaler that searches may hold the schedule back)")
    climbs: float = Field(
        1.3, gt=1, description="rate over that at half of the time (of a linear warm-up that goes on 2)"
    )
    late: float = Field(0.6, gt=0, lt=1, description="share of the run, 0 to 1 (a cycle turns at 0.3, at 0.5 at most)")

    def check(self, history: History) -> Iterator[Finding]:
        at, rates = history.series("optimizer/learning_rate")
        known = np.isfinite(rates) & (rates >= 0)
        steps, rates = at[known].astype(np.float64) - history.first_step, rates[known]
        course = course_of(history)
        if len(rates) < 10 or not len(course) or several(history):
            return
        given = history.facts.get("total_steps")
        total = float(given) if isinstance(given, int) and given > 0 else float("nan")
        found = self._zero(history, steps, rates, total) or self._late(history, steps, rates, total)
        found = found or self._climbing(history, steps, rates, total)
        fallen = (way(history, course, steps, rates, total) for way in (self._dead, self._fading))
        found = found or min((one for one in fallen if one is not None), key=lambda one: one[1], default=None)
        if found is None:
            return
        onset, detected, message, evidence = found
        yield self.finding(
            step=int(onset) + history.first_step,
            detected_at=int(detected) + history.first_step,
            where=("optimizer/learning_rate",),
            message=message,
            evidence=[evidence],
        )

    def _zero(
        self, history: History, steps: Array, rates: Array, total: float
    ) -> tuple[float, float, str, Evidence] | None:
        others = [name for name in history.names() if name.startswith("optimizer/learning_rate/")]
        if not total > 0 or rates[0] > 0 or any((history.series(name).values > 0).any() for name in others):
            return None
        up = np.flatnonzero(rates > 0)
        least = max(float(self.idle_steps), self.idle * total)
        end = steps[up[0]] if len(up) else steps[-1] + 1
        if end - steps[0] < least:
            return None
        detected = steps[np.searchsorted(steps, steps[0] + least - 1)]
        message = f"the learning rate was exactly zero for the first {end - steps[0]:.0f} steps"
        return steps[0], detected, message, Evidence(name="steps at a rate of zero", value=end - steps[0], limit=least)

    def _late(
        self, history: History, steps: Array, rates: Array, total: float
    ) -> tuple[float, float, str, Evidence] | None:
        if history.facts.get("scheduler") != "OneCycleLR" or not total > 0:
            return None
        passed = np.flatnonzero(steps >= self.late * total)
        if not len(passed) or not rates[-1] >= rates.max() or not rates[-1] > rates[0]:
            return None
        share = float(steps[-1] / total)
        message = f"after {100 * share:.0f} % of the run the one-cycle schedule is still on its way up"
        evidence = Evidence(name="share of the run without a turn", value=100 * share, limit=100 * self.late, unit="%")
        return steps[0], steps[passed[0]], message, evidence

    def _climbing(
        self, history: History, steps: Array, rates: Array, total: float
    ) -> tuple[float, float, str, Evidence] | None:
        """A warm-up that takes more than most of the run, whatever the schedule is called."""
        passed = np.flatnonzero(steps >= self.late * total)
        if not total > 0 or not len(passed) or (np.diff(rates) < 0).any() or not rates[-1] > rates[0]:
            return None
        higher = passed[rates[passed] > 1.001 * rates[passed[0]]]
        if not len(higher):
            return None  # it has arrived
        at = int(higher[0])
        before = rates[int(np.searchsorted(steps, steps[0] + (steps[at] - steps[0]) / 2))]
        if not rates[at] > self.climbs * before or not rates[at] > self.climbs**2 * rates[0]:
            return None
        message = (
            f"after {100 * self.late:.0f} % of the run the learning rate is still on its way up, at {rates[at]:.3g} "
            f"from {rates[0]:.3g}"
        )
        evidence = Evidence(name="rate over that at half of the time", value=rates[at] / before, limit=self.climbs)
        return steps[0], steps[at], message, evidence

    def _dead(
        self, history: History, course: Course, steps: Array, rates: Array, total: float
    ) -> tuple[float, float, str, Evidence] | None:
        if history.facts.get("scheduler") == "ReduceLROnPlateau":
            return None
        alive = np.flatnonzero(rates > 1.001 * self.dead * np.maximum.accumulate(rates))
        died = int(alive[-1]) + 1 if len(alive) else 0
        if not 0 < died < len(rates):
            return None
        end = float(steps[died] - steps[0])
        moments = course.steps - history.first_step - float(steps[0])
        length = np.full(len(moments), total) if total == total else moments
        halfway, then = (_progress(course, history.first_step + steps[0] + at) for at in (end / 2, end))
        was_falling = not then - halfway < self.falling
        unlearnt = course.progress < self.little
        sick = (end <= self.early * length) & (course.progress < self.works) & (was_falling | unlearnt)
        epoch = history.facts.get("steps_per_epoch")
        fell = float(steps[int(np.argmax(rates < 0.999 * np.maximum.accumulate(rates)))] - steps[0])
        if total == total and isinstance(epoch, int) and fell < epoch and then >= self.falling:
            sick |= np.asarray(end < self.sooner * length) & unlearnt
        sick &= moments - end >= np.maximum(end, self.wait * length)
        start = streak(np.asarray(sick))
        if start is None:
            return None
        share = 100 * end / float(length[-1])
        message = (
            f"the learning rate fell to {rates[died] / rates.max():.2g} of its peak after {share:.2g} % of the run, "
            f"and the loss has stood at {course.level[-1]:.3g} since, from {course.start:.3g}"
        )
        evidence = Evidence(name="share of the run with a rate", value=share, limit=100 * self.early, unit="%")
        return steps[died], course.steps[start] - history.first_step, message, evidence

    def _fading(
        self, history: History, course: Course, steps: Array, rates: Array, total: float
    ) -> tuple[float, float, str, Evidence] | None:
        """A rate that has fallen so far, so soon, that all steps of the run are worth a few at its peak."""
        scheduler = history.facts.get("scheduler")
        if not total > 0 or scheduler == "ReduceLROnPlateau" or scheduler in CYCLES:
            return None
        peak = np.maximum.accumulate(rates)
        gone, left = np.cumsum(rates * np.diff(steps, prepend=steps[0] - 1)), total - (steps - steps[0] + 1)
        with np.errstate(invalid="ignore"):
            bound = (gone + rates * left) / (peak * total)  # if it stayed as it is from now on
        moments = course.steps - history.first_step
        now = np.maximum(np.searchsorted(steps, moments, side="right") - 1, 0)
        sick = (bound[now] < self.worth) & (rates[now] < self.faded * peak[now]) & (course.progress < self.little)
        since = streak(np.asarray(sick))
        if since is None:
            return None
        held = np.flatnonzero(moments - moments[since] >= self.held * total)
        if not len(held):
            return None
        fell = int(np.flatnonzero(rates >= 0.5 * peak)[-1])
        message = (
            f"the learning rate has fallen to {rates[-1] / peak[-1]:.2g} of its peak, so that all steps of the run are "
            f"worth {bound[-1] * total:.3g} of its {total:.0f} at that, and the loss is at {course.level[-1]:.3g}, "
            f"from {course.start:.3g}"
        )
        evidence = Evidence(name="sum of the rates over peak x steps", value=bound[-1], limit=self.worth)
        return steps[fell], moments[held[0]], message, evidence

    sick: ClassVar = (
        # halved every fourth batch
        _run([2.3 - 0.002 * min(i, 20) for i in range(400)], [0.02 * 0.5 ** (i // 4) for i in range(400)]),
        # halved a little slower, over a third of the run
        _run(
            [4.6 - 0.01 * min(i, 140) for i in range(400)],
            [0.002 * 0.5 ** (i // 22) for i in range(400)],
            steps_per_epoch=40,
        ),
        # a cosine that ends after a twentieth
        _run([1.0 - 0.02 * min(i, 20) for i in range(400)], [0.003 * max(0.0, 1 - i / 20) for i in range(400)]),
        # a warm-up from zero, stepped once per epoch
        _run([2.3] * 100 + [2.0] * 300, [1e-3 * (i // 100) for i in range(400)]),
        # a cycle that counts batches, stepped once per epoch
        _run(
            [2.3 - 0.001 * i for i in range(400)], [4e-4 + 1e-5 * (i // 40) for i in range(400)], scheduler="OneCycleLR"
        ),
        # a warm-up of ten times the run
        _run([2.3 - 0.001 * i for i in range(400)], [1e-5 * (i + 1) for i in range(400)]),
    )
    healthy: ClassVar = (
        # a warm-up of half the run
        _run([2.3 - 0.004 * i for i in range(400)], [1e-5 * min(i + 1, 200) for i in range(400)]),
        _run(
            [2.3 * 0.99**i for i in range(400)], [0.01 * 0.5 * (1 + float(np.cos(np.pi * i / 400))) for i in range(400)]
        ),
        # a task that is learnt early, and a rate that is lowered then
        _run([2.3 * 0.9 ** min(i, 60) for i in range(400)], [0.1 * 0.9**i for i in range(400)]),
        # warm restarts
        _run([2.3 * 0.995**i for i in range(400)], [0.1 * (1 - (i % 40) / 40) for i in range(400)]),
        # steps at 30, 60 and 80 % of the run
        _run(
            [2.3 - 0.002 * i for i in range(400)],
            [0.1 * 0.1 ** sum(i >= s for s in (120, 240, 320)) for i in range(400)],
        ),
        # a warm-up from zero, per step
        _run([2.3 * 0.99**i for i in range(400)], [1e-3 * min(i / 40, 1.0) for i in range(400)]),
        # lowered when it stands still
        _run([2.0] * 400, [0.1 * 0.5 ** (i // 10) for i in range(400)], scheduler="ReduceLROnPlateau"),
    )


def _progress(course: Course, step: float) -> float:
    """The progress at the last moment up to a step; 0 before the first one."""
    at = int(np.searchsorted(course.steps, step, side="right")) - 1
    return float(course.progress[at]) if at >= 0 else 0.0
