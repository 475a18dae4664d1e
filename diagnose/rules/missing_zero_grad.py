"""TM204: gradients pile up from step to step."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import Array, in_a_row, median, medians
from trainmedic.history import History


def _carried(values: list[float], optimizers: int = 1) -> History:
    """An example: what was left of a gradient before each step."""
    return History.of(gradient_carried=values, facts={"optimizers": optimizers})


def _sums(steps: int, period: int = 1_000_000) -> list[float]:
    """What is left where random gradients are added up and zeroed every ``period`` steps."""
    return [(i % period) ** 0.5 / ((i % period) ** 0.5 + 1) for i in range(steps)]


class MissingZeroGrad(Rule):
    """Each step finds the gradients of many earlier ones still there, and adds to them.

    Why it is bad: the optimizer follows the sum of all gradients since the start, most of them of weights that are long
    gone: like momentum without friction, it overshoots ever further.
    Usual causes: optimizer.zero_grad() forgotten, or called once per epoch; it is called on another optimizer, or
    before a second backward pass of the step only.
    Formula: c = |g before| / (|g before| + |g added|) at the first backward pass of a step; the median of the last
    `window` measurements is at least `carried`, each of them above one half, and each gradient like that of the step
    before (median over the parameters of the cosine, where it was measured, at least `cosine`). A sum of n random
    gradients gives c = sqrt(n) / (sqrt(n) + 1): `carried` 0.75 is nine of them; and what is added, a third of the sum
    at most, turns it by no more than a cosine of 0.94. A left-over that is thrown away before the step (the backward
    pass of an attack on the inputs) leaves gradients that differ from step to step.
    Remedies: zero-gradients.
    Known limits: live runs only, with one optimizer (of several, one's backward pass leaves gradients to the other on
    purpose). Accumulating over the batches of one step is not piling up: what counts is what an earlier step has left.
    Source: the loop of torch's own tutorials; gradients are added to .grad by design.
    """

    code: ClassVar[str] = "TM204"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.WIRING
    needs: ClassVar[tuple[str, ...]] = ("gradient/carried",)
    remedies: ClassVar[tuple[str, ...]] = ("zero-gradients",)
    explains: ClassVar[tuple[str, ...]] = (
        "collapsed-output",
        "dead-relu",
        "divergence",
        "exploding-gradient",
        "learning-rate-too-high",
        "loss-oscillation",
        "loss-spike",
        "noisy-gradient",
        "non-finite",
        "not-learning",
        "plateau",
        "saturated-activation",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that optimizer.zero_grad() is missing from the loop. "
        "Do this: call optimizer.zero_grad() once per step, before loss.backward(). Otherwise check (a) that the "
        "optimizer which is zeroed is the one that steps: id(optimizer); (b) that zero_grad stands in the loop over "
        "batches, not in that over epochs; (c) right before loss.backward() that nothing is left: "
        "max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)."
    )

    carried: float = Field(
        0.75, gt=0.5, lt=1, description="share of the gradient that was there before, 0 to 1 (nine random ones added)"
    )
    cosine: float = Field(
        0.8, gt=0, lt=1, description="cosine of consecutive gradients, median over parameters (a third added: 0.94)"
    )
    window: int = Field(8, ge=3, description="measurements in a row (one odd batch must not decide)")

    def unmet(self, history: History) -> str | None:
        """Needs a single optimizer."""
        several = int(history.facts.get("optimizers", 1)) > 1
        return super().unmet(history) or ("several optimizers share the backward passes" if several else None)

    def check(self, history: History) -> Iterator[Finding]:
        steps, values = history.series("gradient/carried")
        valid = (values >= 0) & (values < 1)  # 1: nothing was added
        steps, values = steps[valid], values[valid]
        broke = "train/loss" in history and not np.isfinite(history.series("train/loss").values[-1])
        if median(values[-self.window :]) <= 0.5 and not broke:  # not any longer
            return
        full = _medians(values, self.window) >= self.carried
        piled = full & in_a_row((values > 0.5) & self._alike(history, steps), self.window)
        found = np.flatnonzero(piled)
        if not len(found):
            return
        end = int(found[0])
        recent = values[max(0, end + 1 - self.window) : end + 1] if broke else values[-self.window :]
        light = np.flatnonzero(values[:end] <= 0.5)
        onset = int(light[-1]) + 1 if len(light) else 0
        share = median(recent)
        yield self.finding(
            step=steps[onset],
            detected_at=steps[end],
            where=["gradient/carried"],
            message=f"{100 * share:.0f} % of the gradient of a step was there before its backward pass",
            evidence=[
                Evidence(name="gradient left from earlier steps", value=100 * share, limit=100 * self.carried, unit="%")
            ],
        )

    def _alike(self, history: History, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """At which steps the gradient is like that of the step before, as sums are that share most of their terms."""
        alike = np.ones(len(steps), dtype=bool)
        if "gradient_cosine" in history:
            table = history.layers("gradient_cosine")
            cosines = medians(table.values.astype(np.float64))
            alike[np.isin(steps, table.steps[cosines < self.cosine])] = False
        return alike

    sick: ClassVar = (
        _carried(_sums(60)),
        _carried(_sums(120, period=40)),  # zeroed once per epoch
        _carried([0.0] * 30 + [i / (i + 1) for i in range(40)]),
    )
    healthy: ClassVar = (
        _carried([0.0] * 60),
        _carried(
            [0.5, 0.55, 0.45, 0.6, 0.4] * 20
        ),  # one left-over gradient: an attack's backward pass before zero_grad
        _carried([0.0, 0.9, 0.95] * 20, optimizers=2),  # a GAN
        _carried([0.0, 0.5] * 30),  # zeroed every second step
    )


def _medians(values: Array, window: int) -> Array:
    """The median of each value and those before it, ``window`` in all; NaN before there are as many."""
    result = np.full(len(values), np.nan)
    if len(values) >= window:
        result[window - 1 :] = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    return result
