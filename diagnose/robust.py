"""Robust statistics that several rules share. All take plain arrays and hold for few values, outliers and NaN."""

import numpy as np
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
    result = np.full(len(values), np.nan)
    known = np.where(np.isfinite(values), values, np.nan)
    for i in range(1, min(len(values), 2 * window)):
        result[i] = _median(known[max(0, i - window) : i])
    blocks = len(values) // window
    if blocks > 1:
        with np.errstate(all="ignore"):
            medians = _medians(known[: blocks * window].reshape(blocks, window))
        later = np.arange(2 * window, len(values))
        result[later] = medians[later // window - 1]
    return result


def progress(history: History, name: str = "train/loss", span: int = 10) -> tuple[NDArray[np.int64], Array]:
    """How much of its first level a loss has come down by, at each of its steps; 0.5 is half, negative is worse.

    The first level is the median of the first ``span`` values, the present one that of the last ``span``, by blocks.
    """
    steps, values = history.series(name)
    start = _median(values[:span])
    here = preceding_median(values, span)
    here[-1] = _median(values[-span:])
    return steps, (start - here) / max(abs(start), np.finfo(float).tiny)


def in_a_row(flags: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Flags that end a run of at least ``count`` in a row."""
    total = np.cumsum(flags)
    before = np.concatenate([np.zeros(count, dtype=total.dtype), total])[: len(total)]
    return flags & (total - before >= count)


def _median(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _medians(rows: Array) -> Array:
    """The median of each row's finite values, NaN for rows without any."""
    result = np.full(len(rows), np.nan)
    filled = np.isfinite(rows).all(axis=1)
    result[filled] = np.median(rows[filled], axis=1)
    for i in np.flatnonzero(~filled):
        result[i] = _median(rows[i])
    return result
