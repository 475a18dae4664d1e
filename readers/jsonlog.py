"""JSON Lines, arrays of objects and objects of lists: mmengine, Detectron2, LLaMA-Factory, Keras, exports."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.cutoff import before_the_cut
from trainmedic.readers.names import EPOCHS, STEPS, VALIDATION, canonical, step_column
from trainmedic.readers.numbers import json_number, numbers_in
from trainmedic.readers.reader import Claim, Options, Reader
from trainmedic.readers.reader import head as first_bytes
from trainmedic.readers.table import LARGEST_STEP, Table

BLANK = b"\xef\xbb\xbf \t\r\n"
LONGEST_LINE = 64 << 20
CUT_OFF = "the log ends in the middle of a record"
KNOWN_WORDS = re.compile(r"loss|acc|reward|perplexity|ppl", re.IGNORECASE)
MODES_IN_ORDER = ("mode", "split", "phase", "stage")
MODES = frozenset(MODES_IN_ORDER)
TOTALS = {"total_steps", "max_steps"}


class JsonReader(Reader):
    name = "json"
    supports = "JSON Lines, or JSON with a list of objects or an object of lists (mmengine, Detectron2, exports)"
    patterns = ("*.jsonl", "*.ndjson", "*.json")
    rank = 6

    def declines(self, path: Path, head: bytes) -> str | None:
        start = head.lstrip(BLANK)
        if start[:1] not in (b"{", b"["):
            return "it does not begin with an object or a list"
        if b"\0" in head:
            return "it is binary"
        if not re.search(rb'"\s*:', start):
            return "there is no object in its beginning"
        return None

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """In a directory, only files with names that are known from trainings: settings and data are JSON too."""
        claim = super().claim(directory, files, folders)
        logs = tuple(name for name in claim.logs if _is_training(first_bytes(directory / name)))
        return Claim(logs, frozenset(logs))

    def line(self, path: Path, history: History, step: int) -> int | None:
        return history.line_of(step) or line_of_step(path, step)

    def read(self, path: Path, options: Options) -> list[History]:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            first = list(islice((line for line in file if line.strip()), 2))
            file.seek(0)
            if len(first) == 2 and _parsed(first[0]) is not _NOTHING:
                return _lines(file).histories()
            value, cut = _whole(file.read())
            table = _table(_records_in(value))
            table.notes += [CUT_OFF] if cut else []
            return table.histories()


def line_of_step(path: Path, step: int) -> int | None:
    """The line of a JSON text over several lines that first says this step, looked for anew."""
    names = "|".join(map(re.escape, (*STEPS, *EPOCHS)))
    said = re.compile(rf'"(?:{names})"\s*:\s*{step}(?![\d.]*[1-9eE])')
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return next((number for number, line in enumerate(file, start=1) if said.search(line)), None)


def _lines(lines: Iterable[str]) -> Table:
    """One JSON value a line; lines that are none are counted and left out."""
    table, clock = Table(), _Clock()
    broken = last = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value = _parsed(line) if len(line) <= LONGEST_LINE else _NOTHING
        if value is _NOTHING:
            broken, last = broken + 1, number
            continue
        for record in value if isinstance(value, list) else [value]:
            if isinstance(record, Mapping):
                _add(table, clock, record, number)
    if broken:
        whole = f"{broken:,} lines hold no JSON, the last of them line {last:,}"
        table.notes.append(f"the log ends in the middle of line {last:,}" if broken == 1 and last == number else whole)
    return table


def _table(records: Iterable[Mapping[str, Any]]) -> Table:
    table, clock = Table(), _Clock()
    for record in records:
        _add(table, clock, record, None)
    return table


def _add(table: Table, clock: "_Clock", record: Mapping[str, Any], line: int | None) -> None:
    numbers = clock.told(_by_role(record, numbers_in(record)))
    for theirs in TOTALS & numbers.keys():
        total = numbers.pop(theirs)
        if abs(total) <= LARGEST_STEP:
            table.facts["total_steps"] = int(total)
    if numbers:
        table.add(numbers, line)


class _Clock:
    """Steps that count something else in some rows: mmengine numbers its validations by epoch, in the same field."""

    def __init__(self) -> None:
        self.step = self.epoch = -1.0

    def told(self, numbers: dict[str, float]) -> dict[str, float]:
        step, epoch = numbers.get("step"), numbers.get("epoch")
        if step is not None and epoch is None and step == self.epoch < self.step:
            return {name: value for name, value in numbers.items() if name != "step"}
        if step is not None and epoch is not None:
            self.step, self.epoch = step, epoch
        return numbers


def _by_role(record: Mapping[str, Any], numbers: dict[str, float]) -> dict[str, float]:
    """Names with what the row says of itself: ``"mode": "val"`` makes ``loss`` ``val/loss``.

    What ``iter`` counts in such a row is the evaluation's own batches.
    """
    named = MODES & record.keys()
    said = next((str(record[key]).lower() for key in MODES_IN_ORDER if key in named), "") if named else ""
    if said not in (*VALIDATION, "test"):
        return numbers
    kept = {step_column(numbers), "epoch"} - {"iter"}
    known = canonical(list(numbers))
    return {
        name if name in kept or known.get(name, "").startswith("validation/") else f"{said}/{name}": value
        for name, value in numbers.items()
    }


def _records_in(value: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a JSON value: a list of objects, an object of lists, an object that holds one of these, or itself."""
    if isinstance(value, list):
        yield from (row for row in value if isinstance(row, Mapping))
    elif isinstance(value, Mapping):
        rows = max((part for part in value.values() if _is_rows(part)), key=len, default=None)
        columns = dict(_columns(value))
        if rows is not None:
            yield from (row for row in rows if isinstance(row, Mapping))
        elif columns:
            for place in range(max(map(len, columns.values()))):
                yield {name: column[place] for name, column in columns.items() if place < len(column)}
        else:
            yield value


def _columns(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, list[Any]]]:
    """Lists of numbers, as Keras' ``History.history`` holds them, however deep; dicts of numbers by row, as pandas'."""
    for key, part in value.items():
        name = f"{prefix}{key}"
        if isinstance(part, list) and len(part) > 1 and any(json_number(item) is not None for item in part):
            yield name, part
        elif isinstance(part, Mapping) and len(part) > 1 and all(key.isdecimal() for key in part):
            yield name, list(part.values())
        elif isinstance(part, Mapping) and depth < 8:
            yield from _columns(part, f"{name}/", depth + 1)


def _is_rows(part: Any) -> bool:
    return isinstance(part, list) and len(part) > 1 and all(isinstance(row, Mapping) for row in part)


_NOTHING = object()
_DECODER = json.JSONDecoder(parse_int=float)  # whole numbers of thousands of digits are refused as int


def _parsed(text: str) -> Any:
    """The JSON value, or ``_NOTHING``."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return _NOTHING


def _whole(text: str) -> tuple[Any, bool]:
    """A JSON value over several lines; of one that was cut off, what is whole, and that it was."""
    try:
        return _DECODER.decode(text), False
    except RecursionError as error:
        raise UnreadableError("it is nested too deeply") from error
    except ValueError as error:
        rows = _rows_one_by_one(text)
        if len(rows) > 1:
            return rows, False
        value = before_the_cut(text)
        if not value:
            raise UnreadableError(f"not valid JSON (cut off?): {error}") from error
        return value, True


def _rows_one_by_one(text: str) -> list[Any]:
    """Objects over several lines that simply follow each other."""
    rows: list[Any] = []
    at = text.find("{") if text.lstrip().startswith("{") else -1
    while at >= 0:
        try:
            row, after = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            break
        rows.append(row)
        between = re.compile(r"[\s,]*").match(text, after)
        at = between.end() if between and text.startswith("{", between.end()) else -1
    return rows


def _is_training(head: bytes) -> bool:
    """Whether what the beginning of a file names is a clock and a metric, or a pair of training and validation.

    A metric has several values: in several objects, in a list, or in an object by row.
    """
    found = re.findall(rb'"([^"\\\n]{1,200})"\s*:\s*(\[|\{\s*"0")?', head)
    counts = Counter(name.decode(errors="replace") for name, _ in found)
    counts.update(name.decode(errors="replace") for name, listed in found if listed)
    names = list(counts)
    metric = any(KNOWN_WORDS.search(name) and count > 1 for name, count in counts.items())
    return metric and (step_column(names) is not None or len(set(canonical(names).values())) > 1)
