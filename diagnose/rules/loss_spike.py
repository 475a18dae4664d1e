"""TM402: the loss jumps out of its own noise, and comes back or not."""

import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import (
    CYCLES,
    MAD_TO_SIGMA,
    Array,
    adversarial,
    in_a_row,
    median,
    noise,
    preceding_median,
    rate_at,
)
from trainmedic.history import History


class Jump(NamedTuple):
    """A loss that jumps."""

    onset: int  # its place in the series
    usual: float  # the median before it
    start: float  # the first level of the run
    highest: float  # the largest loss before it
    noise: float  # standard deviation of the values before it
    limit: float  # what the loss had to exceed


class LossSpike(Rule):
    """A training loss that jumps, from one value to the next, to where neither its noise nor its past reaches.

    Why it is bad: one such step can undo thousands; what set it off is likely to come again.
    Usual causes: a batch with broken or mislabelled values; a step that was too large for the curvature; Adam's second
    moments that have become small when a large gradient comes; no clipping of gradients.
    Formula: d is the distance of a loss above the median of the `window` values before it. A jump: d above `sigmas`
    times the usual size of |d| (by its median) and `beyond` times the largest d so far, after `settled` values, and
    either the loss is `multiple` times the largest ever seen before (one value is enough), or `row` values in a row lie
    that far out, by a quarter of what had been gained at least, at a rate that is known and has not risen. Told where
    the `patience` values that follow have not come back, by their median, to within a quarter of the gain (and one
    standard deviation), or are not finite; or where `often` values lie above `far_out` times the largest from before
    the first jump, and none just below. Or, in an excerpt (its first step lies more than `settled` records into the
    run): after three values or more that differ by less than `calm` of their median, `row` values in a row are above
    `twice` the largest of them, and the newest `row` have not come back; or, after `row` values as calm, one is above
    the largest by twice `calm`, at `surge` times the median gradient norm. An error once the `window` values after it
    have given back three quarters of the gain, else a warning.
    Remedies: clip-gradients, warm-up, rewind, lower-learning-rate.
    Known limits: losses of small batches have long tails, hence `beyond`: values with a tail as heavy as 1 / x**3 pass
    three times their record once in 27 records, and come back. A single jump that comes back is not told, but of an
    excerpt with such gradients: it happens at the edge of stability. Not judged: competing players, rewards, losses
    that are positive and negative by turns; jumps of the rate, or a rate that climbs, explain those of the loss
    (restarts).
    Source: PaLM's spikes and their cure, skipping batches (Chowdhery et al. 2022, arXiv:2204.02311); a spike as
    several values in a row far out follows llm-foundry, three times the record ZClip's and Megatron's use of the past.
    """

    code: ClassVar[str] = "TM402"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = ("clip-gradients", "warm-up", "rewind", "lower-learning-rate")
    explains: ClassVar[tuple[str, ...]] = (
        "divergence",
        "exploding-gradient",
        "dead-relu",
        "non-finite",
        "plateau",
        "collapsed-output",
    )
    advice: ClassVar[str] = (
        "Usually means a batch with broken values, or a step that was too large for it. "
        "Do this: skip that batch and clip: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0). "
        "Otherwise check (a) that batch: x.abs().max(), torch.isfinite(x).all(), and its labels; (b) the gradient norm "
        "at that step against its median; (c) Adam's memory: betas=(0.9, 0.95) forgets old gradients sooner."
    )

    sigmas: float = Field(
        10.0,
        gt=0,
        description="distance, standard deviations by the median (1e-23 in normal noise, 1e-3 in heavy tails)",
    )
    beyond: float = Field(3.0, gt=1, description="distance over the largest so far, factor (hard samples come again)")
    multiple: float = Field(
        3.0, gt=1, description="loss over the largest before, factor (no answer of a whole network is that bad)"
    )
    window: int = Field(50, ge=5, description="values before and after that it is compared with (noise of a seventh)")
    settled: int = Field(30, ge=5, description="values before the first jump (runs start with catapults)")
    row: int = Field(5, ge=2, description="values in a row (more than 4, as in llm-foundry)")
    patience: int = Field(20, ge=2, description="values after it to come back in (a catapult takes a few dozen steps)")
    twice: float = Field(
        2.0, gt=1, description="loss over the largest before, factor, of `row` values in an excerpt (as llm-foundry)"
    )
    surge: float = Field(100.0, gt=1, description="gradient norm over its median before, factor (two decades)")
    calm: float = Field(
        0.25, gt=0, description="spread of all values before, share of their median, in an excerpt (a quarter)"
    )
    often: int = Field(3, ge=2, description="jumps that are told although the loss came back (once is chance)")
    far_out: float = Field(
        10.0, gt=1, description="loss of those over the largest before, factor (1 in 1,000 records of a tail 1 / x**3)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history) or history.facts.get("scheduler") in CYCLES:
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        jumps = self._jumps(history, steps[usable], values[usable])
        places = np.flatnonzero(usable)
        told = [found for jump in jumps if (found := self._told(values, int(places[jump.onset]), jump)) is not None]
        told = told or list(self._in_an_excerpt(history, steps, values)) or list(self._surge(history, steps, values))
        if not told:
            return
        sure, jump, severity, after = min(told, key=lambda found: found[0])
        onset = int(places[jump.onset])
        yield self.finding(
            step=steps[onset],
            detected_at=steps[sure],
            where=("train/loss",),
            severity=severity,
            message=f"the loss jumped from {jump.usual:.4g} to {values[onset]:.4g} at step {steps[onset]}{after}",
            evidence=[
                Evidence(name="training loss", value=values[onset], limit=jump.limit),
                Evidence(name="median before it", value=jump.usual),
                Evidence(name="median now", value=median(values[-self.window :])),
            ],
        )

    def _calm(self, steps: NDArray[np.int64], values: Array, least: int) -> Iterator[tuple[int, float, float]]:
        """Places of an excerpt before which at least so many values, and all, are calm; their median and largest.

        An excerpt begins long after its run did: what is calm there needs no ``settled`` values to be so.
        """
        if len(values) <= least or not np.isfinite(values).all() or not values[0] > 0:
            return
        if not steps[0] > self.settled * float(np.median(np.diff(steps[: self.settled]))) > 0:
            return
        for onset in range(least, min(self.settled, len(values))):
            before = values[:onset]
            usual = float(np.median(before))
            if float(np.ptp(before)) <= self.calm * usual:
                yield onset, usual, float(before.max())

    def _in_an_excerpt(
        self, history: History, steps: NDArray[np.int64], values: Array
    ) -> Iterator[tuple[int, Jump, Severity, str]]:
        """Several values in a row far above all that an excerpt began with."""
        for onset, usual, highest in self._calm(steps, values, 3):
            row = values[onset : onset + self.row]
            if len(row) < self.row or not row.min() > self.twice * highest:
                continue
            rates = rate_at(history, steps[[onset - 1, onset]])
            if rates[1] > 1.2 * rates[0] or not median(values[-self.row :]) > (1 + self.calm) * highest:
                return
            jump = Jump(onset, usual, usual, highest, noise(values[:onset]), self.twice * highest)
            yield onset + self.row - 1, jump, Severity.WARNING, f", and {self.row - 1} records later was still up there"
            return

    def _surge(
        self, history: History, steps: NDArray[np.int64], values: Array
    ) -> Iterator[tuple[int, Jump, Severity, str]]:
        """A loss that leaves the calm of an excerpt together with the gradients, whether it comes back or not."""
        if "gradient/norm" not in history:
            return
        at, norms = history.series("gradient/norm")
        for onset, usual, highest in self._calm(steps, values, self.row):
            limit = (1 + 2 * self.calm) * highest
            now, earlier = norms[at == steps[onset]], median(norms[at < steps[onset]])
            if values[onset] > limit and len(now) and now[-1] > self.surge * earlier > 0:
                jump = Jump(onset, usual, usual, highest, noise(values[:onset]), limit)
                yield onset, jump, Severity.WARNING, f", with {now[-1] / earlier:.0f} times the usual gradient norm"
                return

    def _told(self, values: Array, onset: int, jump: Jump) -> tuple[int, Jump, Severity, str] | None:
        """From where on it is told, and how; ``None`` where the loss has come back."""
        after = np.where(np.abs(values[onset + 1 :]) < 1e100, values[onset + 1 :], np.inf)
        if len(after) < self.patience:
            return None
        gain = max(jump.start - jump.usual, 0.5 * abs(jump.usual), 4 * jump.noise)
        still = float(np.median(after[: self.patience])) > jump.usual + 0.25 * gain
        now = float(np.median(after[-self.window :]))
        again = np.flatnonzero(after > self.far_out * jump.highest)
        rest = np.max(after[after <= self.far_out * jump.highest], initial=0.0)
        apart = self.multiple * rest < min(values[onset], *after[again], math.inf)  # noise would fill the gap
        many = values[onset] > self.far_out * jump.highest and len(again) >= self.often - 1 and apart
        if still and now > jump.usual + 0.25 * gain:
            lost = len(after) >= self.window and now > jump.usual + 0.75 * gain
            said = ", and what had been learnt is gone" if lost else ", and has not come back"
            return onset + self.patience, jump, Severity.ERROR if lost else Severity.WARNING, said
        if many:
            sure = onset + max(self.patience, int(again[self.often - 2]) + 1)
            return sure, jump, Severity.WARNING, f", and {len(again)} more times"
        return None

    def _jumps(self, history: History, steps: NDArray[np.int64], values: Array) -> list[Jump]:
        if len(values) <= self.settled or values[: self.settled].min() < 0:
            return []
        usual = preceding_median(values, self.window)
        start = median(values[:5])
        with np.errstate(invalid="ignore"):
            distance = values - usual
            record = np.concatenate([[np.nan], np.fmax.accumulate(distance)[:-1]])
            if not (distance > self.beyond * record)[self.settled :].any():
                return []
            size = MAD_TO_SIGMA * preceding_median(np.abs(distance), self.window)
            highest = np.concatenate([[np.inf], np.maximum.accumulate(values)[:-1]])
            far = (distance > self.sigmas * size) & (np.arange(len(values)) >= self.settled)
            far &= distance > 1e-6 * np.abs(usual)
            above = far & (distance > self.beyond * record) & (values > self.multiple * highest)
        jumps = np.flatnonzero(above).tolist()
        lasting = self._lasting(values, usual, distance, far, record)
        rates = rate_at(history, steps)
        places = jumps if lasting is None or not np.isfinite(rates[lasting]) else [*jumps, lasting]
        limits = {place: self.multiple * float(highest[place]) for place in jumps}
        if lasting is not None:
            limits.setdefault(lasting, float(usual[lasting]) + self._height(usual, size, record, start, lasting))
        return [
            Jump(
                place,
                float(usual[place]),
                start,
                float(highest[place]),
                noise(values[:place][-self.window :]),
                limits[place],
            )
            for place in places
            if not rates[place] > 1.2 * rates[max(0, place - self.window)]
        ]

    def _height(self, usual: Array, size: Array, record: Array, start: float, place: int) -> float:
        """What several values in a row have to exceed together, above the median before them."""
        level = float(usual[place])
        far = max(self.sigmas * float(size[place]), self.beyond * float(record[place]))
        return max(far, 0.25 * (start - level), 0.25 * abs(level))

    def _lasting(
        self,
        values: Array,
        usual: Array,
        distance: Array,
        far: NDArray[np.bool_],
        record: Array,
    ) -> int | None:
        """The first jump to a height that several values in a row keep."""
        start = median(values[:5])
        for sure in np.flatnonzero(in_a_row(far, self.row)).tolist():
            onset = sure - self.row + 1
            height, level = float(distance[onset : sure + 1].min()), float(usual[onset])
            if far[onset - 1] or not height > self.beyond * record[onset] or not height > 0.25 * (start - level):
                continue
            if not start > level or not height > 0.25 * abs(level):
                continue
            return onset
        return None

    sick: ClassVar = (
        # an excerpt of a chronicle, one record in ten
        History.of(train_loss=[2.776, 2.773, 2.768, 7.344, 8.716, 7.654, 7.192, 6.849], steps=range(29020, 29100, 10)),
        # another: the loss is back soon, the gradient norm was a thousand times the usual
        History.of(
            train_loss=[2.2, 2.22, 2.595, 2.24, 2.345, 5.1, 3.5, 3.2, 2.8, 2.2, 2.2],
            gradient_norm=[0.24, 0.95, 2.4, 15.9, 145.0, 960.0, 353.0, 379.0, 650.0, 0.27, 0.2],
            steps=range(31214, 31225),
        ),
        # a broken batch, and the network is gone
        History.of(train_loss=[*np.linspace(2.3, 0.3, 100), 300.0, *[2.3] * 80]),
        # broken batches, again and again
        History.of(train_loss=[*np.linspace(2.3, 0.3, 100), *[40.0, *[0.3] * 40] * 4]),
        # a language model: up, and slowly back
        History.of(
            train_loss=[
                *np.geomspace(10.8, 3.0, 200),
                *(3 + 0.02 * np.cos(7 * np.arange(200))),
                *np.linspace(7, 5, 40),
            ],
            optimizer_learning_rate=[1e-3] * 440,
        ),
    )
    healthy: ClassVar = (
        # an excerpt of a run with batches of four, some of them hard
        History.of(
            train_loss=[0.3, 0.05, 0.4, 0.1, 0.2, 0.02, 2.0, 0.1, 0.3, 0.2],
            gradient_norm=[0.5, 0.1, 0.6, 0.2, 0.3, 0.01, 40.0, 0.2, 0.4, 0.3],
            steps=range(5000, 5010),
        ),
        # batches of four: hard samples come again and again
        History.of(train_loss=[*np.linspace(2.3, 0.3, 100), *[4.0 if i % 17 == 0 else 0.05 for i in range(300)]]),
        # converged to nothing: a sample that is hard is not a broken one
        History.of(train_loss=[*np.geomspace(2.3, 1e-5, 150), 1.5, *[1e-5] * 100]),
        # a start that is rough
        History.of(train_loss=[2.3, 5.0, 30.0, 9.0, 4.0, *np.geomspace(2.5, 0.3, 100)]),
        # warm restarts: the rate jumps first
        History.of(
            train_loss=list(np.tile(np.concatenate([[1.2] * 6, np.geomspace(0.9, 0.1, 94)]), 4)),
            optimizer_learning_rate=list(np.tile(np.geomspace(0.1, 1e-3, 100), 4)),
        ),
        # around zero: a policy gradient
        History.of(train_loss=[*(0.1 * np.sin(np.arange(100))), 3.0, *(0.1 * np.sin(np.arange(100)))]),
    )
