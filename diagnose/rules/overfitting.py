"""TM501: validation gets worse while training gets better."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import Array, noise
from trainmedic.history import History


class Turn(NamedTuple):
    """Where a validation loss turned: index of its best value, index from which the rise is beyond doubt, its level."""

    best: int
    sure: int
    level: float
    p_value: float


class Overfitting(Rule):
    """A validation loss that rises from its best, beyond its noise, while the training loss goes on falling.

    Why it is bad: what is learnt from there on is the training set itself; every further step costs and makes it worse.
    Usual causes: too few data for the size of the model; wrong labels that can be memorised; no regularisation; training
    for too long.
    Formula: the median of the last `smooth` validation losses lies above the best one by `rise` of its value and by
    `sigmas` of the noise (from second differences); the rise since the best is a trend (Kendall's tau, one-sided,
    p < `p_value`); and the median training loss since the best is below that just before it. An error from `rise_error`
    on, or where the accuracy falls too; where the accuracy still rises it is a warning: only the confidence suffers.
    Silent again once the validation loss is back at its best.
    Remedies: stop-early, weight-decay, dropout, augment-inputs.
    Known limits: needs at least `least` evaluations since the best one: with `p_value` 0.01 five can just show a trend.
    Checked at each evaluation, `p_value` implies fewer than 1 false trend in 100 turns; the other two conditions come on
    top.
    Source: Prechelt 1998, "Early stopping - but when?"; Kendall 1938.
    """

    code: ClassVar[str] = "TM501"
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = ("stop-early", "weight-decay", "dropout", "augment-inputs")
    advice: ClassVar[str] = (
        "Usually means that the model is large for the data, or that labels are wrong. "
        "Do this: keep the weights of the best validation loss and stop there. Otherwise check (a) the labels of training "
        "samples with the largest loss; (b) more data or augmentation; (c) weight decay: AdamW(weight_decay=0.1), dropout."
    )

    rise: float = Field(0.05, gt=0, description="rise of the validation loss above its best, share of the best")
    rise_error: float = Field(0.2, gt=0, description="the same from which it is an error, share of the best")
    sigmas: float = Field(3.0, gt=0, description="rise in standard deviations of the validation loss's own noise")
    p_value: float = Field(0.01, gt=0, lt=1, description="chance of such a trend in evaluations without one")
    least: int = Field(5, ge=3, description="evaluations from the best one on, itself included")
    recent: int = Field(200, ge=10, description="evaluations, the newest ones, that noise and trend are taken from")
    smooth: int = Field(3, ge=1, description="evaluations that are judged together")

    def unmet(self, history: History) -> str | None:
        """Needs a training loss and at least one validation loss."""
        return super().unmet(history) or (None if _validation_losses(history) else "no validation loss in this history")

    def check(self, history: History) -> Iterator[Finding]:
        for name in _validation_losses(history):
            steps, values = history.series(name)
            finite = np.isfinite(values)
            yield from self._one(history, name, steps[finite], values[finite])

    def _one(self, history: History, name: str, steps: NDArray[np.int64], values: Array) -> Iterator[Finding]:
        turn = self._turn(history, steps, values)
        if turn is None or not self._risen(values, turn.best, len(values) - 1):
            return
        now = float(np.median(values[-self.smooth :]))
        relative = (now - turn.level) / max(abs(turn.level), 1e-12)
        accuracy = _accuracy(history, name, int(steps[turn.best]), self.smooth)
        severe = (relative >= self.rise_error and (accuracy is None or accuracy[1] <= accuracy[0])) or (
            accuracy is not None and accuracy[1] < accuracy[0] - 0.01
        )
        evidence = [
            Evidence(name=f"{name} above its best", value=100 * relative, limit=100 * self.rise, unit="%"),
            Evidence(name="chance of such a trend", value=turn.p_value, limit=self.p_value),
        ]
        if accuracy is not None:
            evidence.append(Evidence(name="validation accuracy", value=accuracy[1], limit=accuracy[0]))
        yield self.finding(
            step=steps[turn.best],
            detected_at=steps[turn.sure],
            where=(name,),
            severity=Severity.ERROR if severe else Severity.WARNING,
            message=f"{name} rose by {100 * relative:.0f} % from its best of {turn.level:.4g} at step {steps[turn.best]}, "
            "while the training loss went on falling"
            + ("; the accuracy still rises" if accuracy is not None and accuracy[1] > accuracy[0] else ""),
            evidence=evidence,
        )

    def _turn(self, history: History, steps: NDArray[np.int64], values: Array) -> Turn | None:
        """The first evaluation at which all that was known until then shows the turn."""
        best = 0
        for i in range(len(values)):
            if values[i] <= values[best]:
                best = i
            if i - best + 1 < self.least or not self._risen(values[: i + 1], best, i):
                continue
            p_value = _trend(values[max(best, i + 1 - self.recent) : i + 1])
            if p_value < self.p_value and _training_fell(history, int(steps[best]), int(steps[i])):
                return Turn(best, i, float(values[best]), p_value)
        return None

    def _risen(self, values: Array, best: int, at: int) -> bool:
        level, now = float(values[best]), float(np.median(values[max(best + 1, at + 1 - self.smooth) : at + 1]))
        return now - level > max(
            self.rise * abs(level), self.sigmas * noise(values[max(0, at + 1 - self.recent) : at + 1])
        )

    sick: ClassVar = (
        History.of(
            train_loss=list(np.geomspace(1, 0.02, 40)),
            validation_loss=[*np.linspace(1.1, 0.7, 12), *np.linspace(0.71, 1.3, 28)],
        ),
    )
    healthy: ClassVar = (
        # a gap that is small and steady
        History.of(train_loss=list(np.geomspace(1, 0.1, 40)), validation_loss=list(np.geomspace(1.1, 0.15, 40))),
        # both rise and fall together: a cyclical rate
        History.of(
            train_loss=list(1 + 0.5 * np.sin(np.arange(40) / 3)),
            validation_loss=list(1.2 + 0.5 * np.sin(np.arange(40) / 3)),
        ),
        # converged, and noise from then on
        History.of(
            train_loss=[1.0] * 5 + [0.2] * 35,
            validation_loss=[1.0] * 5 + [0.3 + 0.02 * (-1) ** i for i in range(35)],
        ),
        # it came back
        History.of(
            train_loss=list(np.geomspace(1, 0.02, 40)),
            validation_loss=[*np.linspace(1.1, 0.7, 10), *np.linspace(0.71, 1.0, 10), *np.linspace(1.0, 0.5, 20)],
        ),
    )


def _validation_losses(history: History) -> list[str]:
    return [name for name in history.names() if name.startswith("validation/") and name.endswith("loss")]


def _trend(values: Array) -> float:
    """Chance of a rise as steady as this among values without order (Kendall's tau against time, one-sided)."""
    from scipy.stats import kendalltau

    return float(kendalltau(np.arange(len(values)), values, alternative="greater").pvalue)


def _training_fell(history: History, best: int, now: int) -> bool:
    """Whether the training loss in the newer half since the best evaluation is below that around the best."""
    steps, values = history.series("train/loss")
    span = max((now - best) // 2, 1)
    around = values[(steps > best - span) & (steps <= best)]
    newer = values[(steps > now - span) & (steps <= now)]
    around, newer = around[np.isfinite(around)], newer[np.isfinite(newer)]
    return bool(len(around) and len(newer) and np.median(newer) < np.median(around))


def _accuracy(history: History, loss: str, best: int, smooth: int) -> tuple[float, float] | None:
    """Validation accuracy around the best loss, and now."""
    name = loss.removesuffix("loss") + "accuracy"
    if name not in history:
        return None
    steps, values = history.series(name)
    before = values[steps <= best][-smooth:]
    if not len(before):
        return None
    return float(np.median(before)), float(np.median(values[-smooth:]))
