"""TM604: weight decay pulls the weights to nothing."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import Course, course_of, matrices, several, streak
from trainmedic.diagnose.robust import Array, medians
from trainmedic.history import History, Layer


def _one(losses: list[float], norms: list[float], gradient: float, optimizer: str, **options: float) -> History:
    """An example: one weight matrix with its norm, that of its gradient, and the optimizer's options."""
    values: dict[str, Any] = {"a.weight__weight_norm": norms, "a.weight__gradient_norm": [gradient] * len(norms)}
    facts = {"optimizer": optimizer, "optimizer_options": options}
    rates = [options["lr"]] * len(losses)
    layers = [Layer("a.weight", "parameter", 0, (8, 8))]
    return History.of(train_loss=losses, layers=layers, facts=facts, optimizer_learning_rate=rates, **values)


class ExcessiveWeightDecay(Rule):
    """The weights shrink by what weight decay takes from them, and the task is not learnt.

    Why it is bad: decay that outweighs the gradient drives every layer to zero, and with it signals and gradients.
    Usual causes: a coefficient meant for another optimizer (AdamW multiplies it by the rate, SGD by the rate and the
    length of its memory); a decimal too few; decay on top of a penalty in the loss.
    Formula: more than half of the weight matrices, or all of them together, have shrunk to less than `shrunk` of their
    first norm, which decay alone accounts for: of decoupled decay the sum of rate x coefficient is above
    -log(`shrunk`), of coupled decay the coefficient x |weight| was above `outweighs` |gradient| over the first `first`
    measured steps. Told from `least` losses on, while the loss has come down by less than `works` of its first level
    (where decay accounts for it twice over: by less than `done`); an error below `learnt`.
    Remedies: weight-decay, lower-learning-rate.
    Known limits: needs the optimizer's options; parameter groups beyond the first are taken to be like it. Penalties
    that are part of the loss are not seen.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101; at a balance of decay and gradient weights keep a size (Kosson
    et al. 2023, arXiv:2305.17212), and nets that train keep most of it or grow.
    """

    code: ClassVar[str] = "TM604"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.LEARNING_RATE
    needs: ClassVar[tuple[str, ...]] = ("weight_norm", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = ("weight-decay", "lower-learning-rate")
    explains: ClassVar[tuple[str, ...]] = (
        "vanishing-gradient",
        "dead-relu",
        "collapsed-output",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that weight_decay is hundreds of times too large for this optimizer. "
        "Do this: set it to 1e-4 for SGD, or to 0.01 to 0.1 for AdamW, and start again. Otherwise check (a) the option "
        "as it arrives: optimizer.param_groups[0]['weight_decay']; (b) penalties of your own in the loss; "
        "(c) the gradient: does any arrive, p.grad.norm() against p.norm()?"
    )

    shrunk: float = Field(0.5, gt=0, lt=1, description="norm over the first norm, 0 to 1 (nets that train mostly grow)")
    outweighs: float = Field(
        0.5, gt=0, description="decay over gradient, a ratio (usual settings are at a few thousandths to hundredths)"
    )
    first: int = Field(20, ge=1, description="measured steps (later on gradients become small in any run)")
    least: int = Field(20, ge=10, description="losses (twice what a level is taken of)")
    works: float = Field(0.3, gt=0, lt=1, description="share of the first loss, 0 to 1 (a third: strongly regularised)")
    done: float = Field(0.9, gt=0, le=1, description="share of the first loss, 0 to 1 (most of it: it works as it is)")
    learnt: float = Field(0.05, gt=0, lt=1, description="share of the first loss, 0 to 1 (below it nothing was learnt)")

    def check(self, history: History) -> Iterator[Finding]:
        decay = _option(history, "weight_decay")
        if several(history) or not 0 < decay < np.inf:
            return
        course = course_of(history)
        steps, shares = _shares(history)
        if not len(course) or not len(steps):
            return
        at = np.searchsorted(steps, course.steps, side="right") - 1
        share = np.where(at >= 0, shares[np.maximum(at, 0)], np.nan)
        with np.errstate(all="ignore"):
            sick = (share < self.shrunk) & (course.places + 1 >= self.least)
            sick &= (course.progress < self.works) & self._accounts(history, decay, course.steps, 1) | (
                course.progress < self.done
            ) & self._accounts(history, decay, course.steps, 2)
        start = streak(np.asarray(sick))
        if start is not None:
            yield self._told(course, decay, share, start, int(steps[0]))

    def _accounts(self, history: History, decay: float, moments: NDArray[np.int64], times: int) -> NDArray[np.bool_]:
        """Whether decay is strong enough to have done it so many times over, at each moment."""
        if "AdamW" not in str(history.facts.get("optimizer")) and not history.facts.get("optimizer_options", {}).get(
            "decoupled_weight_decay"
        ):
            return np.full(len(moments), self._outweighs(history, decay, times))
        if "optimizer/learning_rate" in history:
            steps, rates = history.series("optimizer/learning_rate")
        else:
            steps, rates = np.arange(history.first_step, history.last_step + 1), np.empty(0)
            rates = np.full(len(steps), _option(history, "lr"))
        with np.errstate(all="ignore"):
            taken = np.cumsum(np.nan_to_num(rates) * decay * np.diff(steps, prepend=steps[0] - 1))
        at = np.searchsorted(steps, moments, side="right") - 1
        return np.asarray((at >= 0) & (taken[np.maximum(at, 0)] >= -times * np.log(self.shrunk)))

    def _outweighs(self, history: History, decay: float, times: int) -> bool:
        if "gradient_norm" not in history:
            return False
        pulls = []
        norms, gradients = history.layers("weight_norm"), history.layers("gradient_norm")
        for i in matrices(history, norms):
            name = norms.layers[i]
            if name not in gradients.layers:
                continue
            weight, gradient = norms.column(name).values[: self.first], gradients.column(name).values[: self.first]
            weight, gradient = weight[np.isfinite(weight)], gradient[np.isfinite(gradient) & (gradient > 0)]
            if len(weight) and len(gradient):
                pulls.append(decay * float(np.median(weight)) / float(np.median(gradient)))
        return bool(pulls) and float(np.median(pulls)) >= times * self.outweighs

    def _told(self, course: Course, decay: float, share: Array, start: int, first: int) -> Finding:
        harmed = not course.progress[-1] >= self.learnt
        return self.finding(
            step=first,
            detected_at=course.steps[start],
            where=("weight_norm",),
            severity=Severity.ERROR if harmed else Severity.WARNING,
            message=f"with a weight decay of {decay:.3g} the weight matrices have shrunk to {100 * share[-1]:.2g} % "
            f"of their size, and the loss is at {course.level[-1]:.3g}, from {course.start:.3g}",
            evidence=[
                Evidence(name="weight norm over the first one", value=share[-1], limit=self.shrunk),
                Evidence(name="training loss", value=course.level[-1], limit=(1 - self.works) * course.start),
            ],
        )

    sick: ClassVar = (
        _one([2.3] * 100, [5 * 0.93**i for i in range(100)], 0.3, "SGD", weight_decay=0.1, lr=0.05),
        _one([2.3] * 100, [5 * 0.9**i + 0.5 for i in range(100)], 0.1, "AdamW", weight_decay=30.0, lr=5e-3),
    )
    healthy: ClassVar = (
        # weights that shrink in a run that learns
        _one(
            [2.3 * 0.97**i for i in range(100)],
            [5 * 0.93**i for i in range(100)],
            0.3,
            "SGD",
            weight_decay=0.1,
            lr=0.05,
        ),
        # a usual coefficient; what shrinks them is something else
        _one([2.3] * 100, [5 * 0.93**i for i in range(100)], 0.1, "AdamW", weight_decay=0.01, lr=1e-3),
        # strong decay, held by the gradient
        _one([2.3] * 30 + [2.0] * 70, [5.0] * 100, 0.3, "SGD", weight_decay=0.1, lr=0.05),
    )


def _option(history: History, name: str) -> float:
    options = history.facts.get("optimizer_options")
    value = options.get(name) if isinstance(options, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _shares(history: History) -> tuple[NDArray[np.int64], Array]:
    """Per measured step: norm over first norm, of the matrix in the middle of all, or of all of them together.

    The smaller of the two: of two matrices the small last one may well grow while the other goes.
    """
    table = history.layers("weight_norm")
    norms = table.values[:, matrices(history, table)].astype(np.float64)
    if not norms.shape[1]:
        return table.steps[:0], np.empty(0)
    first = np.full(norms.shape[1], np.nan)
    for i in range(norms.shape[1]):
        measured = norms[:, i][np.isfinite(norms[:, i])]
        first[i] = measured[0] if len(measured) and measured[0] > 0 else np.nan
    with np.errstate(all="ignore"):
        together = np.sqrt(
            np.nansum(norms**2, axis=1) / np.nansum(np.where(np.isnan(norms), np.nan, first) ** 2, axis=1)
        )
        return table.steps, np.fmin(medians(norms / first), together)
