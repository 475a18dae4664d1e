"""A curve in one line of text. Gaps and values that are not finite are shown as such, never as numbers."""

import numpy as np
from numpy.typing import NDArray

BARS = "▁▂▃▄▅▆▇█"
NOT_FINITE = "×"
GAP = "·"
WIDE = 5.0
"""A gap: so many times as long as nine in ten of the stretches between neighbours."""
DECADES = 100.0
"""A quantity whose values lie further apart than this factor is drawn by its logarithm."""

Floats = NDArray[np.float64]


def sparkline(values: Floats, width: int = 40, steps: NDArray[np.int64] | None = None) -> str:
    """``values`` (n,) as at most ``width`` bars, the largest of each stretch.

    ``×`` where a stretch holds a NaN or an infinity, ``·`` where ``steps`` (n,) leave a gap. With ``steps`` a bar
    stands for as many steps as any other, else for as many values.
    """
    count = min(width, len(values))
    if not count:
        return ""
    heights, gaps = _heights(values, np.arange(len(values)) if steps is None else steps, count)
    finite = heights[np.isfinite(heights)]
    low, span = (finite.min(), finite.max() - finite.min()) if len(finite) else (0.0, 0.0)
    levels = np.nan_to_num((heights - low) / (span or 1.0)) * (len(BARS) - 1)
    return "".join(
        GAP if gap else BARS[round(level)] if np.isfinite(height) else NOT_FINITE
        for height, level, gap in zip(heights, levels, gaps, strict=True)
    )


def spans_decades(values: Floats) -> bool:
    """Whether a curve is better drawn by its logarithm: all of it positive, over more than two orders."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and 0 < float(finite.min()) * DECADES < float(finite.max())


def _heights(values: Floats, steps: NDArray[np.int64], count: int) -> tuple[Floats, NDArray[np.bool_]]:
    """For each of ``count`` columns its largest value (NaN: one that is not finite), and whether it lies in a gap."""
    between = np.diff(steps)
    last = float(np.median(between)) if len(between) else 1.0  # the newest value stands for as long as others do
    edges = steps[0] + (steps[-1] - steps[0] + max(last, 1.0)) * np.arange(count + 1) / count
    starts = np.searchsorted(steps, np.ceil(edges[:-1] - 1e-9))
    ends = np.append(starts[1:], len(steps))
    usual = float(np.quantile(between, 0.9)) if len(between) else 0.0
    heights, gaps = np.full(count, np.nan), np.zeros(count, dtype=bool)
    for column, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start < end:
            part = values[start:end]
            heights[column] = part.max() if np.isfinite(part).all() else np.nan
        else:
            heights[column] = heights[column - 1]
            gaps[column] = steps[start] - steps[start - 1] > WIDE * usual if start < len(steps) else False
    return heights, gaps
