"""What trainings print: lines that name a step or an epoch and then numbers, whichever tool wrote them.

Read are pairs of ``key value``, ``key: value`` and ``key=value``, and the places that tools give in words or brackets
(``step 5``, ``iteration 5/ 100``, ``Epoch: [1][ 20/500]``, ``45/100 [00:10<00:12``). Colours, ranks, refreshed progress
bars and prose between the lines are seen through.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from trainmedic.history import History
from trainmedic.readers.names import EVALUATION, canonical
from trainmedic.readers.numbers import number_of
from trainmedic.readers.reader import Claim, Options, Reader, encoding
from trainmedic.readers.reader import head as first_bytes
from trainmedic.readers.table import Column, Table

LONGEST_LINE = 1 << 16
ROWS_ENOUGH = 2

ANSI = re.compile(r"\x1b(?:\[[0-9;?]*+[ -/]*+[@-~]|[@-Z\\-_])")
RANK = re.compile(r"^\s*\[?(?:rank|default|gpu|worker|node)[\s_:]?(\d+)\]?:?", re.IGNORECASE)
EPOCH = re.compile(
    r"""\bepochs?["']?(?:\s*\((?P<role>\w+)\))?[\s:#=]*[\["'(]?\s*(?P<at>\d+)(?:\s*/\s*(?P<of>\d+))?(?![\d.]*\.?\d)\]?""",
    re.IGNORECASE,
)
STEP = re.compile(
    r"""\b(?P<word>(?:global[_ ])?steps?|iter(?:ation)?s?|num_updates|updates?)["']?[\s:#=]*[\["'(]?\s*"""
    r"""(?P<at>\d+)(?:\s*/\s*(?P<of>\d+))?(?![\d.]*[.:%\w]?\d)(?![%\w])["'\])]?""",
    re.IGNORECASE,
)
LLM_C = re.compile(r"^s:(?P<at>\d+)(?= (?:trl|tel|eval):)")
CIFAR = re.compile(r"^\s*\[(?P<epoch>\d+),\s*(?P<at>\d+)\]")
PROGRESS = re.compile(r"(?:^|[\[|:(\s])\s*(?P<at>\d+)\s*/\s*(?P<of>\d+)(?=[\s\])(|,]|$)")
LEADING = re.compile(r"^\s*(?:Train|Test|Val\w*|Eval\w*)\w*:\s*(?P<at>\d+)(?=\s*\[)", re.IGNORECASE)
KERAS = re.compile(r"^\s*(?P<at>\d+)/(?P<of>\d+)\s*(?:\[[=>.]*\]|[\u2500-\u257f])")
NUMBER = (
    r"[-+]?(?:\d{1,3}(?:,\d{3})++(?:\.\d++)?(?!\d)|\d++(?:\.\d*+)?(?:[eE][-+]?\d++)?|\.\d++(?:[eE][-+]?\d++)?"
    r"|(?:nan|inf(?:inity)?)(?=[a-z]{0,2}\b)(?!\x20[a-z]+\s*[:=]))"
)
PAIR = re.compile(
    rf"""(?<![\w.])(?P<key>[A-Za-z_][\w./@%-]*+(?:\x20[A-Za-z_][\w./@%-]*+){{0,6}}?(?:\x20\([\w/%]+\))?)["']?"""
    rf"""(?:\s*[:=]\s*["'(\[]?\s*|\s+)(?P<value>{NUMBER})(?![:/-]?\d)(?:[%\w/]{{0,6}}\s*\(\s*(?P<average>{NUMBER})\s*\))?""",
    re.IGNORECASE,
)
ROLE = re.compile(
    r"\b(?:(?P<validation>val|valid|validate|validation|eval|evaluation|evaluating|dev)|(?P<test>test|testing))\b",
    re.IGNORECASE,
)
AROUND = re.compile(r"^(?:and|with|the|avg\.?|average|mean)\s+|\s+(?:is|of|at|was|value)$", re.IGNORECASE)
ALIASES = {
    "lm loss": "loss",
    "lm loss ppl": "perplexity",
    "ppl": "perplexity",
    "gnorm": "grad_norm",
    "trl": "train/loss",
    "tel": "validation/loss",
}
ENDING = re.compile(r"[\w.+-]*+\Z")
METRIC = re.compile(r"loss|acc|perplexity|ppl|err|reward|\bG_|\bD_", re.IGNORECASE)

EPOCHS, STEPS, TOTALS = "\0epoch", "\0step", "\0total"


class TextReader(Reader):
    name = "text"
    supports = "text logs with a step or epoch and numbers in each line (nanoGPT, Megatron, fairseq, timm, Keras, ...)"
    patterns = ("*.log", "*.txt", "*.out")
    rank = 10

    def declines(self, path: Path, head: bytes) -> str | None:
        text = head.decode(encoding(head), errors="replace")
        if "\0" in text:
            return "it is binary"
        if _enough(text) or (len(text) >= LONGEST_LINE and _enough(_tail(path, encoding(head)))):
            return None
        return "no two lines in it tell of a metric by step or epoch"

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """In a directory, only logs that tell of a loss or the like: much else is text."""
        claim = super().claim(directory, files, folders)
        logs = tuple(name for name in claim.logs if _tells(first_bytes(directory / name)))
        return Claim(logs, frozenset(logs))

    def read(self, path: Path, options: Options) -> list[History]:
        begin = first_bytes(path)
        rank = _rank(begin.decode(encoding(begin), errors="replace"))
        notes: list[str] = []
        with open(path, encoding=encoding(begin), errors="replace", newline="") as file:
            text = _Text(_rows(file, rank, notes))
        text.table.notes += notes
        return text.histories()


@dataclass
class Row:
    """What one line tells: where the run is, and numbers. ``of`` is how many steps or batches there are in all."""

    line: int
    numbers: dict[str, float] = field(default_factory=dict)
    epoch: int | None = None
    at: int | None = None
    of: int | None = None
    role: str = ""
    named: bool = False  # whether it is a step that is counted, not the progress of a bar

    @property
    def placed(self) -> bool:
        """Whether it says where the run is."""
        return self.epoch is not None or self.at is not None

    @property
    def slot(self) -> tuple[object, ...]:
        """Rows with one slot, one after the other, tell of one thing: the last word counts.

        A bar that is drawn anew over itself, or the progress of one evaluation.
        """
        if self.role and self.at is not None and not self.named:
            return self.role, *self.numbers
        return self.line, self.epoch, self.at


def _rows(file: Iterable[str], rank: str | None, notes: list[str] | None = None) -> Iterator[Row]:
    """The rows of a text, each thing told once."""
    held: Row | None = None
    for row in _all_rows(file, rank, [] if notes is None else notes):
        if held is not None and held.slot != row.slot:
            yield held
        held = row
    if held is not None:
        yield held


def _all_rows(file: Iterable[str], rank: str | None, notes: list[str]) -> Iterator[Row]:
    line = 1
    for piece in file:  # ends with a line feed, or with a carriage return where a bar is drawn over itself
        text = piece[:LONGEST_LINE]
        for part in text.split("\b") if "\b" in text else (text,):
            row = parse(part, line, rank) if part.strip() else None
            if row is not None and not piece.endswith(("\n", "\r")):
                row = _before_the_cut(part, row, rank, notes)
            if row is not None:
                yield row
        line += piece.endswith("\n")


def _before_the_cut(text: str, row: Row, rank: str | None, notes: list[str]) -> Row | None:
    """The row of a text that ends without an end of line, without the number that it ends with, which may go on."""
    cut = parse(text[: ENDING.search(text).start()], row.line, rank)  # type: ignore[union-attr]
    if cut is not None and cut.numbers == row.numbers and (cut.epoch, cut.at, cut.of) == (row.epoch, row.at, row.of):
        return row
    notes.append(f"the log ends in the middle of line {row.line:,}: its end was not read")
    return cut if cut is not None and (cut.epoch, cut.at) == (row.epoch, row.at) else None


def parse(text: str, line: int = 1, rank: str | None = None) -> Row | None:
    """What one line tells, ``None`` where that is nothing, or another rank says it."""
    if "\x1b" in text:
        text = ANSI.sub("", text)
    found = RANK.match(text)
    if found:
        if rank is not None and found[1] != rank:
            return None
        text = text[found.end() :]
    row = Row(line)
    keras = KERAS.match(text)
    if keras:  # means since the epoch began: only the last is that of the epoch
        if keras["at"] != keras["of"]:
            return None
        text = text[keras.end() :]
    text_of_row, text = text, _place(text, row)
    for place, pair in enumerate(PAIR.finditer(text)):
        if not place:
            row.role = row.role or _role(text[: pair.start()])
            _progress(text[: pair.start()], row)
        number = _number(pair, row.role)
        if number is not None:
            row.numbers[_key(pair["key"], row.role)] = number
    if LLM_C.match(text_of_row) and "norm" in row.numbers:
        row.numbers["grad_norm"] = row.numbers.pop("norm")
    return row if row.numbers or row.epoch is not None else None


def _place(text: str, row: Row) -> str:
    """Note what a line says of where the run is; gives the text without that."""
    pair = CIFAR.match(text)
    if pair:
        row.epoch, row.at, row.named = int(pair["epoch"]), int(pair["at"]), True
        return text[pair.end() :]
    for found in (EPOCH.search(text), LEADING.match(text)):
        if found and row.epoch is None:
            row.epoch = _whole(found["at"])
            said = found.groupdict().get("role") or ""
            row.role = _role(said)
            text = f"{text[: found.start()]}{_role_word(found[0])}{text[found.end() :]}"
    step = LLM_C.match(text) or STEP.search(text)
    if step:
        row.at, row.named = _whole(step["at"]), True
        row.of = _whole(step.groupdict().get("of"))
        text = f"{text[: step.start()]} {text[step.end() :]}"
    return text


def _role_word(matched: str) -> str:
    """What a place that is cut out leaves of the role that it named, as ``Test: 3`` does."""
    role = _role(matched)
    return f" {role} : " if role else " "


def _progress(before: str, row: Row) -> None:
    """``20/500`` before the first pair: the batches of this epoch, where no step is named."""
    found = PROGRESS.search(before)
    if found and row.at is None:
        row.at, row.of = _whole(found["at"]), _whole(found["of"])


def _whole(digits: str | None) -> int | None:
    return int(digits) if digits and len(digits) <= 15 else None


def _role(text: str) -> str:
    found = ROLE.search(text)
    return (found.lastgroup or "") if found else ""


def _number(pair: re.Match[str], role: str) -> float | None:
    """The value of a pair; of an evaluation the mean so far, which stands behind it in brackets."""
    said = pair["average"] if role and pair["average"] else pair["value"]
    return number_of(said.replace(",", ""))


@lru_cache(4_096)
def _key(said: str, role: str) -> str:
    """The name of a value, with the role of its line where it says none itself."""
    key = AROUND.sub("", AROUND.sub("", said.strip(" .-")))
    key = ALIASES.get(key.lower(), key)
    if not role or EVALUATION.match(key) or key.lower().startswith(("train", "test", "lr", "learning")):
        return key
    return f"{role}/{key}"


class _Text:
    """The rows of a text as a table, with one clock for all of them."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.table, loose = Table(), Table()
        self.fine: set[str] = set()
        self.total: int | None = None
        started, epoch = False, None
        for row in rows:
            epoch = row.epoch if row.epoch is not None else epoch
            if not row.numbers:
                continue
            started = started or row.placed
            (self.table if started else loose).add(self._columns(row, epoch), row.line)
        if not started:  # no line says where the run is: then every line that tells something is the next row
            self.table = loose

    def _columns(self, row: Row, epoch: int | None) -> dict[str, float]:
        numbers = dict(row.numbers)
        fine = row.at is not None
        if not fine and row.epoch is not None:
            numbers = {f"\1{name}": value for name, value in numbers.items()}
        elif fine:
            self.fine.update(numbers)
        if epoch is not None:
            numbers[EPOCHS] = epoch
        if row.at is not None and (row.named or not row.role):  # the progress of an evaluation is not that of the run
            numbers[STEPS] = row.at
            if row.of is not None:
                numbers[TOTALS] = row.of
            self.total = row.of if row.named else self.total
        return numbers

    def histories(self) -> list[History]:
        """The runs in the text."""
        self._name_columns()
        if not self._clock():
            return []
        self._drop_singles()
        histories = self.table.histories()
        for history in histories:
            if self.total and history.facts["time"] == "step":
                history.facts["total_steps"] = self.total
        return histories

    def _name_columns(self) -> None:
        """Means over an epoch stand under their own name where the steps tell of the same."""
        columns = self.table.columns
        for name in [name for name in columns if name.startswith("\1")]:
            plain = name[1:]
            target = f"epoch/{plain}" if plain in self.fine else plain
            _merge(columns, name, target)
        tested = [name for name in columns if name.startswith("test/")]
        known = canonical(list(columns)).values()
        if not any(ours.startswith("validation/") for ours in known):
            for name in tested:  # what is measured all along the training, on data that is not trained on
                if len(columns[name].rows) > 1:
                    _merge(columns, name, f"validation/{name.removeprefix('test/')}")

    def _clock(self) -> bool:
        """Give the table a clock: steps that count through, or batches counted on from epoch to epoch, or epochs."""
        columns = self.table.columns
        epochs, steps, totals = (columns.pop(name, None) for name in (EPOCHS, STEPS, TOTALS))
        if epochs is not None:
            columns.setdefault("epoch", epochs)
        if steps is not None:
            name, column = self._counted(steps, epochs, totals)
            columns[name] = column
            self.table.use_clock(name, "batch" if name == BATCHES else "step")
        return bool(columns)

    def _counted(self, steps: Column, epochs: Column | None, totals: Column | None) -> tuple[str, Column]:
        """Steps as they are, or, where they start over in every epoch, counted on by what each epoch has."""
        rows, at = np.array(steps.rows), np.array(steps.values)
        if epochs is None:
            return "step", steps
        epoch = _at(epochs, rows)
        fell = np.diff(at) < 0
        if (
            not fell.any()
            or (np.diff(epoch)[fell] > 0).mean() <= 0.5
            or totals is None
            or len(totals.rows) != len(rows)
        ):
            return "step", steps
        counted = Column()
        counted.rows.extend(steps.rows)
        counted.values.extend(((epoch - epoch.min()) * np.array(totals.values) + at).tolist())
        return BATCHES, counted

    def _drop_singles(self) -> None:
        """A name that comes up once and means nothing known is prose."""
        columns = self.table.columns
        known = canonical(list(columns))
        for name in [n for n, c in columns.items() if len(c.rows) < ROWS_ENOUGH and n not in known]:
            del columns[name]


BATCHES = "\0batches"


def _at(
    column: Column, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]"
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """What a column said last at each of ``rows``."""
    last = np.searchsorted(np.array(column.rows), rows, side="right") - 1
    return np.array(column.values)[np.maximum(last, 0)]


def _merge(columns: dict[str, Column], name: str, target: str) -> None:
    """Rename a column; into one that is there already, in the order of the rows."""
    moved = columns.pop(name)
    there = columns.get(target)
    if there is None:
        columns[target] = moved
        return
    order = np.argsort([*there.rows, *moved.rows], kind="stable")
    rows, values = np.array([*there.rows, *moved.rows])[order], np.array([*there.values, *moved.values])[order]
    columns[target] = Column()
    columns[target].rows.extend(rows.tolist())
    columns[target].values.extend(values.tolist())


def _sample(text: str) -> list[Row]:
    return [row for row in _rows(text.splitlines(keepends=True), None) if row.numbers]


def _enough(text: str) -> bool:
    """Whether two rows tell of one metric, and where the run is or what is known of trainings."""
    rows = _sample(text)
    names = Counter(name for row in rows if row.placed or canonical(list(row.numbers)) for name in row.numbers)
    return bool(names) and names.most_common(1)[0][1] >= ROWS_ENOUGH


def _tells(head: bytes) -> bool:
    rows = _sample(head.decode(encoding(head), errors="replace"))
    return sum(any(METRIC.search(name) for name in row.numbers) for row in rows) >= ROWS_ENOUGH


def _tail(path: Path, name: str) -> str:
    """The last lines of a file that is longer than its head."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_LINE) // 2 * 2)
        return file.read().decode(name if name != "utf-16" else "utf-16-le", errors="replace")


def _rank(text: str) -> str | None:
    """The rank that tells most, of a log that several wrote; ``None`` where lines name none."""
    told = Counter(
        found[1] for line in text.splitlines() if (found := RANK.match(line)) and PAIR.search(line, found.end())
    )
    return told.most_common(1)[0][0] if told else None
