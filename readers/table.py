"""Rows of numbers, however a format wrote them, as histories: which column is the clock, and where a run begins."""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.filling import fill
from trainmedic.readers.names import canonical, counts_epochs, step_column

LARGEST_STEP = 2**53
MOST_COLUMNS = 20_000
MOST_RUNS = 1_000
MOST_RESTARTS = 1_000

Integers = NDArray[np.int64]


@dataclass
class Column:
    """The numbers of one column, and the row of each."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))


class Table:
    """The numbers of one log, row by row; a row need not have a number in every column.

    ``lines`` holds the line of the file that each row ends on, for formats that have lines. ``time`` says what the
    clock counts where the reader knows; by default its name says whether it counts steps or epochs.
    """

    def __init__(self, columns: Iterable[str] = (), *, clock: str | None = None, time: str | None = None) -> None:
        self.columns: dict[str, Column] = {name: Column() for name in columns}
        self.lines: array[int] = array("q")
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}
        self.count = 0
        self._clock, self._time = clock, time

    def add(self, numbers: Mapping[str, float], line: int | None = None) -> None:
        """Add one row."""
        for name, value in numbers.items():
            column = self.columns.get(name) or self._new_column(name)
            column.rows.append(self.count)
            column.values.append(value)
        if line is not None:
            self.lines.append(line)
        self.count += 1

    def use_clock(self, name: str, time: str) -> None:
        """Take this column for the clock, counting what ``time`` says ("step", "epoch", "batch")."""
        self._clock, self._time = name, time

    def _new_column(self, name: str) -> Column:
        if len(self.columns) >= MOST_COLUMNS:
            raise UnreadableError(f"more than the {MOST_COLUMNS:,} columns that are read")
        return self.columns.setdefault(name, Column())

    def histories(self) -> list[History]:
        """The runs in this table: one, or several where the clock starts over from where it began."""
        filled = {name: column for name, column in self.columns.items() if column.rows}
        clock = self._clock or step_column(filled)
        steps = None if clock is None else self._steps(clock, filled)
        if steps is None:
            clock, time = None, "row"
        else:
            time = self._time or ("epoch" if counts_epochs(clock or "") else "step")
        series = {name: (_integers(c.rows), np.array(c.values)) for name, c in filled.items() if name != clock}
        names = canonical(list(series), {name: len(rows) for name, (rows, _) in series.items()})
        at = np.arange(self.count) if steps is None else steps
        back = _fallbacks(at, series)
        starts = _starts(at, back)
        ends = [*starts[1:], self.count]
        histories = [
            self._history(series, names, at, back, start, end) for start, end in zip(starts, ends, strict=True)
        ]
        for number, history in enumerate(histories, start=1):
            history.facts["time"] = time
            if len(histories) > 1:
                history.facts["run"] = number
                history.facts.setdefault("notes", []).append(f"run {number:,} of {len(histories):,} in this file")
        return histories

    def _history(
        self,
        series: Mapping[str, tuple[Integers, NDArray[np.float64]]],
        names: Mapping[str, str],
        steps: Integers,
        back: Integers,
        start: int,
        end: int,
    ) -> History:
        """The run in the rows from ``start`` to before ``end``."""
        history = History()
        history.facts.update(self.facts)
        parts = {name: slice(*np.searchsorted(rows, (start, end))) for name, (rows, _) in series.items()}
        told = [(name, part, *series[name]) for name, part in parts.items() if part.start < part.stop]
        fill(history, [(name, steps[rows[part]], values[part]) for name, part, rows, values in told], names)
        history.facts["names"] = {ours: name for name, ours in names.items() if ours in history}
        notes = list(self.notes)
        fell = back[(back > start) & (back < end)]
        if len(fell):
            history.facts["restarts"] = [
                {"row": int(row), "from": int(steps[row - 1]), "to": int(steps[row])} for row in fell[:MOST_RESTARTS]
            ]
            notes.append(f"the step falls back {len(fell):,} times, first from {steps[fell[0] - 1]:,}")
        if len(self.lines) == self.count:
            history.lines = _first_lines(steps[start:end], _integers(self.lines)[start:end])
        if notes:
            history.facts["notes"] = notes
        return history

    def _steps(self, clock: str, columns: Mapping[str, Column]) -> Integers | None:
        """The step of every row, as the clock says, or as in the row before where it says nothing.

        ``None`` where the number of the row serves better: a clock with fractions, an epoch's number on each of its
        many rows, or a step that starts over in every epoch.
        """
        steps = self._filled(columns.get(clock))
        if steps is None:
            return None
        if counts_epochs(clock):
            others = (_integers(other.rows) for name, other in columns.items() if name != clock)
            return None if any(_repeats(steps[rows]) for rows in others) else steps
        epochs = self._filled(next((columns[name] for name in columns if counts_epochs(name)), None))
        return None if epochs is not None and _starts_over(steps, epochs) else steps

    def _filled(self, column: Column | None) -> Integers | None:
        """(count,): the whole numbers of a column, each until the next one; ``None`` where it holds others."""
        if column is None or not column.rows:
            return None
        said = np.array(column.values)
        usable = np.abs(said) <= LARGEST_STEP
        said, rows = said[usable], _integers(column.rows)[usable]
        if not len(said) or (said != np.floor(said)).any():
            return None
        last_said = np.searchsorted(rows, np.arange(self.count), side="right") - 1
        filled: Integers = said.astype(np.int64)[np.maximum(last_said, 0)]
        return filled


def _integers(numbers: "array[int]") -> Integers:
    return np.array(numbers, dtype=np.int64)


def _repeats(steps: Integers) -> bool:
    """Whether a column has several values in most of the epochs."""
    return len(np.unique(steps)) <= len(steps) / 2


def _starts_over(steps: Integers, epochs: Integers) -> bool:
    """Whether most falls of the step come with a new epoch."""
    fell = np.diff(steps) < 0
    return bool(fell.any() and (np.diff(epochs)[fell] > 0).mean() > 0.5)


def _fallbacks(steps: Integers, series: Mapping[str, tuple[Integers, Any]]) -> Integers:
    """Rows before which the clock falls back, for at least one column that has values on both sides.

    Rows of validation written behind all rows of training are no restart: no column of theirs goes back.
    """
    back = np.flatnonzero(np.diff(steps) < 0) + 1
    confirmed: set[int] = set()
    for rows, _ in series.values() if len(back) else ():
        fell = rows[1:][np.diff(steps[rows]) < 0]
        confirmed.update(back[np.searchsorted(back, fell, side="right") - 1].tolist())
    return np.array(sorted(confirmed), dtype=np.int64)


def _starts(steps: Integers, back: Integers) -> list[int]:
    """First rows of the runs in a file: a clock that falls back to where it began counts another run."""
    starts = [0]
    for row in back.tolist():
        if steps[row] <= steps[starts[-1]]:
            starts.append(row)
    return starts if len(starts) <= MOST_RUNS else [0]


def _first_lines(steps: Integers, lines: Integers) -> Integers:
    """(2, n): each step once, ascending, and the first line that tells of it."""
    told, first = np.unique(steps, return_index=True)
    return np.stack([told, lines[first]])
