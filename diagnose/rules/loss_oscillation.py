"""TM403: the loss swings widely without getting anywhere."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import (
    CYCLES,
    Array,
    adversarial,
    block_medians,
    chance_level,
    holds_since,
    median,
    medians,
    noise,
    rate_at,
    thinned,
)
from trainmedic.history import History, Snapshot

BLOCKS = 64
"""Blocks that the newer half of a run is cut into."""


def _sorted(count: int) -> History:
    """An example: batches of 32 of which each holds one of ten classes."""
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "batch_size": 32}
    history = History.of(train_loss=[2.5 + 0.1 * (i % 4) for i in range(count)], facts=facts)
    for step in range(count):
        row = {str(label): float(label == step // 4 % 10) for label in range(10)}
        history.record(Snapshot(step, layers={"label_share": row}))
    return history


class Swing(NamedTuple):
    """A loss that goes to and fro."""

    turns: int  # reversals, or batches looked at
    height: float
    limit: float
    ordered: bool  # by the labels
    level: float


class LossOscillation(Rule):
    """A training loss that goes up and down in wide swings, far beyond its noise, and ends where it began to swing.

    Why it is bad: each swing takes back what the one before had gained.
    Usual causes: batches that come in the order of their classes or files; momentum that is too large for the rate; a
    rate at the edge of what the curvature allows.
    Formula: (1) the newer half of the run in at most 64 blocks, by their medians, each the median of it and its
    neighbours: at least `reversals` turns, each after a way of `width` of what the loss had at first, of `sigmas`
    standard deviations of the noise of a block, and as large as the loss's own level there, the largest block lies
    above both of its neighbours by less than `unlike` times their median, blocks are like their neighbours (by
    `alike`), and neither its lower nor its upper envelope comes down by a tenth from one half of that to the other. (2)
    Batches in the order of the classes: over `batches` of them the labels of a batch vary more than of shuffled ones by
    a factor (an index of dispersion, 1 in shuffled batches, the size of the batch where each holds one class) above a
    quarter of the batch size and above 3, while the loss is above `unlearnt` of that of the best constant answer.
    Remedies: find-learning-rate, lower-learning-rate, schedule-learning-rate, average-weights.
    Known limits: silent where the rate itself is cycled, players compete, or the loss is negative at times. Swings
    shorter than a block are taken for noise; noise that lasts over many values and is half as large as the loss looks
    like swings.
    Source: Bengio 2012, arXiv:1206.5533, section 2.1.2 (batches must be drawn at random); index of dispersion: Fisher.
    """

    code: ClassVar[str] = "TM403"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = (
        "find-learning-rate",
        "lower-learning-rate",
        "schedule-learning-rate",
        "average-weights",
    )
    explains: ClassVar[tuple[str, ...]] = ("not-learning", "plateau", "underfitting", "divergence", "loss-spike")
    advice: ClassVar[str] = (
        "Usually means batches that are not shuffled, or too much momentum for the learning rate. "
        "Do this: shuffle, DataLoader(..., shuffle=True); if it is on already, take a third of the rate. Otherwise "
        "check (a) the labels of two batches in a row: next(iter(loader))[1]; (b) momentum: 0.9 in place of 0.99; "
        "(c) whether the swings have the length of an epoch: then it is the order of the data."
    )

    reversals: int = Field(6, ge=3, description="turns in the newer half of the run (three swings to and fro)")
    width: float = Field(
        0.3, gt=0, description="way between two turns, share of the first loss (restarts give back less)"
    )
    sigmas: float = Field(
        6.0, gt=0, description="the same, standard deviations of a block's median (1e-9 for independent noise)"
    )
    alike: float = Field(
        0.4, ge=0, lt=1, description="rank correlation of neighbouring blocks (a swing of six of them has 0.5, noise 0)"
    )
    unlike: float = Field(
        10.0, gt=1, description="largest block above its neighbours, over the median way (an order more is a spike)"
    )
    batches: int = Field(30, ge=10, description="batches whose labels were counted (an index of 3 is certain by then)")
    unlearnt: float = Field(
        0.5, gt=0, description="loss over that of knowing nothing (where order does no harm, it is low)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history) or history.facts.get("scheduler") in CYCLES:
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        steps, values = steps[usable], values[usable]
        for judged in (partial(self._ordered, history, steps, values), partial(self._swings, history, steps, values)):
            since = holds_since(judged, steps)
            swing = None if since is None else judged(since)
            if since is not None and swing is not None:
                yield self._told(history, steps, since, swing)
                return

    def _told(self, history: History, steps: NDArray[np.int64], since: int, swing: Swing) -> Finding:
        if swing.ordered:
            chance = chance_level(history, int(steps[since])) or float("nan")
            return self.finding(
                step=steps[0],
                detected_at=steps[since],
                where=("train/loss",),
                severity=Severity.ERROR if swing.level > 0.9 * chance else Severity.WARNING,
                message=f"batches come in the order of their classes (labels vary {swing.height:.3g} times as much as "
                f"in shuffled ones), and the loss goes from one to the next without learning: {swing.level:.4g}",
                evidence=[
                    Evidence(
                        name="dispersion of the labels over that of shuffling", value=swing.height, limit=swing.limit
                    ),
                    Evidence(name="training loss", value=swing.level, limit=self.unlearnt * chance),
                ],
            )
        return self.finding(
            step=steps[(since + 1) // 2],
            detected_at=steps[since],
            where=("train/loss",),
            message=f"the loss turned {swing.turns} times in the newer half of the run, by {swing.height:.4g} each, "
            "and got nowhere",
            evidence=[
                Evidence(name="turns", value=swing.turns, limit=self.reversals),
                Evidence(name="way between two turns, median", value=swing.height, limit=swing.limit),
            ],
        )

    def _ordered(self, history: History, steps: NDArray[np.int64], values: Array, place: int) -> Swing | None:
        size = history.facts.get("batch_size")
        if "label_share" not in history or not isinstance(size, int) or size < 2 or place < self.batches:
            return None
        now = int(steps[place])
        table = history.layers("label_share")
        rows = table.values[table.steps <= now].astype(np.float64)
        rows = rows[np.isfinite(rows).all(axis=1)]
        if len(rows) < self.batches:
            return None
        overall = rows.mean(axis=0)
        known = overall * (1 - overall) > 0.01
        if known.sum() < 2:
            return None
        spread = ((rows[:, known] - overall[known]) ** 2).mean(axis=0)
        index = float((spread * min(size, 256) / (overall[known] * (1 - overall[known]))).mean())
        limit = max(3.0, min(size, 256) / 4)
        chance = chance_level(history, now)
        level = median(values[(place + 1) // 2 : place + 1])
        if chance is None or index <= limit or not level > self.unlearnt * chance:
            return None
        return Swing(len(rows), index, limit, True, level)

    def _swings(self, history: History, steps: NDArray[np.int64], values: Array, place: int) -> Swing | None:
        if place < 2 * BLOCKS:
            return None
        newer = thinned(values[(place + 1) // 2 : place + 1])
        size = max(1, len(newer) // BLOCKS)
        blocks = block_medians(newer, size)
        start = median(values[: max(3, size)])
        if not start > 0 or newer.min() < 0:
            return None
        sigma = 1.25 * noise(newer) / size**0.5
        limit = max(self.width * start, self.sigmas * sigma, float(np.median(blocks)))
        if float(np.ptp(blocks)) < limit or _cycled(history, steps[(place + 1) // 2 : place + 1]):
            return None
        if _likeness(blocks) < self.alike:
            return None  # each block is where chance has put it
        smooth = medians(sliding_window_view(np.pad(blocks, 1, mode="edge"), 3))  # one block that stands out is a spike
        turns = _turns(smooth, limit)
        ways = np.abs(np.diff(smooth[turns]))
        if len(ways) < self.reversals or _stands_out(blocks) > self.unlike * float(np.median(ways)):
            return None
        half = len(blocks) // 2
        for level in (0.1, 0.9):
            before, after = np.quantile(blocks[:half], level), np.quantile(blocks[half:], level)
            if after < 0.9 * before:
                return None  # it gets somewhere
        return Swing(len(ways), float(np.median(ways)), limit, False, float(np.median(blocks)))

    sick: ClassVar = (
        # momentum
        History.of(train_loss=list(1.0 + 0.7 * np.sin(np.arange(400) / 6))),
        # one class after the other
        _sorted(400),
    )
    healthy: ClassVar = (
        # small batches
        History.of(train_loss=[0.5 + 0.45 * (-1) ** (i // 3 * 7 % 5) for i in range(60)]),
        # the swings become smaller
        History.of(train_loss=list(1.0 + 0.9 * np.exp(-np.arange(400) / 80) * np.sin(np.arange(400) / 6))),
        # the rate is cycled
        History.of(
            train_loss=list(1.0 + 0.7 * np.sin(np.arange(400) / 6)),
            optimizer_learning_rate=list(0.1 + 0.09 * np.sin(np.arange(400) / 6)),
        ),
        # a GAN
        History.of(train_loss=list(1.0 + 0.7 * np.sin(np.arange(400) / 6)), facts={"optimizers": 2}),
        # around zero
        History.of(train_loss=list(0.7 * np.sin(np.arange(400) / 6))),
    )


def _likeness(values: Array) -> float:
    """Rank correlation of neighbours: 0 for independent values, however long their tails."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(np.float64)
    return float(np.corrcoef(ranks[:-1], ranks[1:])[0, 1])


def _stands_out(values: Array) -> float:
    """By how much the largest value lies above both of its neighbours."""
    place = int(np.argmax(values))
    return float(values[place] - np.delete(values[max(0, place - 1) : place + 2], min(place, 1)).max(initial=0.0))


def _turns(values: Array, least: float) -> list[int]:
    """Places where a curve turns, after a way of at least ``least`` each."""
    turns, low, high, up = [0], 0, 0, 0
    for i, value in enumerate(values.tolist()):
        low = i if value < values[low] else low
        high = i if value > values[high] else high
        if up >= 0 and values[high] - value >= least:
            turns.append(high)
            up, low, high = -1, i, i
        elif up <= 0 and value - values[low] >= least:
            turns.append(low)
            up, low, high = 1, i, i
    return turns


def _cycled(history: History, steps: NDArray[np.int64]) -> bool:
    """Whether the rate itself goes up and down by half of itself, twice at least."""
    rates = rate_at(history, steps)
    rates = thinned(rates[np.isfinite(rates)])
    return len(rates) > 2 and len(_turns(rates, 0.5 * float(np.median(rates)))) > 2
