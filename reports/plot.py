"""Several curves over each other in characters: each drawn by its own letter."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import Series
from trainmedic.reports.sparkline import spans_decades
from trainmedic.reports.wording import number

SEVERAL = "*"
TAIL = 0.02
"""Share of the columns at the start, whose values may lie above the picture: the rest would be a flat line."""


def overlay(curves: Mapping[str, Series], width: int, height: int = 12) -> list[tuple[str, str]]:
    """Lines (axis label, drawing) of at most ``width`` characters each, the steps below. Empty without a finite value.

    ``curves``: one letter -> its curve. A column shows the median of the finite values that fall into it; ``*`` is
    where several curves are. By the logarithm, where values span decades; the axis says so.
    """
    axis = 9
    columns = max(10, width - axis - 2)
    ends = [(int(c.steps[0]), int(c.steps[-1])) for c in curves.values() if len(c.steps)]
    if not ends:
        return []
    first, last = min(a for a, _ in ends), max(b for _, b in ends)
    drawn = {letter: _columns(curve, first, last, columns) for letter, curve in curves.items()}
    everything = np.concatenate(list(drawn.values()))
    later = np.concatenate([rows[int(TAIL * columns) + 1 :] for rows in drawn.values()])
    shown = later[np.isfinite(later)] if np.isfinite(later).any() else everything[np.isfinite(everything)]
    if not len(shown):
        return []
    logarithm = spans_decades(shown)
    scale = np.log10 if logarithm else np.positive
    low, high = float(scale(shown.min())), float(scale(shown.max()))
    high = high if high > low else low + (abs(low) or 1.0)
    grid = [[" "] * columns for _ in range(height)]
    for letter, rows in drawn.items():
        for column in np.flatnonzero(np.isfinite(rows)).tolist():
            value = rows[column]
            place = (float(scale(value)) - low) / (high - low) if not logarithm or value > 0 else 0.0
            line = grid[height - 1 - round(min(max(place, 0.0), 1.0) * (height - 1))]
            line[column] = letter[:1] if line[column] in (" ", letter[:1]) else SEVERAL
    marks = {0: high, height // 2: (low + high) / 2, height - 1: low}
    lines = [
        (number(10 ** marks[i] if logarithm else marks[i]) if i in marks else "", "".join(line).rstrip())
        for i, line in enumerate(grid)
    ]
    left, right = f"{first:,}", f"step {last:,}"
    steps = left + " " * max(1, columns - len(left) - len(right)) + right
    return [*lines, ("log" if logarithm else "", steps)]


def _columns(curve: Series, first: int, last: int, columns: int) -> NDArray[np.float64]:
    """(columns,): the median of the finite values in each; between two of them the straight line; NaN elsewhere."""
    finite = np.isfinite(curve.values)
    steps, values = curve.steps[finite], curve.values[finite]
    if not len(steps):
        return np.full(columns, math.nan)
    place = np.minimum((steps - first) * columns // max(1, last - first + 1), columns - 1)
    used, starts = np.unique(place, return_index=True)
    heights = np.array([np.median(part) for part in np.split(values, starts[1:])])
    inside = np.arange(columns)
    between = np.interp(inside, used, heights)
    return np.where((inside >= used[0]) & (inside <= used[-1]), between, math.nan)
