"""Weights & Biases' offline runs: ``run-<id>.wandb``, a LevelDB log of protobuf records, read without wandb."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.numbers import numbers_in
from trainmedic.readers.protobuf import FIXED64, LENGTH, PADDING, VARINT, Fields, fields
from trainmedic.readers.reader import Claim, Options, Reader
from trainmedic.readers.table import Table

MAGIC = b":W&B\xe1\xbe"
BLOCK = 32_768
HEADER = struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
LONGEST_RECORD = 256 << 20
AT_ONCE = 4_096
MOST_OPTIONS = 1_000
"""Settings of a run that are read."""
CLOCKS = ("trainer/global_step", "train/global_step", "global_step", "_step")


class WandbReader(Reader):
    name = "wandb"
    supports = "W&B offline runs (.wandb)"
    patterns = ("*.wandb",)
    rank = 2

    def declines(self, path: Path, head: bytes) -> str | None:
        return None if head.startswith(MAGIC) else "it does not begin as a .wandb file"

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """The run alone: what else W&B puts beside it are its own notes."""
        claim = super().claim(directory, files, folders)
        return Claim(claim.logs, claim.files, folders & {"files", "logs", "tmp"} if claim.logs else frozenset())

    def read(self, path: Path, options: Options) -> list[History]:
        with open(path, "rb") as file:
            log = _Records(file)
            run = _Run()
            batch: list[bytes] = []
            for record in log:
                batch.append(record)
                if len(batch) == AT_ONCE:
                    run.take(batch)
                    batch = []
            run.take(batch)
        run.table.notes += log.notes
        return run.histories()


class _Records:
    """The records of a LevelDB log, whole ones with a right checksum only."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.notes: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        whole: bytearray | None = None  # of a record that has begun, and is sound so far
        wrong = 0
        for kind, data, sound in self._parts():
            wrong += not sound
            if kind in (FULL, FIRST):
                whole = bytearray()
            whole = whole + data if whole is not None and sound else None
            if whole is None:
                continue
            if len(whole) > LONGEST_RECORD:
                raise UnreadableError(f"a record of more than {LONGEST_RECORD:,} bytes")
            if kind in (FULL, LAST):
                yield bytes(whole)
                whole = None
        if wrong:
            self.notes.append(f"{wrong:,} records do not fit their checksum and were left out")

    def _parts(self) -> Iterator[tuple[int, bytes, bool]]:
        """Type, data and soundness of each part of a record; blocks hold whole parts, the rest of them is padding."""
        at = len(MAGIC) + 1  # the first block begins with the header of the file
        while block := self.file.read(BLOCK):
            while at + HEADER.size <= len(block):
                checksum, length, kind = HEADER.unpack_from(block, at)
                data = block[at + HEADER.size : at + HEADER.size + length]
                if kind == 0 and length == 0:
                    break
                if len(data) < length:
                    self.notes.append("the log ends in the middle of a record")
                    return
                yield kind, data, _checksum(kind, data) == checksum
                at += HEADER.size + length
            if at < len(block) < BLOCK and any(block[at:]):
                self.notes.append("the log ends in the middle of a record")
            at = 0


def _checksum(kind: int, data: bytes) -> int:
    """CRC-32 as zlib counts it, of the type and the data, whatever the format's name says."""
    return zlib.crc32(data, zlib.crc32(bytes([kind])))


class _Run:
    """The history records of a run as rows."""

    def __init__(self) -> None:
        self.table = Table()
        self.broken = 0
        self.config: dict[str, Any] = {}

    def take(self, records: list[bytes]) -> None:
        """Take the records of one batch, in their order."""
        content = b"".join(records) + bytes(PADDING)
        data = np.frombuffer(content, dtype=np.uint8)
        stop = np.cumsum([len(record) for record in records], dtype=np.int64)
        found, broken = fields(data, np.concatenate([[0], stop[:-1]]).astype(np.int64)[: len(stop)], stop)
        self.broken += int(broken.sum())
        histories = found.pick(2, LENGTH)
        parts, _ = fields(data, histories.start, histories.stop)
        items = parts.pick(1, LENGTH)
        steps = parts.pick(2, LENGTH)
        numbered, _ = fields(data, steps.start, steps.stop)
        numbered = numbered.pick(1, VARINT)
        rows: list[dict[str, float]] = [{} for _ in histories.message]
        for row, number in zip(steps.message[numbered.message].tolist(), numbered.value.tolist(), strict=True):
            rows[row]["_step"] = number
        for row, name, value in zip(items.message.tolist(), *_items(content, data, items), strict=True):
            rows[row].update(numbers_in({name: value}))
        for numbers in rows:
            if numbers:
                self.table.add(numbers)
        begun, _ = fields(data, *_ends(found.pick(17, LENGTH)))
        for config in (begun.pick(4, LENGTH), found.pick(5, LENGTH)):  # what the run began with, and later changes
            updates, _ = fields(data, *_ends(config))
            given = dict(zip(*_items(content, data, updates.pick(1, LENGTH)), strict=True))
            self.config.update((key, value) for key, value in given.items() if key and key != "_wandb")

    def histories(self) -> list[History]:
        """One run: the clock is what the framework counts, where it does so in every row, or else W&B's own."""
        if self.broken:
            self.table.notes.append(f"{self.broken:,} records cannot be read and were left out")
        columns = self.table.columns
        for name in ("_timestamp", "_runtime"):
            columns.pop(name, None)
        clock = next((name for name in CLOCKS if name in columns), None)
        if clock:
            self.table.use_clock(clock, "step")
            if clock != "_step":
                columns.pop("_step", None)
        self.table.facts["tool"] = "wandb"
        if self.config:
            self.table.facts["config"] = dict(list(self.config.items())[:MOST_OPTIONS])
        return self.table.histories()


def _ends(messages: Fields) -> tuple[Any, Any]:
    return messages.start, messages.stop


def _items(content: bytes, data: Any, items: Fields) -> tuple[list[str], list[Any]]:
    """Names and values of the items of a history, one each."""
    names: list[list[str]] = [[] for _ in items.message]
    values: list[Any] = [None] * len(names)
    parts, _ = fields(data, items.start, items.stop)
    for item, number, wire, start, stop, value in zip(*(column.tolist() for column in parts), strict=True):
        if wire == LENGTH and number in (1, 2):  # a key, or the parts of a nested one
            names[item].append(content[start:stop].decode(errors="replace"))
        elif wire == LENGTH and number in (8, 16):
            values[item] = _json(content[start:stop])
        elif wire == VARINT and number == 5:
            values[item] = value
        elif wire == FIXED64 and number == 6:
            values[item] = struct.unpack("<d", content[start:stop])[0]
    return ["/".join(part for part in name if part) for name in names], values


_DECODER = json.JSONDecoder(parse_int=float)  # whole numbers of thousands of digits are refused as int


def _json(text: bytes) -> Any:
    try:
        return _DECODER.decode(text.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
