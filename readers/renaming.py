"""Names that the user gives: for logs whose names mean something else than they seem to."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import History, Series

Integers = NDArray[np.int64]

CLOCK = "step"
"""The name by which a column is made the clock."""


def renamed(history: History, names: Mapping[str, str]) -> History:
    """The same run with series under other names, ``{name in the log: our name}``.

    A series that stood under such a name gets its own back. The one that is to be the clock gives the steps of all
    others. The fact ``"renamed"`` holds the names of the log that were found in it.
    """
    known: dict[str, str] = dict(history.facts.get("names") or {})
    own = {series: known.get(series, series) for series in history.names()}
    wanted = {series: names[name] for series, name in own.items() if name in names}
    if not wanted:
        return history
    clock = next((series for series, ours in wanted.items() if ours == CLOCK), None)
    counted = _Clock(history.series(clock)) if clock else None
    result = history.without_series()
    taken: dict[str, str] = {}
    for series, name in own.items():
        if series == clock:
            continue
        place = wanted.get(series, name if series in wanted.values() else series)
        steps, values = history.series(series)
        result.add_series(place, counted.at(steps) if counted else steps, values)
        if place != name or place in known:
            taken[place] = name
    if counted:
        result.facts["time"] = "step"
        result.lines = counted.lines(history.lines)
    result.facts["names"] = taken
    result.facts["renamed"] = [own[series] for series in wanted]
    return result


class _Clock:
    """Steps as another series counts them: each value counts until the next one."""

    def __init__(self, series: Series) -> None:
        whole = np.isfinite(series.values) & (np.abs(series.values) <= 2**53)
        self.before, self.after = series.steps[whole], series.values[whole].astype(np.int64)

    def at(self, steps: Integers) -> Integers:
        """What it counts at these steps of the log."""
        if not len(self.before):
            return steps
        told: Integers = self.after[np.maximum(np.searchsorted(self.before, steps, side="right") - 1, 0)]
        return told

    def lines(self, lines: Integers | None) -> Integers | None:
        """Lines by the steps that it counts."""
        if lines is None:
            return None
        steps, first = np.unique(self.at(lines[0]), return_index=True)
        return np.stack([steps, lines[1][first]])
