"""Robust statistics that several rules share. All take plain arrays and hold for few values, outliers and NaN."""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainmedic.history import History

Array = NDArray[np.float64]
MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation by its median absolute deviation."""


def noise(values: Array) -> float:
    """Standard deviation of the noise on a curve, whatever its (locally straight) trend.

    From the median absolute second difference, which a straight trend does not enter: var(second difference) = 6 var.
    0 for fewer than 4 values.
    """
    values = values[np.isfinite(values)]
    if len(values) < 4:
        return 0.0
    return MAD_TO_SIGMA * float(np.median(np.abs(np.diff(values, 2)))) / 6**0.5


def preceding_median(values: Array, window: int) -> Array:
    """For each value the median of finite values before it: of the last full block of ``window``, or of all so far.

    Blocks instead of a sliding window: as robust, and linear in the length of a run. NaN where nothing precedes.
    """
    known = np.where(np.isfinite(values), values, np.nan)
    result = np.full(len(values), np.nan)
    early = known[: min(len(values), 2 * window)]
    if len(early):
        padded = np.concatenate([np.full(window, np.nan), early[:-1]])
        result[: len(early)] = medians(sliding_window_view(padded, window))
    blocks = len(values) // window
    later = np.arange(2 * window, len(values))
    if len(later):
        result[later] = medians(known[: blocks * window].reshape(blocks, window))[later // window - 1]
    return result


def progress(history: History, name: str = "train/loss", span: int = 10) -> tuple[NDArray[np.int64], Array]:
    """How much of its first level a loss has come down by, at each of its steps; 0.5 is half, negative is worse.

    The first level is the lowest of: the first value (an explosion comes after it), the median of the first ``span``,
    and chance, where it is known (a start above it is one of bad weights, and to come down to it is to learn nothing).
    The present level is the median of the last ``span``, by blocks.
    """
    steps, values = history.series(name)
    start = float(np.fmin.reduce([*values[np.isfinite(values)][:1], median(values[:span])]))
    start = float(np.fmin(start, _chance(history, start)))
    here = preceding_median(values, span)
    here[-1] = median(values[-span:])
    return steps, (start - here) / max(abs(start), np.finfo(float).tiny)


def _chance(history: History, start: float) -> float:
    """The cross-entropy of not knowing anything, NaN where it is not known.

    A loss that starts far above it may be logged as a sum.
    """
    classes, loss = history.facts.get("classes"), history.facts.get("loss")
    entropy = loss in ("CrossEntropyLoss", "NLLLoss") and history.facts.get("reduction") == "mean"
    if not entropy or not isinstance(classes, int) or classes < 2:
        return float("nan")
    chance = math.log(classes)
    return chance if start < 4 * chance else float("nan")


def rejected_steps(history: History) -> NDArray[np.int64]:
    """Steps that the loss scaler or the medic did not take: they changed nothing."""
    if "optimizer/skipped" not in history:
        return np.empty(0, dtype=np.int64)
    steps, skipped = history.series("optimizer/skipped")
    return np.asarray(steps[skipped > 0])


def in_a_row(flags: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Flags that end a run of at least ``count`` in a row."""
    return often(flags, count, count)


def often(flags: NDArray[np.bool_], count: int, among: int) -> NDArray[np.bool_]:
    """Flags that are at least the ``count``-th among the ``among`` newest."""
    total = np.cumsum(flags)
    before = np.concatenate([np.zeros(among, dtype=total.dtype), total])[: len(total)]
    return np.asarray(flags & (total - before >= count))


def medians(rows: Array) -> Array:
    """The median of each row's finite values (rows x values -> rows), NaN for rows without any."""
    ordered = np.sort(np.where(np.isfinite(rows), rows, np.nan), axis=1)  # NaN sorts last
    count = np.isfinite(ordered).sum(axis=1)
    row = np.arange(len(rows))
    middle = (ordered[row, np.maximum(count - 1, 0) // 2] + ordered[row, np.minimum(count // 2, rows.shape[1] - 1)]) / 2
    return np.where(count > 0, middle, np.nan)


def median(values: Array) -> float:
    """The median of the finite values, NaN if there are none."""
    return float(medians(values[None, :])[0]) if len(values) else float("nan")
