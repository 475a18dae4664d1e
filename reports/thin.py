"""Fewer points for a picture, honestly: extremes, values that are not finite and gaps are kept where they were."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import Array, LayerTable, Series

GAP = 8.0
"""A hole is a distance this many times as long as those before it and those after it."""
NEIGHBOURS = 8


def gaps(steps: NDArray[np.int64], most: int = 50) -> list[int]:
    """Indices ``i`` where values are missing between ``i`` and ``i + 1``; of very many the widest, in order.

    A log that gets sparser, and stays so, has no hole there: a hole is wide against both of its sides.
    """
    distance = np.diff(steps).astype(np.float64)
    if len(distance) < 2 * NEIGHBOURS + 1:
        return []
    middle = np.median(np.lib.stride_tricks.sliding_window_view(distance, NEIGHBOURS), axis=1)
    after = np.r_[middle[1:], np.full(NEIGHBOURS, np.nan)]  # of the distances that follow each one
    before = np.r_[np.full(NEIGHBOURS, np.nan), middle[:-1]]
    wide = distance > GAP * np.maximum(np.fmax(before, after), 1)
    found = np.flatnonzero(wide)
    widest = found[np.argsort(-distance[found], kind="stable")[:most]]
    return sorted(widest.tolist())


def points(series: Series, most: int, keep: Sequence[int] = ()) -> Series:
    """``series`` with about ``most`` points: of each stretch of steps the smallest, the largest, the first not finite.

    The first and the last point and the indices ``keep`` stay. Every value is one that was recorded, at its own step.
    """
    steps, values = series
    if len(steps) <= most:
        return series
    stretch = _stretches(steps, max(1, most // 2))
    starts = np.flatnonzero(np.r_[True, np.diff(stretch) > 0])
    lengths = np.diff(np.r_[starts, len(steps)])
    finite = np.isfinite(values)
    chosen = [np.array([0, len(steps) - 1, *keep], dtype=np.intp), _first(~finite, stretch)]
    for end, missing in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        extreme = np.repeat(end.reduceat(np.where(finite, values, missing), starts), lengths)
        chosen.append(_first(finite & (values == extreme), stretch))
    at = np.unique(np.concatenate(chosen))
    return Series(steps[at], values[at])


def _first(holds: NDArray[np.bool_], stretch: NDArray[np.int64]) -> NDArray[np.intp]:
    """Where ``holds`` is true for the first time in each stretch."""
    at = np.flatnonzero(holds)
    new = np.r_[True, np.diff(stretch[at]) > 0][: len(at)]
    first: NDArray[np.intp] = at[new]
    return first


class Cells(NamedTuple):
    """A table in fewer columns: ``low`` and ``high`` are layers x columns, NaN where nothing was measured.

    ``steps`` holds the first step of each column; ``last`` is the last step of the last one.
    """

    steps: NDArray[np.int64]
    last: int
    low: Array
    high: Array

    def shown(self) -> tuple[Array, Array]:
        """For each cell the end that lies further from the middle of its layer, and the other end."""
        with np.errstate(invalid="ignore"):
            middle = _median_of_rows(self.low, self.high)
            up = self.high - middle >= middle - self.low
        return np.where(up, self.high, self.low), np.where(up, self.low, self.high)

    def on_log_scale(self) -> "Cells":
        """Decimal logarithms; minus infinity for zero, NaN for what is below it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._replace(low=np.log10(self.low), high=np.log10(self.high))


def cells(table: LayerTable, columns: int, rows: Sequence[int] | None = None) -> Cells:
    """``table`` with at most ``columns`` columns, each over a stretch of steps of equal length."""
    steps = table.steps
    values = (table.values if rows is None else table.values[:, list(rows)]).astype(np.float64).T
    if len(steps) <= columns:
        return Cells(steps, int(steps[-1]), values, values)
    starts = np.flatnonzero(np.r_[True, np.diff(_stretches(steps, columns)) > 0])
    return Cells(
        steps[starts],
        int(steps[-1]),
        np.fmin.reduceat(values, starts, axis=1),
        np.fmax.reduceat(values, starts, axis=1),
    )


def _stretches(steps: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """For each step the number of its stretch, of ``count`` of equal length."""
    first, span = float(steps[0]), float(steps[-1]) - float(steps[0]) + 1
    return np.minimum((steps.astype(np.float64) - first) / span * count, count - 1).astype(np.int64)


def _median_of_rows(low: Array, high: Array) -> Array:
    """The median of each row's finite values, 0 where it has none; as a column."""
    both = np.concatenate([low, high], axis=1)
    both = np.where(np.isfinite(both), both, np.nan)
    empty = np.isnan(both).all(axis=1)
    both[empty] = 0.0
    return np.asarray(np.nanmedian(both, axis=1)[:, None])
