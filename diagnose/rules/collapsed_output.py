"""TM305: the output no longer depends on the input."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule
from trainmedic.diagnose.learnt import learnt, level
from trainmedic.diagnose.robust import Array, in_a_row, median
from trainmedic.history import History


def _same(spread: list[float], size: float = 1.0, loss: float = 0.7) -> History:
    """An example: outputs of this size that differ by so much from sample to sample."""
    count = len(spread)
    return History.of(
        train_loss=[loss] * count, output_batch_std=spread, output_min=[size] * count, output_max=[size] * count
    )


class CollapsedOutput(Rule):
    """Whatever the input, the output is the same, or a hundredth is left of what it differed by.

    Why it is bad: nothing can be learnt from a constant; the gradient of all that lies before it is zero.
    Usual causes: softmax over a single output; a rectifier after the last layer whose units died; a step that was far
    too large and killed or saturated all units; a loss that only pulls outputs together; inputs masked or multiplied
    away; weights decayed to nothing.
    Formula: s = standard deviation over the samples of a batch, root mean square over the outputs; s at most
    `resolution` times the largest output, or `faded` times both that and the largest s before, where targets differ by
    more; in each of the last `patience` measurements, while the loss is not zero and no more than `works` of the task
    has been learnt.
    Remedies: normalize-inputs, insert-batchnorm, reinitialize, find-learning-rate, lower-learning-rate.
    Known limits: batches of one sample show nothing. An output that varies by noise alone (dropout) has not collapsed
    in this sense; nor has one that follows the input by a hair (see vanishing-gradient). A last layer that starts at
    zero passes within `patience`.
    Source: single precision resolves 6e-8 of a value (IEEE 754); the spread of outputs over inputs is a check of
    TheDeepChecker, there with a limit of 1e-3 at the start.
    """

    code: ClassVar[str] = "TM305"
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("output/batch_std",)
    remedies: ClassVar[tuple[str, ...]] = (
        "normalize-inputs",
        "insert-batchnorm",
        "reinitialize",
        "find-learning-rate",
        "lower-learning-rate",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means a last activation that cannot vary (softmax over one output, a dead rectifier), or a step "
        "that was far too large. "
        "Do this: take the activation out of the last layer, and use a loss that takes raw outputs. Otherwise check "
        "(a) where samples become the same: layer(x).std(0) of each layer in turn; (b) that the inputs differ when "
        "they enter the model: x.std(0); (c) whether it happens at a tenth of the learning rate, with warm-up."
    )

    resolution: float = Field(
        1e-6, gt=0, lt=1, description="spread over samples, share of the largest output (rounding errors of 16 sums)"
    )
    faded: float = Field(
        0.01, gt=0, lt=1, description="spread over samples, share of its largest and of the size (a hundredth is left)"
    )
    patience: int = Field(10, ge=2, description="measurements in a row (a last layer may start at zero)")
    works: float = Field(0.5, gt=0, le=1, description="share of the task that is learnt, from which on it works (half)")

    def check(self, history: History) -> Iterator[Finding]:
        steps, spread = history.series("output/batch_std")
        size = np.maximum(_at(history, "output/min", steps), _at(history, "output/max", steps))
        with np.errstate(invalid="ignore"):
            same = (spread >= 0) & (spread <= self.resolution * size) | self._faded(history, spread, size)
        ends = np.flatnonzero(in_a_row(same, self.patience))
        if not len(ends) or ends[-1] != len(same) - 1 or self._content(history):
            return
        different = np.flatnonzero(~same)
        onset = int(different[-1]) + 1 if len(different) else 0
        now = float(spread[-1])
        constant = now <= self.resolution * float(size[-1])
        limit = self.resolution if constant else self.faded
        what = "the same for every sample" if constant else f"differs by {now:.2g} between the samples"
        yield self.finding(
            step=steps[onset],
            detected_at=steps[onset + self.patience - 1],
            where=["output/batch_std"],
            message=f"the output is {float(size[-1]):.3g} in size and {what} of a batch, "
            f"{len(steps) - onset} measurements in a row",
            evidence=[
                Evidence(name="spread over samples", value=now, limit=limit * float(size[-1])),
                Evidence(name="measurements in a row", value=len(steps) - onset, limit=self.patience),
            ],
        )

    def _faded(self, history: History, spread: Array, size: Array) -> NDArray[np.bool_]:
        """Where next to nothing is left of how outputs differed at first, beside their size and what is asked for."""
        first = np.fmax.accumulate(np.where(np.isfinite(spread), spread, 0.0))
        mean, wanted = (level(history, f"target/{name}") for name in ("mean", "std"))
        constant = wanted <= self.faded * abs(mean)  # what is asked for hardly differs itself
        with np.errstate(invalid="ignore"):
            return np.asarray((spread <= self.faded * first) & (spread <= self.faded * size) & (not constant))

    def _content(self, history: History) -> bool:
        """Whether a constant is all that is asked for, or the run learns all the same."""
        if "train/loss" in history:
            recent = median(history.series("train/loss").values[-self.patience :])
            if not abs(recent) > np.finfo(np.float32).tiny:  # zero, or no number
                return True
        return learnt(history) > self.works

    sick: ClassVar = (
        _same([0.0] * 40),
        _same([1.0] * 20 + [1e-9] * 30),
        _same([0.2 * 0.9**i for i in range(90)]),  # nothing pushes apart what is pulled together
    )
    healthy: ClassVar = (
        _same([0.01] * 40),
        _same([0.0] * 5 + [0.1] * 40),  # a last layer that starts at zero
        _same([0.0] * 40, loss=0.0),  # a constant is right
        _same([1e-4] * 40, size=10.0),  # an untrained deep net: faint, but not constant
        _same([1.0] * 20 + [0.0] * 3),
        _same([0.2] * 10 + [0.02] * 50),  # most of what differed was noise
    )


def _at(history: History, name: str, steps: NDArray[np.int64]) -> Array:
    """Absolute values of a series at given steps, NaN where it has none."""
    if name not in history:
        return np.full(len(steps), np.nan)
    known, values = history.series(name)
    place = np.minimum(np.searchsorted(known, steps), len(known) - 1)
    return np.where(known[place] == steps, np.abs(values[place]), np.nan)
