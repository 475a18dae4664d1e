"""TensorBoard event files: all files of one run, with the sub-runs that TensorBoard and Keras put beside them."""

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import History
from trainmedic.readers.crc32c import Bytes, Integers, length_checksums, masked_crc32c
from trainmedic.readers.names import TRAIN, VALIDATION, canonical
from trainmedic.readers.protobuf import FIXED32, FIXED64, LENGTH, PADDING, VARINT, Fields, fields
from trainmedic.readers.reader import Claim, Options, Reader
from trainmedic.readers.reader import head as first_bytes

EVENTS = re.compile(r".*\.tfevents\..*|events\.out\.tfevents.*")
ROLES = {**dict.fromkeys(TRAIN, "train"), **dict.fromkeys(VALIDATION, "validation"), "test": "test"}
HPARAMS = b"_hparams_/"

HEADER = struct.Struct("<Q")
FRAME = 16  # bytes of a record beside its data: length, checksum of the length, checksum of the data
BLOCK = 1 << 20  # fields of a block take some ten times as much while it is read
LONGEST_RECORD = 1 << 30

MOST_RESTARTS = 1_000

ELEMENTS = {1: ("<f4", 5, FIXED32), 2: ("<f8", 6, FIXED64)}
"""Types of tensors that hold scalars: how a number is stored, and the field and wire type of a single one."""


class TensorBoardReader(Reader):
    name = "tensorboard"
    supports = "TensorBoard event files"
    patterns = ("*.tfevents.*", "events.out.tfevents*")
    rank = 2

    def declines(self, path: Path, head: bytes) -> str | None:
        if len(head) < HEADER.size + 4:
            return "too short for a record"
        if not _sound(head):
            return "its first record has no sound length"
        if EVENTS.fullmatch(path.name) or b"brain.Event:" in head[:64]:
            return None
        return "its records are no events"

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """One run: the event files of the directory, and the folders below it that belong to the same training."""
        events = frozenset(name for name in files if EVENTS.fullmatch(name))
        mine = sorted(name for name in events if self.declines(directory / name, first_bytes(directory / name)) is None)
        inner = _inner(directory, bool(mine), folders)
        if inner or len(mine) > 1:
            return Claim((".",), events, frozenset(inner))
        return Claim(tuple(mine), events)

    def file(self, path: Path) -> Path:
        """The first event file of a run."""
        return next((file for file in sorted(path.glob("**/*.tfevents.*"))), path) if path.is_dir() else path

    def read(self, path: Path, options: Options) -> list[History]:
        """One history of a file, or of a directory with all that belongs to the training in it."""
        directory = path if path.is_dir() else path.parent
        role = ROLES.get(directory.name.lower())
        files, inner = [path], dict[str, Affixes | None]()
        if path.is_dir():
            files = [path / name for name in sorted(_events(path))]
            inner = _inner(path, bool(files), frozenset(entry.name for entry in path.iterdir() if entry.is_dir()))
        runs = {(f"{role}/" if role else "", ""): Run.of(files, options.verify)} if files else {}
        for folder, affixes in inner.items():
            if affixes is not None:
                parts = [path / folder / name for name in sorted(_events(path / folder))]
                runs[affixes] = Run.of(parts, options.verify)
        return [_history(runs, options)]


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

    @classmethod
    def of(cls, files: list[Path], verify: bool = False) -> "Run":
        """The scalars in the event files of one run, oldest file first."""
        log = _Log(verify)
        for path in files:
            log.read(path)
        return log.run()

    def scalars(self) -> Iterator[tuple[str, Integers, NDArray[np.float64], NDArray[np.float64]]]:
        """Tag, steps, wall times and values of each series, in the order of the files."""
        order = np.argsort(self.tags, kind="stable")
        ends = np.cumsum(np.bincount(self.tags, minlength=len(self.names)))
        for name, stop, start in zip(self.names, ends, [0, *ends[:-1]], strict=True):
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


class _Log:
    """Reads event files one after the other, block by block."""

    def __init__(self, verify: bool) -> None:
        self.verify = verify
        self.tags = _Tags()
        self.plugins: dict[int, bytes] = {}
        self.parts: list[_Scalars] = []
        self.count = 0
        self.starts: list[tuple[int, int]] = []  # of sessions: values before, and the step that they begin with
        self.notes: list[str] = []
        self.damaged = self.broken = self.histograms = 0

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
                if not _sound(content) or length > LONGEST_RECORD:
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
        self._note_sessions(data, events.pick(7, LENGTH), steps, event)
        parts, _ = fields(data, entries.start, entries.stop)
        tags = self._tags(content, parts.pick(1, LENGTH), len(event))
        self._note_plugins(content, data, parts.pick(9, LENGTH), tags)
        values, found = np.zeros(len(event)), np.zeros(len(event), dtype=bool)
        self.histograms += len(parts.pick(5, LENGTH).message)
        simple = parts.pick(2, FIXED32)
        values[simple.message], found[simple.message] = _read(data, simple.start, "<f4"), True
        tensors = parts.pick(8, LENGTH)
        if len(tensors.message):
            self._take_tensors(data, tensors, tags, values, found)
        found &= tags >= 0
        at = event[found]
        self.parts.append(_Scalars(tags[found], steps[at], wall_times[at], values[found]))
        self.count += len(at)

    def _tags(self, content: bytes, named: Fields, count: int) -> Integers:
        """(count,): the number of each value's tag, -1 where it has none."""
        tags = np.full(count, -1, dtype=np.int64)
        numbers = [self.tags[content[a:b]] for a, b in zip(named.start.tolist(), named.stop.tolist(), strict=True)]
        tags[named.message] = numbers
        return tags

    def _note_sessions(self, data: Bytes, sessions: Fields, steps: Integers, event: Integers) -> None:
        """Where a session starts (SessionLog.START), values of its first step and later ones were taken back."""
        status, _ = fields(data, sessions.start, sessions.stop)
        for row in status.pick(1, VARINT).where(status.pick(1, VARINT).value == 1).message.tolist():
            record = int(sessions.message[row])
            self.starts.append((self.count + int(np.searchsorted(event, record)), int(steps[record])))

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

    def run(self) -> Run:
        """What was read, without what later sessions took back."""
        if self.broken:
            self.notes.append(f"{self.broken:,} records hold no event and were left out")
        if self.damaged:
            self.notes.append(f"{self.damaged:,} records do not fit their checksum and were left out")
        if self.histograms:
            self.notes.append(f"{self.histograms:,} histograms were not read, only scalars")
        parts = [_NOTHING, *self.parts]
        whole = _Scalars(
            np.concatenate([part.tags for part in parts]),
            np.concatenate([part.steps for part in parts]),
            np.concatenate([part.wall_times for part in parts]),
            np.concatenate([part.values for part in parts]),
        )
        kept = whole.steps < _limits(len(whole.steps), self.starts)
        gone = int((~kept).sum())
        if gone:
            self.notes.append(f"{gone:,} values were taken back by a restart that began again before them")
            whole = whole.where(kept)
        return Run([tag.decode(errors="replace") for tag in self.tags], *whole, self.notes)


_NOTHING = _Scalars(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))


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


def _sound(content: bytes) -> bool:
    """Whether the length of the record at the beginning of ``content`` fits its checksum."""
    data = np.frombuffer(content[: HEADER.size + 4], dtype=np.uint8)
    first = np.zeros(1, dtype=np.int64)
    return bool((length_checksums(_integers(data, first)) == _words(data, first + HEADER.size))[0])


def _read(data: Bytes, at: Integers, element: str) -> NDArray[np.float64]:
    """The numbers that begin at ``at``, wherever in the data, exactly."""
    size = np.dtype(element).itemsize
    return np.ascontiguousarray(data[at[:, None] + np.arange(size)]).view(element)[:, 0].astype(np.float64)


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


def _events(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir() if EVENTS.fullmatch(entry.name) and entry.is_file()]
    except OSError:
        return []


Affixes = tuple[str, str]
"""What is put before and behind the tags of a sub-run."""


def _inner(directory: Path, events: bool, folders: frozenset[str]) -> dict[str, Affixes | None]:
    """The folders that hold a part of the training in ``directory``; ``None`` for one whose numbers are no series.

    Keras writes ``train`` and ``validation``; ``add_scalars("loss", {"a": ...})`` writes ``loss_a`` with the tag
    ``loss`` in it; ``add_hparams`` a folder of its own.
    """
    inner: dict[str, Affixes | None] = {}
    for folder in sorted(folders):
        if folder.lower() not in ROLES and not events:
            continue
        names = sorted(_events(directory / folder))
        if not names:
            continue
        begin = first_bytes(directory / folder / names[0])
        if folder.lower() in ROLES:
            inner[folder] = (f"{ROLES[folder.lower()]}/", "")
        elif HPARAMS in begin:
            inner[folder] = None
        else:
            written = [tag for tag in _first_tags(begin) if folder.startswith(f"{tag.replace('/', '_')}_")]
            if written:
                inner[folder] = ("", f"/{folder[len(written[0]) + 1 :]}")
    return inner


def _first_tags(begin: bytes) -> list[str]:
    """The tags in the first bytes of an event file."""
    log = _Log(verify=False)
    log.take(begin)
    return log.run().names


def _history(runs: Mapping[Affixes, Run], options: Options) -> History:
    history = History()
    series: dict[str, tuple[Integers, NDArray[np.float64]]] = {}
    times: list[NDArray[np.float64]] = []
    own: dict[str, str] = {}
    for affixes, run in runs.items():
        for tag, steps, wall_times, values in run.scalars():
            name = _name(tag, *affixes)
            series[name if name not in series else tag] = steps, values
            own[name] = tag
            times.append(wall_times[[0, -1]])
    known = canonical(list(series))
    for name, (steps, values) in series.items():
        history.add_series(known.get(name, name), steps, values)
    epochs = bool(own) and all(tag.startswith(("epoch_", "evaluation_")) for tag in own.values())
    history.facts["time"] = "epoch" if epochs else "step"
    history.facts["names"] = {ours: own.get(name, name) for name, ours in known.items() if ours in history}
    if times:
        history.facts["started"], history.facts["ended"] = float(np.min(times)), float(np.max(times))
    restarts = _restarts(steps for steps, _ in series.values())
    if restarts:
        history.facts["restarts"] = restarts
    notes = [note for run in runs.values() for note in run.notes]
    if restarts:
        notes.append(f"the step falls back {len(restarts):,} times, first from {restarts[0]['from']:,}")
    if not options.verify:
        notes.append("checksums of the records were not verified")
    history.facts["notes"] = notes
    return history


def _name(tag: str, before: str, behind: str) -> str:
    """A tag with what its sub-run says; Keras' ``epoch_`` says only what the steps count."""
    plain = tag.removeprefix("epoch_")
    role = before.rstrip("/")
    told = re.match(r"[A-Za-z]+(?=[/_.-])", plain)
    if told and role and ROLES.get(told[0].lower()) == role:
        return plain
    return f"{before}{plain}{behind}"


def _restarts(all_steps: Iterable[Integers]) -> list[dict[str, int]]:
    """Where the step falls back, each place once however many series fall there."""
    found: dict[tuple[int, int], None] = {}
    for steps in all_steps:
        for row in np.flatnonzero(np.diff(steps) < 0)[:MOST_RESTARTS].tolist():
            found[int(steps[row]), int(steps[row + 1])] = None
    return [{"from": start, "to": to} for start, to in list(found)[:MOST_RESTARTS]]
