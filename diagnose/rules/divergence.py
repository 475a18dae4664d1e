"""TM401: the loss climbs and does not come back."""

from collections.abc import Callable, Iterator
from functools import partial
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
    block_medians,
    chance_level,
    holds_since,
    median,
    noise,
    rate_at,
    share_done,
    thinned,
)
from trainmedic.history import History

BLOCKS = 20
"""Blocks that a run until now is cut into."""


class Climb(NamedTuple):
    """A loss that has left its best."""

    lost: bool  # all that was learnt
    start: float
    best: float
    now: float
    share: float  # of the values until now that lie in the climb
    began: float  # the same from the best on


Judged = Callable[[History, NDArray[np.int64], Array], Climb | None]


class Divergence(Rule):
    """A training loss that gives back what it had gained, or leaves its start for worse, and stays there.

    Why it is bad: what was learnt is gone, and every further step is wasted or makes it worse.
    Usual causes: a learning rate that is too large or still rises; a batch that broke the weights; gradients that pile
    up; a term of the loss with the wrong sign, which can be made better without end.
    Formula: the run until now in 20 blocks, by their medians. Start: the first level, or the loss of the best constant
    answer where that is known and lower. Lost (error): in all of the last `patience` values (or `patience_epochs`,
    where the log has one per epoch) and the last three blocks, `given_back` of start minus best is gone, or, where less
    than `gained` of the start was gained, the loss lies above its start by `beyond` of it. Climbing (warning): half of
    the gain is gone for `lasting` of the run, at a rate that is not above the one of the best time, or with half of the
    run over, when no warm-up or cycle is on its way up any more. In both cases beyond `sigmas` standard deviations of
    the noise, for twice as long as any climb that the run has come back from, and not coming down, or too slowly to be
    back by the end of the run, where that is known. Running off (error): the loss is negative, `runaway` times as large
    as at the start, and falls ever faster: in the second half by `accelerating` times as much as in the first.
    Remedies: lower-learning-rate, schedule-learning-rate, clip-gradients, warm-up, rewind, stop-early.
    Known limits: in 3,456 simulated healthy runs of 25 to 4,000 losses, with white, lasting and long-tailed noise, each
    judged at four moments, it never spoke (95 % bound: 1 in 1,150). Silent where players compete or rewards
    are logged, where a loss is positive and negative by turns, and while a cyclical rate is high. A loss
    whose own definition changes (annealed terms, a curriculum that gets harder) may climb by design.
    Source: learning rate finders stop at four times the best loss (Smith 2015, arXiv:1506.01186); short rises at the
    edge of stability are no fault (Cohen et al. 2021, arXiv:2103.00065), hence the patience.
    """

    code: ClassVar[str] = "TM401"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = (
        "lower-learning-rate",
        "schedule-learning-rate",
        "clip-gradients",
        "warm-up",
        "rewind",
        "stop-early",
    )
    # a rate that climbs kills units on the way
    explains: ClassVar[tuple[str, ...]] = ("dead-relu", "collapsed-output")
    advice: ClassVar[str] = (
        "Usually means a learning rate that is too large, or that rises for too long. "
        "Do this: go back to the best weights and go on at a third of the rate. Otherwise check (a) the schedule: "
        "print(scheduler.get_last_lr()) now and at the best loss; (b) the batches where the climb began: "
        "x.abs().max(), y.min(), y.max(); (c) that optimizer.zero_grad() is called before each backward pass, and "
        "that no term of the loss is subtracted that can grow without end."
    )

    given_back: float = Field(
        0.75, gt=0, le=1, description="share of the gain that is gone when a run is lost (a quarter is left)"
    )
    gained: float = Field(
        0.2, gt=0, lt=1, description="gain that can be lost, share of the first level (less may be lasting noise)"
    )
    beyond: float = Field(
        0.5, gt=0, description="rise above the first level where nothing was gained, share of it (half as bad again)"
    )
    sigmas: float = Field(
        6.0,
        gt=0,
        description="rise of a block, standard deviations of its noise (one-sided chance 1e-9 for independent noise)",
    )
    patience: int = Field(20, ge=3, description="values that stay above (a catapult settles within a few dozen steps)")
    patience_epochs: int = Field(4, ge=3, description="the same for one value per epoch, epochs (each is a mean)")
    lasting: float = Field(
        0.25, gt=0, lt=1, description="share of the run that a mere climb lasts (a cycle is shorter)"
    )
    runaway: float = Field(
        100.0, gt=1, description="negative loss over its first size, factor (likelihoods grow by tens, not by hundreds)"
    )
    accelerating: float = Field(
        1.5,
        gt=1,
        description="fall of the second half over that of the first, factor (likelihoods grow ever slower: < 1)",
    )

    def check(self, history: History) -> Iterator[Finding]:
        steps, values = _finite(history)
        if adversarial(history):
            return
        for judged in (self._lost, self._climbing, self._runs_off):
            until = partial(_until, judged, history, steps, values)
            since = holds_since(until, steps)
            climb = None if since is None else until(since)
            if since is not None and climb is not None:
                yield self._told(history, steps, values, since, climb)
                return

    def _told(self, history: History, steps: NDArray[np.int64], values: Array, since: int, climb: Climb) -> Finding:
        onset = int(steps[int((since + 1) * (1 - climb.began))])
        now = median(values[-max(3, len(values) // BLOCKS) :])
        limit = climb.best + (self.given_back if climb.lost else 0.5) * (climb.start - climb.best)
        if climb.best >= climb.start:
            limit = climb.start * (1 + self.beyond)
        if climb.now < 0:
            limit, message = (
                -self.runaway * climb.start,
                f"the loss runs off below zero, faster and faster, to {now:.4g}",
            )
        else:
            message = (
                f"the loss climbed from {climb.best:.4g} to {now:.4g} and stays there; it began at {climb.start:.4g}"
            )
        return self.finding(
            step=onset,
            detected_at=steps[since],
            where=("train/loss",),
            severity=Severity.ERROR if climb.lost else Severity.WARNING,
            message=message,
            evidence=[
                Evidence(name="training loss", value=now, limit=limit),
                Evidence(name="its best level", value=climb.best),
                Evidence(name="its first level", value=climb.start),
                *_rates(history, onset, int(steps[-1])),
            ],
        )

    def _lost(self, history: History, steps: NDArray[np.int64], values: Array) -> Climb | None:
        patience = self.patience_epochs if history.facts.get("time") == "epoch" else self.patience
        if len(values) < 2 * patience or _cycles_high(history, steps):
            return None
        curve = thinned(values)
        start, blocks, sigma = _levels(history, steps, curve)
        best = float(blocks.min())
        gain = start - best
        if gain > max(self.gained * abs(start), self.sigmas * sigma):
            limit = best + self.given_back * gain
        elif start > 0 and best > 0:
            limit = start * (1 + self.beyond)
        else:
            return None
        limit = max(limit, best + self.sigmas * sigma)
        return self._stays(blocks, curve, patience, limit, start, _rest(history, steps, blocks), lost=True)

    def _climbing(self, history: History, steps: NDArray[np.int64], values: Array) -> Climb | None:
        if len(values) < 5 * self.patience or _cycles_high(history, steps):
            return None
        curve = thinned(values)
        start, blocks, sigma = _levels(history, steps, curve)
        place = int(np.argmin(blocks))
        best = float(blocks[place])
        if best < 0 or not start - best > max(self.gained * abs(start), self.sigmas * sigma):
            return None
        rates = rate_at(history, steps[[int((place + 0.5) / len(blocks) * len(steps)), len(steps) - 1]])
        done = share_done(history, int(steps[-1]))
        if rates[1] > 1.2 * rates[0] and (done is None or done < 0.5):
            return None  # a warm-up, or the way up of a cycle
        limit = max(best + 0.5 * (start - best), best + self.sigmas * sigma)
        rest = _rest(history, steps, blocks)
        climb = self._stays(blocks, curve, self.patience, limit, start, rest, lost=False)
        return climb if climb and climb.share >= self.lasting else None

    def _stays(
        self, blocks: Array, curve: Array, patience: int, limit: float, start: float, rest: float, *, lost: bool
    ) -> Climb | None:
        """The climb, if the newest values are above, longer than any earlier ones that came back, and stay there.

        They do where they do not fall, or too slowly to come back within the ``rest`` of the run, in blocks.
        """
        above = blocks > limit
        if not above[-3:].all() or not median(curve[-patience:]) > limit:
            return None
        ends = np.flatnonzero(np.diff(np.concatenate([[False], above, [False]]).astype(np.int8)))
        spells = (ends[1::2] - ends[::2])[1 if above[0] else 0 :]  # a first one is where the run began
        if above.all():
            spells = np.array([len(above)])
        last = int(spells[-1]) if len(spells) else 0
        size = len(curve) / len(blocks)
        if last < 3 or last * size < patience or (len(spells) > 1 and last < 2 * int(spells[:-1].max())):
            return None
        climb = blocks[-last:]
        best, now = float(blocks.min()), float(np.median(climb[-2:]))
        early = float(np.median(climb[: max(1, last // 2)]))
        falls = (early - now) / (last / 2)  # by block
        if now < early - 0.1 * (early - best) and now - falls * rest <= limit:
            return None  # it is coming back
        began = len(blocks) - 1 - int(np.argmin(blocks)) if blocks[0] > best else last
        return Climb(lost, start, best, now, last / len(blocks), max(last, began) / len(blocks))

    def _runs_off(self, history: History, steps: NDArray[np.int64], values: Array) -> Climb | None:
        if len(values) < 2 * self.patience or not values[-1] < 0:
            return None
        curve = thinned(values)
        start, blocks, _ = _levels(history, steps, curve)
        now = float(blocks[-1])
        if not now < -self.runaway * abs(start) or not (np.diff(blocks[-5:]) < 0).all():
            return None
        middle = float(blocks[len(blocks) // 2])
        if not middle - now > self.accelerating * abs(start - middle):
            return None
        share = float(np.mean(blocks < 0))
        return Climb(True, start, start, now, share, share)

    sick: ClassVar = (
        # learnt, then lost
        History.of(train_loss=[*np.geomspace(2.3, 0.2, 60), *np.geomspace(0.2, 2.4, 60), *[2.4] * 60]),
        # worse from the start
        History.of(train_loss=[1.0] * 10 + list(np.geomspace(1.0, 1e6, 90))),
        # one value per epoch
        History.of(train_loss=[2.3, 1.5, 1.0, 0.8, 0.7, 0.7, 3.0, 3.1, 3.0, 3.2, 3.1], facts={"time": "epoch"}),
        # half of the gain is gone, for half of the run
        History.of(train_loss=[*np.geomspace(2.3, 0.1, 100), *np.linspace(0.1, 1.6, 20), *[1.6] * 100]),
        # a penalty that is subtracted
        History.of(train_loss=list(1.0 - np.geomspace(0.01, 1e5, 150))),
    )
    healthy: ClassVar = (
        # warm restarts
        History.of(train_loss=list(np.tile(np.concatenate([[1.2, 1.0], np.geomspace(0.9, 0.1, 48)]), 4))),
        # a catapult
        History.of(train_loss=[1.0] * 5 + list(np.geomspace(1, 20, 8)) + list(np.geomspace(20, 0.3, 40)) + [0.3] * 100),
        # a log-likelihood
        History.of(train_loss=list(50 - 400 * (1 - np.exp(-np.arange(300) / 100)))),
        # a policy gradient: around zero, up and down
        History.of(train_loss=list(0.3 * np.sin(np.arange(400) / 40))),
        # fine-tuning: it begins low, and stays there
        History.of(train_loss=list(0.05 + 0.01 * np.sin(np.arange(300) * 2.4) + np.linspace(0, 0.005, 300))),
        # a GAN
        History.of(train_loss=list(np.linspace(0.7, 6.0, 300)), facts={"optimizers": 2}),
    )


def _until(judged: Judged, history: History, steps: NDArray[np.int64], values: Array, place: int) -> Climb | None:
    return judged(history, steps[: place + 1], values[: place + 1])


def _finite(history: History) -> tuple[NDArray[np.int64], Array]:
    steps, values = history.series("train/loss")
    usable = np.abs(values) < 1e100
    return steps[usable], values[usable]


def _levels(history: History, steps: NDArray[np.int64], curve: Array) -> tuple[float, Array, float]:
    """First level, medians of the blocks, standard deviation of such a median.

    By the noise of single values, or by what differs from block to block, where noise lasts from value to value.
    """
    blocks = block_medians(curve, max(1, len(curve) // BLOCKS))
    start = median(curve[: max(3, len(curve) // 100)])
    chance = chance_level(history, int(steps[-1]))
    if chance is not None and 0 < chance < start < 4 * chance:
        start = chance
    by_values = 1.25 * noise(curve) / max(1.0, len(curve) / BLOCKS) ** 0.5
    by_blocks = MAD_TO_SIGMA * median(np.abs(np.diff(blocks))) / 2**0.5 if len(blocks) > 4 else 0.0
    return start, blocks, max(by_values, by_blocks)


def _rest(history: History, steps: NDArray[np.int64], blocks: Array) -> float:
    """How many blocks are still to come, infinite where the length of the run is not known."""
    done = share_done(history, int(steps[-1]))
    return len(blocks) * max(0.0, 1 / done - 1) if done else np.inf


def _cycles_high(history: History, steps: NDArray[np.int64]) -> bool:
    """Whether the rate goes up and down by plan, and is up."""
    if history.facts.get("scheduler") not in CYCLES:
        return False
    rates = rate_at(history, steps)
    return bool(rates[-1] > 0.3 * np.nanmax(rates)) if np.isfinite(rates).any() else True


def _rates(history: History, onset: int, now: int) -> Iterator[Evidence]:
    rates = rate_at(history, np.array([onset, now]))
    if np.isfinite(rates).all():
        yield Evidence(name="learning rate now", value=float(rates[1]))
        yield Evidence(name="learning rate when the climb began", value=float(rates[0]))
