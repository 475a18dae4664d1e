"""How a run stood at moments of its course, each judged by what had been recorded until then and no more.

A rule that judges at the same moments, however much longer the run gets, tells the same onset live and afterwards.
"""

import math

import numpy as np
from numpy.typing import NDArray

from trainmedic.diagnose.memo import remembered
from trainmedic.diagnose.robust import Array, medians, uniform_level
from trainmedic.history import History, LayerTable

SPAN = 10
"""Losses that a level is the median of."""
OVERFLOW = 19.0
"""Powers of ten whose square single precision does not hold (IEEE 754: 3.4e38)."""
DENSE = 256
"""Places at the start of a record that are all looked at."""


def looks(count: int, first: int = 0) -> NDArray[np.intp]:
    """Places in a record of ``count`` values: all of the first ones, then ever fewer, at least 128 for each doubling.

    A place is looked at or not whatever the length of the record.
    """
    places = np.arange(first, min(count, DENSE))
    start, stride = DENSE, 2
    while start < count:
        places = np.concatenate([places, np.arange(start, min(count, 2 * start), stride)])
        start, stride = 2 * start, 2 * stride
    return np.asarray(places, dtype=np.intp)


class Course:
    """The training loss at a few moments.

    ``places`` in the series, ``steps``, the ``level`` there (median of the ``SPAN`` losses up to it, NaN where most of
    them are not finite), and ``progress``: by how much of its first level the loss has come down, 0.5 is half. That
    first level is the lowest of the first loss, the median of the first ``SPAN``, and chance, where it is known.
    """

    def __init__(self, history: History) -> None:
        self.all_steps, self.losses = history.series("train/loss")
        self.places = looks(len(self.losses), SPAN - 1)
        self.steps = self.all_steps[self.places]
        around = self.losses[self.places[:, None] - np.arange(SPAN)]
        bad = ~np.isfinite(around)
        self.level: Array = np.where(bad.sum(axis=1) > SPAN // 2, np.nan, medians(around))
        self.start = _start(history, self.losses)
        with np.errstate(all="ignore"):
            self.progress: Array = (self.start - self.level) / max(abs(self.start), np.finfo(float).tiny)

    def __len__(self) -> int:
        return len(self.places)

    def since(self, step: float) -> NDArray[np.intp]:
        """At each moment, how many losses have been logged from ``step`` on."""
        return np.asarray(self.places + 1 - np.searchsorted(self.all_steps, step, side="left"))


@remembered
def course_of(history: History) -> Course:
    """The course of the training loss."""
    return Course(history)


def _start(history: History, losses: Array) -> float:
    known = losses[:SPAN][np.isfinite(losses[:SPAN])]
    if not len(known):
        return float("nan")
    start = float(min(known[0], np.median(known)))
    level = uniform_level(history)
    return min(start, level) if start < 4 * level else start  # far above it may be a sum


def streak(flags: NDArray[np.bool_]) -> int | None:
    """Where the unbroken run of flags that reaches the end began; ``None`` where the last one is down."""
    if not len(flags) or not flags[-1]:
        return None
    down = np.flatnonzero(~flags)
    return int(down[-1]) + 1 if len(down) else 0


def matrices(history: History, table: LayerTable) -> NDArray[np.intp]:
    """Columns of a table of matrices or kernels that train; embeddings where there is nothing else."""
    return _matrices(history, table.layers)


@remembered
def _matrices(history: History, names: tuple[str, ...]) -> NDArray[np.intp]:
    chosen: list[int] = []
    tables: list[int] = []
    for i, name in enumerate(names):
        known = history.architecture.get(name)
        owner = history.architecture.get(name.rpartition(".")[0])
        looked_up = owner is not None and owner.kind.startswith("Embedding")
        if known is not None and known.trainable and len(known.shape) > 1 and 0 not in known.shape:
            (tables if looked_up else chosen).append(i)
    return np.asarray(chosen or tables, dtype=np.intp)


@remembered
def moved(history: History) -> tuple[NDArray[np.int64], Array]:
    """Per measured step, |update| / |weight| of the weight matrix in the middle of all of them, by that ratio.

    Of an even number the smaller of the two: more than half of the matrices have moved at least so far. NaN where
    nothing was measured.
    """
    table = history.layers("update_ratio")
    values = table.values[:, matrices(history, table)].astype(np.float64)
    known = ~np.isnan(values)
    count = known.sum(axis=1)
    if not values.shape[1]:
        return table.steps, np.full(len(table.steps), np.nan)
    ordered = np.sort(values, axis=1)  # NaN sorts last
    middle = ordered[np.arange(len(values)), np.maximum(count - 1, 0) // 2]
    return table.steps, np.where(count > 0, middle, np.nan)


@remembered
def tearing(history: History, torn: float = 1.0) -> NDArray[np.int64]:
    """Steps that moved most matrices by ``torn`` times their size, and can be what made a run overflow after them.

    Either the loss was seen higher than at the start after such a step, or the step itself suffices: n matrices (a
    recurrent one counts for each step of its sequence) that have become 1 + u times as large multiply a signal by (1 +
    u)**n at most, and its square has to pass 1e38. Where neither holds, what came out infinite is the doing of a
    logarithm, a root or a division, not of the step.
    """
    steps, updates = moved(history)
    known = updates >= torn
    steps, updates = steps[known], updates[known]
    at, losses = history.series("train/loss")
    finite = np.isfinite(losses)
    if not len(steps) or not finite.any():
        return steps
    climbed = at[finite & (losses > losses[finite][0])]
    table = history.layers("update_ratio")
    depth = sum(_passes(history, table.layers[i]) for i in matrices(history, table).tolist())
    before = np.array([float(np.abs(losses[finite & (at <= step)][-1:]).max(initial=1.0)) for step in steps.tolist()])
    with np.errstate(over="ignore"):
        alone = depth * np.log10(1 + updates) + np.log10(before) >= OVERFLOW
    return np.asarray(steps[alone | (steps <= climbed.max(initial=-1))])


def _passes(history: History, name: str) -> int:
    """How often a signal goes through a matrix: once, or as often as a sequence is long."""
    owner = history.architecture.get(name.rpartition(".")[0])
    recurrent = owner is not None and "weight_hh" in name and len(owner.shape) > 1
    return int(owner.shape[0]) if owner is not None and recurrent else 1


@remembered
def gains(history: History, since: int | None = None) -> tuple[int, dict[str, tuple[float, float]]]:
    """Per weight matrix its standard deviation x sqrt(fan), by the smaller and by the larger of its two fans.

    As it was measured first (not before step ``since``), with the step by which all were. Near 1 for every usual law of
    initialisation: PyTorch's own 0.58, Glorot 1, He 1.41.
    """
    table = history.layers("weight_std")
    found: dict[str, tuple[float, float]] = {}
    until = -1
    steps, values = table.first(0 if since is None else int(np.searchsorted(table.steps, since)))
    for i in matrices(history, table).tolist():
        if not np.isfinite(values[i]):
            continue
        name = table.layers[i]
        shape = history.architecture[name].shape
        fans = math.prod(shape[1:]), shape[0] * math.prod(shape[2:])
        found[name] = float(values[i]) * min(fans) ** 0.5, float(values[i]) * max(fans) ** 0.5
        until = max(until, int(steps[i]))
    return until, found


def several(history: History) -> bool:
    """Whether several models or optimizers work against or beside each other: one loss does not tell of all."""
    return any(history.facts.get(name, 1) != 1 for name in ("models", "optimizers"))
