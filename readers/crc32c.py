"""CRC-32C (Castagnoli) of many pieces of a buffer at once, as event files carry it for each record.

The register after a message is linear in its bytes over GF(2). So each piece is cut into blocks of ``BLOCK`` bytes, the
blocks of all pieces go through the tables together, and what each adds is then moved on by the blocks that follow it.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # reflected
BLOCK = 64
AT_ONCE = 1 << 14

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Words = NDArray[np.uint32]


def masked_crc32c(data: Bytes, begin: Integers, stop: Integers) -> Words:
    """(n,): the checksum of ``data[begin[i]:stop[i]]`` for each i, masked as TFRecord files store it."""
    return _masked(crc32c(data, begin, stop))


def _masked(crc: Words) -> Words:
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)


def length_checksums(lengths: Integers) -> Words:
    """(n,): the masked checksum of each number as eight bytes, smallest first."""
    registers = np.zeros(len(lengths), dtype=np.uint32)
    for i in range(8):
        registers ^= _tables()[7 - i][((lengths >> (8 * i)) & 0xFF) ^ (0xFF if i < 4 else 0)]
    return _masked(registers ^ np.uint32(0xFFFFFFFF))


def crc32c(data: Bytes, begin: Integers, stop: Integers) -> Words:
    """(n,): CRC-32C of ``data[begin[i]:stop[i]]`` for each i."""
    sizes = stop - begin
    result = np.empty(len(begin), dtype=np.uint32)
    for i in np.flatnonzero(sizes < 4):
        result[i] = _plain(data[begin[i] : stop[i]].tobytes())
    long = np.flatnonzero(sizes >= 4)
    if len(long):
        result[long] = _blockwise(data, begin[long], stop[long])
    return result


def _blockwise(data: Bytes, begin: Integers, stop: Integers) -> Words:
    blocks = -(-(stop - begin) // BLOCK)
    first = np.cumsum(blocks) - blocks
    owner = np.repeat(np.arange(len(begin)), blocks)
    behind = blocks[owner] - 1 - (np.arange(len(owner)) - first[owner])  # blocks that follow in the same piece
    starts = stop[owner] - (behind + 1) * BLOCK
    padded = np.concatenate([np.zeros(BLOCK, dtype=np.uint8), data[: int(stop.max())]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, BLOCK)
    registers = np.empty(len(owner), dtype=np.uint32)
    for at in range(0, len(owner), AT_ONCE):
        part = slice(at, at + AT_ONCE)
        content = windows[starts[part] + BLOCK]
        _begin_pieces(content, (begin[owner] - starts)[part])
        registers[part] = _through(content)
    for power in range(int(behind.max()).bit_length()):
        moved = np.flatnonzero((behind >> power) & 1)
        registers[moved] = _apply(_moving(power), registers[moved])
    return np.bitwise_xor.reduceat(registers, first) ^ np.uint32(0xFFFFFFFF)


def _begin_pieces(content: Bytes, lead: Integers) -> None:
    """In blocks that begin a piece: nothing before it, and its first four bytes inverted (the register starts as ones).

    ``lead`` is how many bytes of each block lie before its piece; negative inside a piece.
    """
    where = np.flatnonzero(lead > -4)
    column = np.arange(BLOCK) - lead[where, None]
    part = content[where]
    part[column < 0] = 0
    part[(column >= 0) & (column < 4)] ^= 0xFF
    content[where] = part


def _through(content: Bytes) -> Words:
    """What each block of bytes, (n, BLOCK), leaves in a register that was zero."""
    registers = np.zeros(len(content), dtype=np.uint32)
    for table, column in zip(_tables()[::-1], content.T, strict=True):
        registers ^= table[column]
    return registers


def _apply(moving: Words, registers: Words) -> Words:
    moved = np.zeros_like(registers)
    for i, table in enumerate(moving):
        moved ^= table[(registers >> np.uint32(8 * i)) & np.uint32(0xFF)]
    return moved


@cache
def _tables() -> Words:
    """(BLOCK, 256): what a byte leaves in the register when so many zero bytes follow it."""
    tables = np.empty((BLOCK, 256), dtype=np.uint32)
    tables[0] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        tables[0] = (tables[0] >> 1) ^ (np.uint32(POLYNOMIAL) * (tables[0] & 1))
    for i in range(1, BLOCK):
        tables[i] = (tables[i - 1] >> np.uint32(8)) ^ tables[0][tables[i - 1] & 0xFF]
    return tables


@cache
def _moving(power: int) -> Words:
    """(4, 256): what each byte of a register becomes when ``2 ** power`` blocks of zeros follow."""
    if power == 0:
        return _tables()[BLOCK - 1 - np.arange(4)]
    before = _moving(power - 1)
    return np.stack([_apply(before, row) for row in before])


def _plain(data: bytes) -> int:
    table = _tables()[0]
    register = 0xFFFFFFFF
    for byte in data:
        register = (register >> 8) ^ int(table[(register ^ byte) & 0xFF])
    return register ^ 0xFFFFFFFF
