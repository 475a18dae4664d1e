"""Tables of text with a header: CSV, TSV, Lightning's ``metrics.csv``, Keras' ``CSVLogger``, exports of any tool."""

import csv
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.names import canonical, step_column
from trainmedic.readers.reader import Claim, Reader
from trainmedic.readers.reader import head as first_bytes
from trainmedic.readers.table import MOST_COLUMNS, Table

SPACES = " "
SEPARATORS = (",", ";", "\t", "|", SPACES)
MISSING = frozenset({"", "na", "n/a", "null", "none", "-", "--"})
LONGEST_HEADER = 1 << 20
CHUNK = 4_096


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
            return _Rows(text).table.histories()


class _Lines:
    """The lines of a file, one by one; knows the number of the last one, and whether it was a whole line.

    ``underscored`` tells whether any line so far held a ``_``: only then may a cell look like a number to Python alone.
    """

    def __init__(self, file: IO[str], spaced: bool = False) -> None:
        self._file = file
        self.spaced = spaced
        self.number = 0
        self.whole = True
        self.underscored = False

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            if "_" in line:
                self.underscored = True
            self.whole = line.endswith(("\n", "\r"))
            yield "\t".join(line.split()) if self.spaced else line


class _Rows:
    """A table, read into columns a few thousand rows at a time: whole columns of numbers are converted at once."""

    def __init__(self, file: IO[str]) -> None:
        self.lines = _Lines(file)
        first = next((line for line in self.lines if line.strip()), "")
        if len(first) > LONGEST_HEADER:
            raise UnreadableError(f"the header has {len(first):,} characters")
        self.separator = _separator(first)
        self.header = _cells(first, self.separator)
        if len(self.header) > MOST_COLUMNS:
            raise UnreadableError(f"{len(self.header):,} columns, more than the {MOST_COLUMNS:,} that are read")
        self.table = Table(_unique(self.header))
        self.names = list(self.table.columns)
        self.texts = dict.fromkeys(self.names, 0)
        self.longer = 0
        self.lines.spaced, self.lines.underscored = self.separator == SPACES, False
        for rows, lines in self._chunks():
            if not self._take_columns(rows, lines):
                self._take_rows(rows, lines)
        self._note()

    def _chunks(self) -> Iterator[tuple[list[list[str]], list[int]]]:
        """Rows of cells, and the line that each ends on."""
        reader = csv.reader(self.lines, delimiter="\t" if self.separator == SPACES else self.separator)
        rows: list[list[str]] = []
        at: list[int] = []
        try:
            for cells in reader:
                rows.append(cells)
                at.append(self.lines.number)
                if len(rows) == CHUNK:
                    yield rows, at
                    rows, at = [], []
        except csv.Error as error:
            self.table.notes.append(f"not read from line {self.lines.number:,} on: {error}")
        if rows and len(rows[-1]) < len(self.header) and not self.lines.whole and any(map(str.strip, rows[-1])):
            rows[-1] = rows[-1][:-1]  # the file ends here: who knows how the number went on
            self.table.notes.append(f"the log ends in the middle of line {self.lines.number:,}")
        yield rows, at

    def _take_columns(self, rows: Sequence[Sequence[str]], lines: Sequence[int]) -> bool:
        """Take rows of equal length column by column; ``False``, and nothing taken, where a cell needs a closer look."""
        if self.lines.underscored or set(map(len, rows)) != {len(self.header)} or not all(map(any, rows)):
            return False
        numbers: list[tuple[Iterable[int], array[float]]] = []
        for column in zip(*rows, strict=True):
            try:
                if "" in column:
                    filled = [row for row, cell in enumerate(column, start=self.table.count) if cell]
                    numbers.append((filled, array("d", map(float, filter(None, column)))))
                else:
                    numbers.append((range(self.table.count, self.table.count + len(rows)), array("d", map(float, column))))
            except ValueError:
                return False
        for into, (at, values) in zip(self.table.columns.values(), numbers, strict=True):
            into.rows.extend(at)
            into.values.extend(values)
        self.table.lines.extend(lines)
        self.table.count += len(rows)
        return True

    def _take_rows(self, rows: Iterable[Sequence[str]], lines: Iterable[int]) -> None:
        """Take rows cell by cell, without blank ones and repeated headers (as appending to a log leaves them)."""
        for cells, line in zip(rows, lines, strict=True):
            if any(map(str.strip, cells)) and _stripped(cells) != self.header:
                self.longer += len(cells) > len(self.header)
                self.table.add(self._numbers(cells), line)

    def _numbers(self, cells: Iterable[str]) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for name, cell in zip(self.names, cells, strict=False):
            value = _number(cell, self.separator) if cell else None
            if value is not None:
                numbers[name] = value
            elif cell.strip().lower() not in MISSING:
                self.texts[name] += 1
        return numbers

    def _note(self) -> None:
        if self.longer:
            self.table.notes.append(
                f"{self.longer:,} rows have more cells than the header; these cells were not read"
            )
        mixed = [name for name in self.names if self.texts[name] and self.table.columns[name].rows]
        self.table.notes += [f"{self.texts[name]:,} cells of column {name!r} hold no number" for name in mixed[:10]]


def _encoding(head: bytes) -> str:
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _separator(header: str) -> str:
    """The separator that gives the header the most columns; a comma for a single one.

    Spaces only where nothing else is in question: other headers hold names of several words.
    """
    best = max(SEPARATORS[:-1], key=lambda separator: len(_cells(header, separator)))
    return best if len(_cells(header, best)) > 1 or len(header.split()) < 2 else SPACES


def _cells(line: str, separator: str) -> list[str]:
    if separator == SPACES:
        return line.lstrip("#").split() or [""]
    try:
        cells = next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        cells = line.split(separator)
    return _stripped(cells) or [""]


def _stripped(cells: Sequence[str]) -> list[str]:
    stripped = [cell.strip() for cell in cells]
    return [stripped[0].lstrip("#").strip(), *stripped[1:]] if stripped else []


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
