"""The fields of many protobuf messages at once: only the wire format, no schema, nothing copied.

Messages of one kind are alike, so all of them are walked in step, field by field, in whole arrays.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.readers.crc32c import Bytes, Integers

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
PADDING = 16
"""Zero bytes that must follow the data: numbers are looked at without asking first whether they end in time."""
IN_STEP = 64
FEW = 16


class Fields(NamedTuple):
    """Fields of messages, one row each, in order within every message.

    ``message`` is the index of the message; ``start`` and ``stop`` enclose the content in the data (fixed-size and
    length-delimited fields); ``value`` is the number of a varint, its 64 bits as a signed integer.
    """

    message: Integers
    number: Integers
    wire: Integers
    start: Integers
    stop: Integers
    value: Integers

    def pick(self, number: int, wire: int) -> "Fields":
        """The fields of one number and wire type; others with that number are as unknown to any protobuf parser."""
        return self.where((self.number == number) & (self.wire == wire))

    def where(self, chosen: NDArray[np.bool_] | Integers) -> "Fields":
        """The chosen rows."""
        return Fields(*(column[chosen] for column in self))


def fields(data: Bytes, start: Integers, stop: Integers) -> tuple[Fields, NDArray[np.bool_]]:
    """The fields of the messages ``data[start[i]:stop[i]]``, and (n,) which of the messages are broken.

    Nothing is given of a broken message. ``data`` must go on for ``PADDING`` bytes behind the last message.
    """
    at = start.copy()
    broken = np.zeros(len(start), dtype=bool)
    live = np.flatnonzero(at < stop)
    parts: list[Fields] = []
    turns = 0
    while len(live) > FEW or (len(live) and turns < IN_STEP):
        turns += 1
        found, after = _next(data, at[live], stop[live], live)
        bad = after < 0
        broken[live[bad]] = True
        parts.append(found.where(~bad))
        at[live] = after
        live = live[~bad & (after < stop[live])]
    for message in live.tolist():
        rest = _walk(data, message, int(at[message]), int(stop[message]))
        broken[message] = rest is None
        parts += [rest] if rest is not None else []
    if not parts:
        return Fields(*(np.empty(0, dtype=np.int64) for _ in Fields._fields)), broken
    together = Fields(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    if broken.any():
        together = together.where(~broken[together.message])
    return (together if turns < 2 else together.where(np.argsort(together.message, kind="stable"))), broken


def _next(data: Bytes, at: Integers, stop: Integers, message: Integers) -> tuple[Fields, Integers]:
    """The field at ``at`` of each message, and where the next one begins; -1 where the message is broken."""
    key, begin, ended = _varints(data, at)
    wire, number = key & 7, (key >> 3) & 0x1FFFFFFF
    value = np.zeros_like(key)
    size = np.select([wire == FIXED64, wire == FIXED32], [8, 4], 0)
    read = np.flatnonzero((wire == VARINT) | (wire == LENGTH))
    if len(read):
        value[read], begin[read], good = _varints(data, np.minimum(begin[read], len(data) - PADDING))
        ended[read] &= good
        size = np.where(wire == LENGTH, value, size)
    known = (wire == VARINT) | (wire == FIXED64) | (wire == LENGTH) | (wire == FIXED32)
    sound = ended & known & (number > 0) & (key >> 32 == 0) & (size >= 0) & (size <= stop - begin)
    after = np.where(sound, begin + np.where(sound, size, 0), -1)
    return Fields(message, number, wire, begin, after, value), after


def _varints(data: Bytes, at: Integers) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Numbers of seven bits a byte that begin at ``at``, what is behind each, and whether it ended within ten bytes."""
    byte = data[at]
    value = (byte & 0x7F).astype(np.uint64)
    after = at + 1
    longer = np.flatnonzero(byte >= 0x80)
    for shift in range(7, 70, 7):
        if not len(longer):
            break
        byte = data[after[longer]]
        value[longer] |= (byte & 0x7F).astype(np.uint64) << np.uint64(shift)
        after[longer] += 1
        longer = longer[byte >= 0x80]
    ended = np.ones(len(at), dtype=bool)
    ended[longer] = False
    return value.view(np.int64), after, ended


def _walk(data: Bytes, message: int, at: int, stop: int) -> Fields | None:
    """The fields of one message with very many of them, ``None`` where it is broken."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    content = data[at : stop + PADDING].tobytes()
    here, end = 0, stop - at
    while here < end:
        key, begin = _varint(content, here)
        wire, number = key & 7, key >> 3
        value = 0
        if wire in (VARINT, LENGTH):
            value, begin = _varint(content, begin)
        size = {VARINT: 0, FIXED64: 8, LENGTH: value, FIXED32: 4}.get(wire, -1)
        if size < 0 or begin < 0 or not 0 < number < 1 << 29 or begin + size > end:
            return None
        rows.append(
            (message, number, wire, at + begin, at + begin + size, value if value < 1 << 63 else value - (1 << 64))
        )
        here = begin + size
    return Fields(*np.array(rows, dtype=np.int64).reshape(-1, 6).T)


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number and what is behind it; -1 behind one that does not end."""
    value = 0
    for shift, byte in enumerate(content[at : at + 10] if at >= 0 else b""):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at + shift + 1
    return 0, -1
