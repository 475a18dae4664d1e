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
Steps = NDArray[np.int64]


def sparkline(
    values: Floats,
    width: int = 40,
    steps: Steps | None = None,
    span: tuple[int, int] | None = None,
    *,
    logarithm: bool = False,
) -> str:
    """``values`` (n,) as at most ``width`` bars, the largest of each stretch.

    ``×`` where a stretch holds a NaN or an infinity, ``·`` where ``steps`` (n,) leave a gap. With ``steps`` a bar
    stands for as many steps as any other, else for as many values. With ``span``, (first, last) step, the line is
    ``width`` wide and covers just these: curves of one run lie below each other step by step.
    """
    if not len(values):
        return ""
    at = np.arange(len(values)) if steps is None else steps
    heights, gaps, empty = _heights(values, at, width if span else min(width, len(values)), span)
    if logarithm:
        heights = np.where(heights > 0, np.log10(np.maximum(heights, np.finfo(float).tiny)), heights)
    finite = heights[np.isfinite(heights)]
    low, spread = (finite.min(), finite.max() - finite.min()) if len(finite) else (0.0, 0.0)
    levels = np.nan_to_num((heights - low) / (spread or 1.0)) * (len(BARS) - 1)
    marks = np.where(
        gaps, GAP, np.where(np.isfinite(heights), np.array(list(BARS))[np.rint(levels).astype(int)], NOT_FINITE)
    )
    return "".join(np.where(empty, " ", marks)).rstrip()


def spans_decades(values: Floats) -> bool:
    """Whether a curve is better drawn by its logarithm: all of it positive, over more than two orders."""
    finite = values[np.isfinite(values)]
    return bool(len(finite)) and 0 < float(finite.min()) * DECADES < float(finite.max())


def column(step: int, span: tuple[int, int], width: int) -> int:
    """The column of a line over ``span`` in which ``step`` lies."""
    first, last = span
    return min(max((step - first) * width // max(1, last - first + 1), 0), width - 1)


def _heights(
    values: Floats, steps: Steps, count: int, span: tuple[int, int] | None
) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """For each of ``count`` columns its largest value (NaN: one that is not finite), whether it is a gap, or outside.

    Between two values that are no gap apart, the earlier one holds on.
    """
    between = np.diff(steps)
    own = float(np.median(between)) if len(between) else 1.0  # the newest value stands for as long as others do
    first, length = (
        (int(steps[0]), steps[-1] - steps[0] + max(own, 1.0)) if span is None else (span[0], span[1] - span[0] + 1)
    )
    edges = first + length * np.arange(count + 1) / count
    starts = np.searchsorted(steps, np.ceil(edges[:-1] - 1e-9))
    ends = np.append(starts[1:], len(steps))
    usual = float(np.quantile(between, 0.9)) if len(between) else 0.0
    heights = np.full(count, np.nan)
    gaps, empty = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for place, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start < end:
            part = values[start:end]
            heights[place] = part.max() if np.isfinite(part).all() else np.nan
            continue
        heights[place] = heights[place - 1] if place else 0.0
        if 0 < start < len(steps):
            gaps[place] = steps[start] - steps[start - 1] > WIDE * usual
        else:  # before the first value, or later than the last one stands for
            empty[place] = start == 0 or edges[place] >= steps[-1] + own * WIDE
    heights[empty] = np.nan
    return heights, gaps, empty
