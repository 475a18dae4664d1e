"""Tables of text with a header: CSV, TSV, Lightning's ``metrics.csv``, Keras' ``CSVLogger``, exports of any tool."""

import csv
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, ClassVar

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.names import canonical, step_column
from trainmedic.readers.reader import Claim, Options, Reader, encoding
from trainmedic.readers.reader import head as first_bytes
from trainmedic.readers.table import MOST_COLUMNS, Table

SPACES = " "
SEPARATORS = (",", ";", "\t", "|", SPACES)
MISSING = frozenset({"", "na", "n/a", "null", "none", "-", "--"})
LONGEST_HEADER = 1 << 20
BLOCK = 8_192


class CsvReader(Reader):
    name = "csv"
    supports = "CSV, TSV or semicolon-separated text with a header (Lightning metrics.csv, Keras CSVLogger, exports)"
    patterns: ClassVar[tuple[str, ...]] = ("*.csv", "*.tsv")
    rank = 9

    def declines(self, path: Path, head: bytes) -> str | None:
        text = head.decode(encoding(head), errors="replace")
        if "\0" in text:
            return "it is binary"
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            return "it is empty"
        separator = _separator(lines[0])
        header = _cells(lines[0], separator)
        if header[0].startswith(("{", "[", "<")) or re.search(r"[:=]\s*-?\d", lines[0]):
            return "its first line is not the header of a table"
        if all(_number(name, separator) is not None for name in header):
            return "its first line holds numbers, not the names of columns"
        if separator == SPACES and any(re.search(r"\d|[=:(]", name) for name in header):
            return "its first line is prose or numbers, not the names of columns"
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

    def read(self, path: Path, options: Options) -> list[History]:
        return self.table(path).histories()

    def table(self, path: Path) -> Table:
        """The numbers of the file by row and column."""
        with open(path, "rb") as file:
            said = encoding(file.read(4))
        with open(path, encoding=said, errors="replace", newline="") as text:
            return _Rows(text).table


def header(head: bytes) -> list[str]:
    """The names in the first line of a table that begins with these bytes."""
    lines = head.decode(encoding(head), errors="replace").splitlines()
    first = next((line for line in lines if line.strip()), "")
    return _cells(first, _separator(first))


class _Rows:
    """A table, read into columns some thousand lines at a time; where each cell is a number, by whole columns."""

    def __init__(self, file: IO[str]) -> None:
        self.line = 0
        self.last = ""
        self.broken = False
        first = next((line for line in self._numbered(file) if line.strip()), "")
        if len(first) > LONGEST_HEADER:
            raise UnreadableError(f"the header has {len(first):,} characters")
        self.separator = _separator(first)
        self.header = _cells(first, self.separator)
        if len(self.header) > MOST_COLUMNS:
            raise UnreadableError(f"{len(self.header):,} columns, more than the {MOST_COLUMNS:,} that are read")
        self.table = Table(_unique(self.header))
        self.names = list(self.table.columns)
        clock = step_column(self.names)
        self.clock = None if clock is None else self.names.index(clock)
        self.texts = dict.fromkeys(self.names, 0)
        self.longer = 0
        self._read(file)
        self._note()

    def _numbered(self, lines: Iterable[str]) -> Iterator[str]:
        for self.last in lines:
            self.line += 1
            yield self.last

    def _read(self, file: IO[str]) -> None:
        """Read in blocks of lines, and from the first quote on as one stream: a quoted cell may hold ends of lines."""
        while not self.broken and (block := list(islice(file, BLOCK))):
            if any('"' in line for line in block):
                self._take_rows(chain(block, file))
            elif self._take_columns(block):
                self.line += len(block)
            else:
                self._take_rows(block)

    def _take_columns(self, block: Sequence[str]) -> bool:
        """Take lines that all hold numbers, or nothing, in as many cells as the header; or else leave them alone."""
        if self.separator == SPACES or len(self.header) < 2 or not block[-1].endswith(("\n", "\r")):
            return False
        blanks = self.separator * (len(self.header) - 1)
        text = "".join(block)
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if "_" in text or f"\n{blanks}\n" in f"\n{text}":  # Python reads 1_000 as a number; a blank row is no row
            return False
        if {line.count(self.separator) for line in block} != {len(blanks)}:
            return False
        cells = text.replace("\n", self.separator).split(self.separator)
        cells.pop()  # what is behind the last end of line
        try:
            columns = [self._column(cells[at :: len(self.header)]) for at in range(len(self.header))]
        except ValueError:
            return False
        for into, (rows, values) in zip(self.table.columns.values(), columns, strict=True):
            into.rows.extend(rows)
            into.values.extend(values)
        self.table.lines.extend(range(self.line + 1, self.line + len(block) + 1))
        self.table.count += len(block)
        return True

    def _column(self, cells: list[str]) -> tuple["array[int]", "array[float]"]:
        """Rows and numbers of those cells of one column that are not empty; ``ValueError`` where one is no number."""
        if "" in cells:
            rows = array("q", [row for row, cell in enumerate(cells, start=self.table.count) if cell])
            return rows, array("d", map(float, filter(None, cells)))
        return array("q", range(self.table.count, self.table.count + len(cells))), array("d", map(float, cells))

    def _take_rows(self, lines: Iterable[str]) -> None:
        """Take lines cell by cell, without blank ones and repeated headers (as appending to a log leaves them)."""
        for cells in self._split(self._numbered(lines)):
            if not any(map(str.strip, cells)) or _stripped(cells) == self.header:
                continue
            if not self.last.endswith(("\n", "\r", '"')):
                self.table.notes.append(f"the log ends in the middle of line {self.line:,}: its end was not read")
                cells = cells[:-1]  # who knows how the number went on
                if self.clock is not None and self.clock >= len(cells):
                    continue
            self.longer += len(cells) > len(self.header)
            self.table.add(self._numbers(cells), self.line)

    def _split(self, lines: Iterator[str]) -> Iterator[list[str]]:
        if self.separator == SPACES:
            yield from map(str.split, lines)
            return
        try:
            yield from csv.reader(lines, delimiter=self.separator)
        except csv.Error as error:
            self.table.notes.append(f"not read from line {self.line:,} on: {error}")
            self.broken = True

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
            self.table.notes.append(f"{self.longer:,} rows have more cells than the header; these cells were not read")
        mixed = [name for name in self.names if self.texts[name] and self.table.columns[name].rows]
        self.table.notes += [f"{self.texts[name]:,} cells of column {name!r} hold no number" for name in mixed[:10]]


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
    names = header(head)
    by_word = any(word in name.lower() for name in names for word in ("loss", "acc"))
    known = set(canonical(names).values())
    return len(known) > 1 or (step_column(names) is not None and (bool(known) or by_word))


def _unique(names: Iterable[str]) -> list[str]:
    """Names of columns: an empty one by its place, a second one of the same name with its place behind it."""
    unique: dict[str, None] = {}
    for place, name in enumerate(names, start=1):
        named = name or f"column {place}"
        unique[named if named not in unique else f"{named} (column {place})"] = None
    return list(unique)
