"""TM801: the log is not all of the run, or of more than one."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.history import History

CLOCKS = ("gradient/norm", "optimizer/learning_rate", "time/step", "output/std")
"""Series that the same loop writes at the same steps as the loss, or more often."""


def _counted_anew(epoch: int, epochs: int) -> History:
    """An example: the user's step starts over in each epoch, that of the optimizer does not."""
    history = History.of(gradient_norm=[1.0] * (epoch * epochs))
    history.add_series("train/loss", list(range(epoch)) * epochs, [1.0] * (epoch * epochs))
    return history


class IncompleteLog(Rule):
    """The series of one run do not fit together: one ends early, counts its steps anew, or leaves a hole.

    Why it is bad: curves that are drawn over each other or cut short are judged as if they were the run.
    Usual causes: a step counter that starts over in each epoch; a logger that failed or was removed on the way; a run
    that was resumed under an old step; two runs writing into one file.
    Formula: the training loss is compared with the other series of its loop (gradient norm, learning rate, step time,
    output). Ends early: the run goes on without it for `rest` of its steps, and for `intervals` times the longest
    interval between two losses before, where it had `least` values. Starts over (the same, and losses of `repeats`
    values per step on average): the step was counted anew. A hole: an interval of `intervals` times the longest other
    one and of `rest` of the run (info; a warning where another series has `intervals` values in it). Falls back: the
    reader saw the clock go back within one file (info; a warning where steps are covered `repeats` times on average).
    Remedies: log-every-step.
    Known limits: a loss that is logged on purpose in the first part of a run only looks the same. Holes are looked for
    in the loss alone. Recordings of very long runs are thinned, where intervals differ by design, hence factors of
    `intervals`.
    Source: PyTorch Lightning and Hugging Face both count on after a resume; TensorBoard's own reader purges what a
    restart covers again (SessionLog START).
    """

    code: ClassVar[str] = "TM801"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = ("log-every-step",)
    explains: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = (
        "Usually means that the step counter starts over, or that logging stopped before the training did. "
        "Do this: count steps over the whole run, and log each one once: step = epoch * len(loader) + i. "
        "Otherwise check (a) the condition around the logging call; (b) whether two processes write to one file: only "
        "rank 0 should; (c) after a resume, that the counter is restored with the checkpoint."
    )

    least: int = Field(20, ge=4, description="losses that show how often it is logged (fewer show no habit)")
    rest: float = Field(
        0.1, gt=0, lt=1, description="share of the run without a loss (less may be the last epoch's tail)"
    )
    intervals: float = Field(
        10.0, gt=1, description="longest usual interval between losses, factor (a habit and a hole)"
    )
    repeats: float = Field(2.0, gt=1, description="losses per step, on average (a resumed run covers a part twice)")

    def check(self, history: History) -> Iterator[Finding]:
        yield from self._ends(history)
        yield from self._holes(history)
        yield from self._falls_back(history)

    def _ends(self, history: History) -> Iterator[Finding]:
        steps, _ = history.series("train/loss")
        if len(steps) < self.least:
            return
        distinct = _distinct(steps)
        usual = int(np.max(np.diff(distinct), initial=1))
        others = {name: history.series(name).steps for name in CLOCKS if name in history}
        others = {name: own[own > distinct[-1]] for name, own in others.items()}
        after = {name: own for name, own in others.items() if len(own)}
        if not after:
            return
        goes_on = max(after, key=lambda name: len(after[name]))
        own = after[goes_on]
        first, span = history.first_step, own - distinct[-1]
        late = np.flatnonzero((span > self.intervals * usual) & (span > self.rest * (own - first + 1)))
        if len(late) < 3:
            return
        end, sure = int(distinct[-1]), int(own[late[2]])
        anew = len(steps) >= self.repeats * len(distinct)
        what = (
            f"{len(steps)} losses stand at {len(distinct)} steps: the step was counted anew"
            if anew
            else f"no loss is logged after step {end}"
        )
        yield self.finding(
            step=end,
            detected_at=sure,
            where=("train/loss",),
            message=f"{what}, while the run went on to step {history.last_step}",
            evidence=[
                Evidence(name="steps without a loss", value=float(own[-1] - end), limit=self.intervals * usual),
                Evidence(name="losses per step", value=len(steps) / len(distinct), limit=self.repeats),
            ],
        )

    def _holes(self, history: History) -> Iterator[Finding]:
        steps = _distinct(history.series("train/loss").steps)
        if len(steps) < self.least:
            return
        width = np.diff(steps)
        longest = np.maximum.accumulate(width)[:-1]
        after = np.flatnonzero(
            (width[1:] > self.intervals * longest) & (width[1:] > self.rest * (steps[2:] - steps[0] + 1))
        )
        after = after[after + 2 >= self.least]
        if not len(after):
            return
        hole = int(after[0]) + 1
        goes_on = _within(history, int(steps[hole]), int(steps[hole + 1])) >= self.intervals
        if history.bounded and not goes_on:
            return  # thinned, as recordings of long runs are
        yield self.finding(
            step=steps[hole],
            detected_at=steps[hole + 1],
            where=("train/loss",),
            severity=Severity.WARNING if goes_on else Severity.INFO,
            message=f"no loss is logged from step {steps[hole]} to {steps[hole + 1]}"
            + (", while the run went on" if goes_on else ""),
            evidence=[
                Evidence(
                    name="steps without a loss",
                    value=float(width[hole]),
                    limit=self.intervals * float(longest[hole - 1]),
                )
            ],
        )

    def _falls_back(self, history: History) -> Iterator[Finding]:
        restarts = history.facts.get("restarts")
        if not isinstance(restarts, list) or not restarts:
            return
        steps, _ = history.series("train/loss")
        often = len(steps) / max(1, len(_distinct(steps)))
        places = [restart.get("from") for restart in restarts if isinstance(restart, dict)]
        at = min((int(place) for place in places if isinstance(place, int)), default=history.last_step)
        yield self.finding(
            step=min(at, history.last_step),
            detected_at=history.last_step,
            where=("train/loss",),
            severity=Severity.WARNING if often >= self.repeats else Severity.INFO,
            message=f"the log's step falls back {len(restarts)} times: the run was resumed, or runs share a file",
            evidence=[Evidence(name="losses per step", value=often, limit=self.repeats)],
        )

    sick: ClassVar = (
        # ends in the middle
        History.of(train_loss=[1.0] * 40, gradient_norm=[1.0] * 100),
        # the step counts anew in each epoch
        _counted_anew(20, 5),
    )
    healthy: ClassVar = (
        # once per epoch
        History.of(steps=range(0, 1000, 50), train_loss=[1.0] * 20, validation_loss=[1.0] * 20),
        # every tenth step, and the run ended between two
        History.of(steps=range(0, 300, 10), train_loss=[1.0] * 30),
        # several losses at one step: gradients are accumulated
        History.of(steps=[step for step in range(50) for _ in range(4)], train_loss=[1.0] * 200),
        # just begun
        History.of(train_loss=[1.0] * 3, gradient_norm=[1.0] * 8),
        # a log that is written more rarely later on
        History.of(steps=[*range(100), *range(100, 1000, 10), *range(1000, 9000, 100)], train_loss=[1.0] * 270),
    )


def _distinct(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each step once; they are in order already."""
    return steps[np.diff(steps, prepend=steps[0] - 1) > 0] if len(steps) else steps


def _within(history: History, begin: int, end: int) -> int:
    """The most values that another series of the loop has between two steps."""
    known = [history.series(name).steps for name in CLOCKS if name in history]
    return max((int(((steps > begin) & (steps < end)).sum()) for steps in known), default=0)
