"""Tables of text with a header: CSV, TSV, Lightning's ``metrics.csv``, Keras' ``CSVLogger``, exports of any tool."""

import csv
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.names import canonical, counts_epochs, step_column
from trainmedic.readers.reader import Claim, Reader
from trainmedic.readers.reader import head as first_bytes

SEPARATORS = (",", ";", "\t", "|")
MISSING = frozenset({"", "na", "n/a", "null", "none", "-", "--"})
MOST_COLUMNS = 20_000
LONGEST_HEADER = 1 << 20
LARGEST_STEP = 2**53


class CsvReader(Reader):
    name = "csv"
    supports = "CSV, TSV or semicolon-separated text with a header (Lightning metrics.csv, Keras CSVLogger, exports)"
    patterns = ("*.csv", "*.tsv")
    rank = 9

    def declines(self, path: Path, head: bytes) -> str | None:
        text = head.decode(_encoding(head), errors="replace")
        if "\0" in text:
            return "it is binary"
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            return "it is empty"
        separator = _separator(lines[0])
        header = _cells(lines[0], separator)
        if header[0].startswith(("{", "[", "<")):
            return "its first line is not the header of a table"
        if all(_number(name, separator) is not None for name in header):
            return "its first line holds numbers, not the names of columns"
        if len(lines) < 2:
            return "there is no row below its first line"
        if not any(_is_row(line, separator, len(header)) for line in lines[1:20]):
            return "no row below its first line holds numbers in as many columns"
        return None

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """In a directory, only tables that name something that is known from trainings: data sets are CSV too."""
        claim = super().claim(directory, files, folders)
        logs = tuple(name for name in claim.logs if _is_training(first_bytes(directory / name)))
        return Claim(logs, frozenset(logs))

    def read(self, path: Path) -> list[History]:
        with open(path, "rb") as file:
            encoding = _encoding(file.read(4))
        with open(path, encoding=encoding, errors="replace", newline="") as text:
            return [_Table(text).history()]


class _Lines:
    """The lines of a file, one by one; knows the number of the last one, and whether it was a whole line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.number = 0
        self.whole = True

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            self.whole = line.endswith(("\n", "\r"))
            yield line


class _Table:
    """A table, read row by row into one array of numbers and one of row numbers per column."""

    def __init__(self, file: IO[str]) -> None:
        self.lines = _Lines(file)
        first = next((line for line in self.lines if line.strip()), "")
        if len(first) > LONGEST_HEADER:
            raise UnreadableError(f"the header has {len(first):,} characters")
        self.separator = _separator(first)
        self.header = _cells(first, self.separator)
        if len(self.header) > MOST_COLUMNS:
            raise UnreadableError(f"{len(self.header):,} columns, more than the {MOST_COLUMNS:,} that are read")
        self.names = _unique(self.header)
        self.values = [array("d") for _ in self.names]
        self.rows = [array("q") for _ in self.names]
        self.texts = dict.fromkeys(self.names, 0)
        self.notes: list[str] = []
        self.count = 0
        for cells in self._whole_rows():
            self._take(cells)
            self.count += 1

    def _whole_rows(self) -> Iterator[Sequence[str]]:
        """The rows below the header, without blank ones and repeated headers (as appending to a log leaves them)."""
        longer = 0
        try:
            for cells in csv.reader(self.lines, delimiter=self.separator):
                if [cell.strip() for cell in cells] == self.header or not any(map(str.strip, cells)):
                    continue
                if len(cells) < len(self.header) and not self.lines.whole:
                    cells = cells[:-1]  # the file ends here: who knows how the number went on
                    self.notes.append(f"the log ends in the middle of line {self.lines.number:,}")
                longer += len(cells) > len(self.header)
                yield cells
        except csv.Error as error:
            self.notes.append(f"not read from line {self.lines.number:,} on: {error}")
        if longer:
            self.notes.append(f"{longer:,} rows have more cells than the header; these cells were not read")

    def _take(self, cells: Sequence[str]) -> None:
        row = self.count
        for cell, name, values, rows in zip(cells, self.names, self.values, self.rows, strict=False):
            value = _number(cell, self.separator) if cell else None
            if value is not None:
                values.append(value)
                rows.append(row)
            elif cell.strip().lower() not in MISSING:
                self.texts[name] += 1

    def history(self) -> History:
        history = History()
        clock = step_column(self.names)
        steps = self._steps(clock)
        history.facts["time"] = "row"
        if steps is not None and clock is not None:
            history.facts["time"] = "epoch" if counts_epochs(clock) else "step"
            self._note_restarts(history, steps)
        known = canonical([name for name in self.names if steps is None or name != clock])
        for name, values, rows in zip(self.names, self.values, self.rows, strict=True):
            if not values or (name == clock and steps is not None):
                continue
            at = np.array(rows, dtype=np.int64)
            history.add_series(known.get(name, name), at if steps is None else steps[at], np.array(values))
        history.facts["names"] = {series: name for name, series in known.items() if series in history}
        self._note_texts()
        if self.notes:
            history.facts["notes"] = self.notes
        return history

    def _steps(self, clock: str | None) -> NDArray[np.int64] | None:
        """The step of every row, as the clock says, or as in the row before where it says nothing.

        ``None`` where the number of the row serves better: no clock, one with fractions, or an epoch's number on each
        of its many rows.
        """
        if clock is None or not self.count:
            return None
        at = self.names.index(clock)
        said = np.array(self.values[at])
        usable = np.abs(said) <= LARGEST_STEP
        said, rows = said[usable], np.array(self.rows[at], dtype=np.int64)[usable]
        if not len(said) or (said != np.floor(said)).any():
            return None
        last_said = np.searchsorted(rows, np.arange(self.count), side="right") - 1
        steps = said.astype(np.int64)[np.maximum(last_said, 0)]
        return None if counts_epochs(clock) and self._repeats(steps, at) else steps

    def _repeats(self, steps: NDArray[np.int64], clock_at: int) -> bool:
        """Whether a column has several values in most of the epochs."""
        columns = [np.array(rows, dtype=np.int64) for at, rows in enumerate(self.rows) if at != clock_at and rows]
        return any(len(np.unique(steps[rows])) <= len(rows) / 2 for rows in columns)

    def _note_restarts(self, history: History, steps: NDArray[np.int64]) -> None:
        back = np.flatnonzero(np.diff(steps) < 0)
        if len(back):
            history.facts["restarts"] = [
                {"row": int(row) + 1, "from": int(steps[row]), "to": int(steps[row + 1])} for row in back[:1_000]
            ]
            self.notes.append(f"the step falls back {len(back):,} times, first from {steps[back[0]]:,}")

    def _note_texts(self) -> None:
        mixed = [n for n, v in zip(self.names, self.values, strict=True) if v and self.texts[n]]
        self.notes += [f"{self.texts[name]:,} cells of column {name!r} hold no number" for name in mixed[:10]]


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _separator(header: str) -> str:
    """The separator that gives the header the most columns; a comma for a single one."""
    return max(SEPARATORS, key=lambda separator: len(_cells(header, separator)))


def _cells(line: str, separator: str) -> list[str]:
    try:
        cells = next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        cells = line.split(separator)
    stripped = [cell.strip() for cell in cells] or [""]
    return [stripped[0].lstrip("#").strip(), *stripped[1:]]


def _number(cell: str, separator: str) -> float | None:
    """The number in a cell, exactly; ``None`` where there is none. With ``;`` a decimal comma is one."""
    try:
        return float(cell) if "_" not in cell else None  # Python reads 1_000 as a number, nobody else does
    except ValueError:
        if separator == ";" and cell.count(",") == 1 and "." not in cell and "_" not in cell:
            return _number(cell.replace(",", "."), "")
        return None


def _is_row(line: str, separator: str, columns: int) -> bool:
    cells = _cells(line, separator)
    return len(cells) == columns and any(_number(cell, separator) is not None for cell in cells)


def _is_training(head: bytes) -> bool:
    line = next((line for line in head.decode(_encoding(head), errors="replace").splitlines() if line.strip()), "")
    names = _cells(line, _separator(line))
    by_word = any(word in name.lower() for name in names for word in ("loss", "acc"))
    return bool(canonical(names)) or (step_column(names) is not None and by_word)


def _unique(names: Iterable[str]) -> list[str]:
    """Names of columns: an empty one by its place, a second one of the same name with its place behind it."""
    unique: dict[str, None] = {}
    for place, name in enumerate(names, start=1):
        named = name or f"column {place}"
        unique[named if named not in unique else f"{named} (column {place})"] = None
    return list(unique)
