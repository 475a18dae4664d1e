"""Event files: the records of TensorBoard and what stands in them, block by block, in whole arrays."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.readers.crc32c import Bytes, Integers, length_checksums, masked_crc32c
from trainmedic.readers.histograms import NOTHING as NO_HISTOGRAMS
from trainmedic.readers.histograms import Histograms, of_buckets
from trainmedic.readers.protobuf import FIXED32, FIXED64, LENGTH, PADDING, VARINT, Fields, fields

HEADER = struct.Struct("<Q")
FRAME = 16  # bytes of a record beside its data: length, checksum of the length, checksum of the data
BLOCK = 1 << 20  # fields of a block take some ten times as much while it is read
LONGEST_RECORD = 1 << 30
MOST_TEXTS = 100
LONGEST_TEXT = 1 << 14
TEXT, HISTOGRAMS = b"text", b"histograms"

ELEMENTS = {1: ("<f4", 5, FIXED32), 2: ("<f8", 6, FIXED64)}
"""Types of tensors that hold scalars: how a number is stored, and the field and wire type of a single one."""


@dataclass
class Run:
    """The scalars of one run as TensorBoard shows them: what a restart took back is gone.

    ``tags`` are indices into ``names``, ``values`` are as precise as the file holds them; all arrays have one row for
    each scalar, in the order of the files.
    """

    names: list[str]
    tags: Integers
    steps: Integers
    wall_times: NDArray[np.float64]
    values: NDArray[np.float64]
    notes: list[str] = field(default_factory=list)
    histograms: Histograms = NO_HISTOGRAMS
    texts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, files: list[Path], verify: bool = False) -> "Run":
        """The scalars in the event files of one run, oldest file first."""
        log = Log(verify)
        for path in files:
            log.read(path)
        return log.run()

    def scalars(self) -> Iterator[tuple[str, Integers, NDArray[np.float64], NDArray[np.float64]]]:
        """Tag, steps, wall times and values of each series, in the order of the files."""
        order = np.argsort(self.tags, kind="stable")
        counts = np.bincount(self.tags, minlength=len(self.names))
        ends = np.cumsum(counts)
        for name, start, stop in zip(self.names, ends - counts, ends, strict=True):
            rows = order[start:stop]
            if len(rows):
                yield name, self.steps[rows], self.wall_times[rows], self.values[rows]


class _Tags(dict[bytes, int]):
    """A number for each tag that comes up."""

    def __missing__(self, tag: bytes) -> int:
        self[tag] = number = len(self)
        return number


class _Scalars(NamedTuple):
    tags: Integers
    steps: Integers
    wall_times: NDArray[np.float64]
    values: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_]) -> "_Scalars":
        return _Scalars(self.tags[kept], self.steps[kept], self.wall_times[kept], self.values[kept])


class Log:
    """Reads event files one after the other, block by block."""

    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.tags = _Tags()
        self.plugins: dict[int, bytes] = {}
        self.parts: list[_Scalars] = []
        self.count = self.drawn = 0  # scalars and histograms so far
        self.starts: list[tuple[int, int, int]] = []  # of sessions: values and histograms before, and their first step
        self.notes: list[str] = []
        self.damaged = self.broken = 0
        self.histograms: list[Histograms] = []
        self.texts: dict[int, tuple[int, str]] = {}  # by tag the last one, and its step

    def read(self, path: Path) -> None:
        """Read one file to its end, or to where it is damaged."""
        with open(path, "rb") as file:
            for content, begin, stop in self._records(file, path):
                self._take(content, begin, stop)

    def take(self, content: bytes) -> None:
        """Read the whole records at the beginning of ``content``."""
        begin, stop, _ = _frame(content)
        self._take(content + bytes(PADDING), begin, stop)

    def _records(self, file: BinaryIO, path: Path) -> Iterator[tuple[bytes, Integers, Integers]]:
        """Blocks of whole records, padded for the parser, and where each record begins and ends in its block."""
        size = path.stat().st_size
        content, offset, wanted = b"", 0, BLOCK
        while more := file.read(wanted):
            content += more
            begin, stop, used = _frame(content)
            if len(begin):
                yield content + bytes(PADDING), begin, stop
            content, offset = content[used:], offset + used
            wanted = BLOCK
            if len(content) >= HEADER.size + 4:
                length = HEADER.unpack_from(content)[0]
                if not is_sound(content) or length > LONGEST_RECORD:
                    self.notes.append(f"{path.name}: damaged at byte {offset:,}; what follows was not read")
                    return
                if offset + FRAME + length > size:
                    break
                wanted = max(BLOCK, length + FRAME - len(content))
        if content or more:
            self.notes.append(f"{path.name}: the log ends in the middle of a record")

    def _undamaged(self, data: Bytes, begin: Integers, stop: Integers) -> tuple[Integers, Integers]:
        told = _words(data, stop)
        good = masked_crc32c(data, begin, stop) == told
        self.damaged += int((~good).sum())
        return begin[good], stop[good]

    def _take(self, content: bytes, begin: Integers, stop: Integers) -> None:
        """Take the scalars out of a block of records."""
        data = np.frombuffer(content, dtype=np.uint8)
        if self.verify:
            begin, stop = self._undamaged(data, begin, stop)
        events, broken = fields(data, begin, stop)
        self.broken += int(broken.sum())
        wall_times, steps = np.zeros(len(begin)), np.zeros(len(begin), dtype=np.int64)
        times = events.pick(1, FIXED64)
        wall_times[times.message] = _read(data, times.start, "<f8")
        counted = events.pick(2, VARINT)
        steps[counted.message] = counted.value
        summaries = events.pick(5, LENGTH)
        entries, _ = fields(data, summaries.start, summaries.stop)
        entries = entries.pick(1, LENGTH)
        event = summaries.message[entries.message]
        parts, _ = fields(data, entries.start, entries.stop)
        tags = self._tags(content, parts.pick(1, LENGTH), len(event))
        self._note_plugins(content, data, parts.pick(9, LENGTH), tags)
        values, found = np.zeros(len(event)), np.zeros(len(event), dtype=bool)
        simple = parts.pick(2, FIXED32)
        values[simple.message], found[simple.message] = _read(data, simple.start, "<f4"), True
        tensors = parts.pick(8, LENGTH)
        if len(tensors.message):
            self._take_tensors(data, tensors, tags, values, found)
            self._take_texts(content, data, self._of_plugin(tensors, tags, TEXT), tags, steps[event])
        found &= tags >= 0
        at = event[found]
        drawn = self._take_histograms(content, data, parts.pick(5, LENGTH), tensors, tags, steps[event])
        self._note_sessions(data, events.pick(7, LENGTH), steps, at, event[drawn])
        self.parts.append(_Scalars(tags[found], steps[at], wall_times[at], values[found]))

    def _tags(self, content: bytes, named: Fields, count: int) -> Integers:
        """(count,): the number of each value's tag, -1 where it has none."""
        tags = np.full(count, -1, dtype=np.int64)
        numbers = [self.tags[content[a:b]] for a, b in zip(named.start.tolist(), named.stop.tolist(), strict=True)]
        tags[named.message] = numbers
        return tags

    def _note_sessions(
        self, data: Bytes, sessions: Fields, steps: Integers, scalars: Integers, histograms: Integers
    ) -> None:
        """Where a session starts (SessionLog.START), values of its first step and later ones were taken back."""
        status, _ = fields(data, sessions.start, sessions.stop)
        for row in status.pick(1, VARINT).where(status.pick(1, VARINT).value == 1).message.tolist():
            record = int(sessions.message[row])
            before = self.count + int(np.searchsorted(scalars, record))
            drawn_before = self.drawn + int(np.searchsorted(histograms, record))
            self.starts.append((before, drawn_before, int(steps[record])))
        self.count += len(scalars)
        self.drawn += len(histograms)

    def _note_plugins(self, content: bytes, data: Bytes, metadata: Fields, tags: Integers) -> None:
        """Which plug-in a tag belongs to; the first word counts, as in TensorBoard."""
        plugins, _ = fields(data, metadata.start, metadata.stop)
        plugins = plugins.pick(1, LENGTH)
        named, _ = fields(data, plugins.start, plugins.stop)
        named = named.pick(1, LENGTH)
        for row, start, stop in zip(named.message.tolist(), named.start.tolist(), named.stop.tolist(), strict=True):
            tag = int(tags[metadata.message[plugins.message[row]]])
            self.plugins.setdefault(tag, content[start:stop])

    def _take_tensors(
        self, data: Bytes, tensors: Fields, tags: Integers, values: NDArray[np.float64], found: NDArray[np.bool_]
    ) -> None:
        """Tensors of a single number, as TensorFlow 2 writes scalars; not those that belong to another plug-in."""
        others = [tag for tag, plugin in self.plugins.items() if plugin != b"scalars"]
        tensors = tensors.where(~np.isin(tags[tensors.message], others))
        parts, _ = fields(data, tensors.start, tensors.stop)
        kinds = np.zeros(len(tensors.message), dtype=np.int64)
        kind = parts.pick(1, VARINT)
        kinds[kind.message] = kind.value
        for number, (element, typed, wire) in ELEMENTS.items():
            for spans in (parts.pick(4, LENGTH), parts.pick(typed, LENGTH), parts.pick(typed, wire)):
                size = np.dtype(element).itemsize
                spans = spans.where((kinds[spans.message] == number) & (spans.stop - spans.start == size))
                into = tensors.message[spans.message]
                values[into], found[into] = _read(data, spans.start, element), True

    def _of_plugin(self, tensors: Fields, tags: Integers, plugin: bytes) -> Fields:
        mine = [tag for tag, name in self.plugins.items() if name == plugin]
        return tensors.where(np.isin(tags[tensors.message], mine))

    def _take_histograms(
        self, content: bytes, data: Bytes, drawn: Fields, tensors: Fields, tags: Integers, steps: Integers
    ) -> Integers:
        """Histograms as TensorFlow 1 and torch write them, and as TensorFlow 2 does; gives the values that are some."""
        drawn = drawn.where(tags[drawn.message] >= 0)
        bucketed = self._of_plugin(tensors, tags, HISTOGRAMS)
        if not len(drawn.message) and not len(bucketed.message):
            return np.empty(0, np.int64)
        parts, _ = fields(data, drawn.start, drawn.stop)
        columns = np.zeros((6, len(drawn.message)))
        for number in range(1, 6):  # smallest, largest, count, sum, sum of squares
            told = parts.pick(number, FIXED64)
            columns[number, told.message] = _read(data, told.start, "<f8")
        _, low, high, count, total, squares = columns
        at = drawn.message
        found = [Histograms(tags[at], steps[at], count, total, squares, low, high)]
        rows = [(int(value), of_buckets(buckets)) for value, buckets in _buckets(content, data, bucketed)]
        if rows:
            at = np.concatenate([at, [value for value, _ in rows]])
            numbers = np.array([summary for _, summary in rows]).T
            found.append(Histograms(tags[at[len(drawn.message) :]], steps[at[len(drawn.message) :]], *numbers))
        order = np.argsort(at, kind="stable")
        self.histograms.append(Histograms.joined(found).where(order))
        return at[order]

    def _take_texts(self, content: bytes, data: Bytes, tensors: Fields, tags: Integers, steps: Integers) -> None:
        """The last text of each tag."""
        parts, _ = fields(data, tensors.start, tensors.stop)
        written = parts.pick(8, LENGTH)
        for row, start, stop in zip(
            written.message.tolist(), written.start.tolist(), written.stop.tolist(), strict=True
        ):
            value = int(tensors.message[row])
            tag = int(tags[value])
            if tag in self.texts or len(self.texts) < MOST_TEXTS:
                text = content[start : min(stop, start + LONGEST_TEXT)].decode(errors="replace")
                self.texts[tag] = int(steps[value]), text

    def run(self) -> Run:
        """What was read, without what later sessions took back."""
        if self.broken:
            self.notes.append(f"{self.broken:,} records hold no event and were left out")
        if self.damaged:
            self.notes.append(f"{self.damaged:,} records do not fit their checksum and were left out")
        parts = [_NOTHING, *self.parts]
        whole = _Scalars(
            np.concatenate([part.tags for part in parts]),
            np.concatenate([part.steps for part in parts]),
            np.concatenate([part.wall_times for part in parts]),
            np.concatenate([part.values for part in parts]),
        )
        histograms = Histograms.joined([NO_HISTOGRAMS, *self.histograms])
        limits = _limits(len(histograms.steps), [(before, step) for _, before, step in self.starts])
        histograms = histograms.where(histograms.steps < limits)
        kept = whole.steps < _limits(len(whole.steps), [(before, step) for before, _, step in self.starts])
        gone = int((~kept).sum())
        if gone:
            self.notes.append(f"{gone:,} values were taken back by a restart that began again before them")
            whole = whole.where(kept)
        names = [tag.decode(errors="replace") for tag in self.tags]
        texts = {names[tag]: {"step": step, "text": text} for tag, (step, text) in self.texts.items() if tag >= 0}
        return Run(names, *whole, self.notes, histograms, texts)


_NOTHING = _Scalars(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))


def _buckets(content: bytes, data: Bytes, tensors: Fields) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(value, (n, 3): left, right, count) of each tensor that holds the buckets of a histogram."""
    parts, _ = fields(data, tensors.start, tensors.stop)
    for number in (4, 6):  # as bytes, or as a packed list of doubles
        spans = parts.pick(number, LENGTH)
        spans = spans.where((spans.stop - spans.start) % (3 * 8) == 0)
        for row, start, stop in zip(spans.message.tolist(), spans.start.tolist(), spans.stop.tolist(), strict=True):
            yield int(tensors.message[row]), np.frombuffer(content[start:stop], "<f8").reshape(-1, 3)


def _frame(content: bytes) -> tuple[Integers, Integers, int]:
    """Where the data of the whole records in ``content`` begins and ends, and how many bytes they take together."""
    begins: list[int] = []
    at, last = 0, len(content) - FRAME
    length_at = HEADER.unpack_from
    while at <= last:
        begins.append(at)
        at += length_at(content, at)[0] + FRAME
    begin = np.array(begins, dtype=np.int64)
    if at > len(content):
        begin, at = begin[:-1], begins[-1]
    data = np.frombuffer(content, dtype=np.uint8)
    lengths = _integers(data, begin)
    wrong = np.flatnonzero(length_checksums(lengths) != _words(data, begin + HEADER.size))
    if len(wrong):
        at = int(begin[wrong[0]])
        begin, lengths = begin[: wrong[0]], lengths[: wrong[0]]
    return begin + HEADER.size + 4, begin + HEADER.size + 4 + lengths, at


def is_sound(content: bytes) -> bool:
    """Whether the length of the record at the beginning of ``content`` fits its checksum."""
    data = np.frombuffer(content[: HEADER.size + 4], dtype=np.uint8)
    first = np.zeros(1, dtype=np.int64)
    return bool((length_checksums(_integers(data, first)) == _words(data, first + HEADER.size))[0])


def _read(data: Bytes, at: Integers, element: str) -> NDArray[np.float64]:
    """The numbers that begin at ``at``, wherever in the data, exactly."""
    size = np.dtype(element).itemsize
    numbers = np.ascontiguousarray(data[at[:, None] + np.arange(size)]).view(element)[:, 0]
    with np.errstate(invalid="ignore"):  # a NaN of the kind that signals stays a NaN
        return numbers.astype(np.float64)


def _integers(data: Bytes, at: Integers) -> Integers:
    return np.ascontiguousarray(data[at[:, None] + np.arange(8)]).view("<i8")[:, 0]


def _words(data: Bytes, at: Integers) -> NDArray[np.uint32]:
    return np.ascontiguousarray(data[at[:, None] + np.arange(4)]).view("<u4")[:, 0]


def _limits(count: int, starts: list[tuple[int, int]]) -> Integers:
    """(count,): the smallest step that a session which started behind a value began with."""
    limits = np.full(count + 1, np.iinfo(np.int64).max)
    for before, step in starts:
        limits[before] = min(limits[before], step)
    return np.minimum.accumulate(limits[::-1])[::-1][1:]
