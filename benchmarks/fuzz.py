"""Logs that were damaged or made up: each gives runs or one clear error, soon, in little memory, and nothing else.

    python benchmarks/fuzz.py [--inputs 100000] [--seed 0] [--seconds 5] [--megabytes 400] [FORMAT ...]

Seeds are the samples below tests/, and small logs of the formats that have none. Each input is a seed with a few
mutations (bytes, pieces, numbers, nasty texts, parts of other seeds, cut off); of event files and W&B's runs every
other one is framed anew, so that its checksums are right and what is inside is parsed. Told are tracebacks, hangs
(beyond --seconds), memory beyond --megabytes for one input, files that appear, and, with checksums verified, numbers
that were never in the seed. Exit code: 0 where there are none, else 1; inputs that failed are kept in the directory
that is printed at the end. Inputs chosen by the lines that they reach: benchmarks/fuzz_coverage.py
"""

import argparse
import collections
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from trainmedic.diagnose.judge import judge
from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import read
from trainmedic.readers.crc32c import length_checksums, masked_crc32c
from trainmedic.reports import github, markdown, sarif
from trainmedic.reports.report import Report

ROOT = Path(__file__).parents[1]
LARGEST_SEED = 1 << 15
JUDGED = 50  # one input of so many is also judged and shown
NASTY = [
    *(b"", b"\0", b"\n", b"\r", b",", b'"', b"'", b"NaN", b"-Infinity", b"1e999", b"-1", b"9" * 400, b"1_0", b"0x1"),
    *(
        b"{",
        b"[",
        b"]}",
        b"[" * 3_000,
        b'{"a":' * 3_000,
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\x1b[31m\x1b]0;x\x07",
        b"\xff" * 9,
    ),
    *(b"<script>alert(1)</script>", b"[a](javascript:b)", b"|`*_@", b"../../../x", b"C:\\x", b"\xe2\x80\xae", b"%s%n"),
    *(
        b'<!DOCTYPE a [<!ENTITY b "c">]>',
        b"&amp;&lol9;",
        b"!!python/object/apply:os.system",
        b"step",
        b"epoch",
        b"loss",
    ),
    *(struct.pack("<Q", n) for n in (0, 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)),
]


@dataclass
class Seed:
    """A log that is mutated: the name that it is written under, and how its records are framed anew, if they are."""

    name: str
    content: bytes
    framed: Callable[[bytes, random.Random], bytes] | None = None
    numbers: frozenset[float] = frozenset()


@dataclass(frozen=True)
class Limits:
    """What one input may take."""

    seconds: float = 5
    megabytes: int = 400


class Hang(Exception):
    """Reading took too long."""


def seeds(directory: Path) -> list[Seed]:
    """The samples that are small, the beginnings of others, and small logs of what has no sample."""
    found = []
    for path in sorted([*(ROOT / "tests" / "samples").rglob("*"), *(ROOT / "tests/readers/samples").rglob("*")]):
        if path.is_file() and path.suffix != ".md" and "params" not in path.parts and "tags" not in path.parts:
            name = f"metrics/{path.name}" if "metrics" in path.parts else path.name
            found.append(Seed(name, path.read_bytes()[:LARGEST_SEED], FRAMES.get(path.suffix)))
    for seed in found:
        seed.framed = _events_anew if ".tfevents." in seed.name else seed.framed
    history = History.of(train_loss=[3.0, 2.0, 1.0], fc1__gradient_norm=[1.0, 2.0, 3.0], facts={"loss": "mse"})
    history.save(directory / "history.npz")
    found.append(Seed("history.npz", (directory / "history.npz").read_bytes()))
    found.append(Seed("mlflow.db", _database(directory / "mlflow.db")))
    lines = [{"step": i, "loss": 1 / (i + 1), "val": {"loss": i, "acc": [1]}, "mode": "train"} for i in range(30)]
    found.append(Seed("log.jsonl", "\n".join(map(json.dumps, lines)).encode()))
    found.append(Seed("history.json", json.dumps({"a": {"loss": [3, 2, 1], "val_loss": [3, 2, 2]}}).encode()))
    found.append(Seed("results.csv", b"epoch,train/box_loss,train/cls_loss,val/box_loss\n0,1,2,3\n1,1,1,2\n2,1,1,1\n"))
    found.append(Seed("log.tsv", b"# step\tloss\tlr\n1\t2,5\t1\n2\t2,25\t1\n\n3\t\t1\n"))
    text = "\x1b[1m[rank0]: step %d/100: loss %.2f | lr 1e-3\n 10%%|## | 1/9 [00:01<00:09, loss=%.2f]\r"
    text += "Epoch: [%d][ 1/5]\tTime 1 (2)\n"
    found.append(Seed("train.log", "".join(text % (i, 3 - i / 9, i, i) for i in range(20)).encode()))
    for seed in found:
        if ".tfevents." in seed.name or seed.name.endswith(".wandb"):
            seed.numbers = frozenset(_numbers(_read(directory / "seed", seed.name, seed.content)))
    return found


def _database(path: Path) -> bytes:
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE metrics (key TEXT, value FLOAT, timestamp BIGINT, run_uuid TEXT, step BIGINT, is_nan BOOLEAN)"
        )
        rows = [("loss", 1 / (i + 1), 1_700_000_000_000 + i, "r", i, i == 9) for i in range(20)]
        connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.close()
    return path.read_bytes()


def _events_anew(content: bytes, draw: random.Random) -> bytes:
    """The records of an event file, mutated within and framed with the right checksums."""
    records, at = [], 0
    while at + 16 <= len(content):
        length = struct.unpack_from("<Q", content, at)[0]
        records.append(bytearray(content[at + 12 : at + 12 + length]))
        at += length + 16
    for _ in range(draw.randint(1, 4)):
        record = draw.choice(records)
        record[:] = mutated(bytes(record), draw, [])
    return b"".join(map(_framed, records))


def _framed(record: bytearray) -> bytes:
    length = np.array([len(record)], dtype=np.int64)
    data = np.frombuffer(bytes(record), dtype=np.uint8)
    crc = int(masked_crc32c(data, length * 0, length)[0])
    return struct.pack("<QI", len(record), int(length_checksums(length)[0])) + bytes(record) + struct.pack("<I", crc)


def _wandb_anew(content: bytes, draw: random.Random) -> bytes:
    """The records of a W&B run, each whole in one part, mutated within and with the right checksums."""
    out, at = bytearray(content[:7]), 7
    while at + 7 <= len(content):
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data = content[at + 7 : at + 7 + length]
        if draw.random() < 0.05:
            data = mutated(data, draw, [])[:60_000]
        out += struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data
        at += 7 + length
    return bytes(out)


FRAMES = {".wandb": _wandb_anew}


def mutated(content: bytes, draw: random.Random, others: list[Seed]) -> bytes:
    """The content with a few mutations."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randint(0, len(data))
        until = min(len(data), at + draw.choice((0, 1, 2, 8, 40, 500)))
        kind = draw.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at:until] = draw.randbytes(draw.choice((1, 2, 8, 40)))
        elif kind == 2:
            data[at:until] = draw.choice(NASTY)
        elif kind == 3:
            del data[at:until]
        elif kind == 4:
            data[at:at] = data[at:until] * draw.choice((1, 2, 30))
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            data[at:until] = str(draw.choice((draw.random(), draw.getrandbits(70), -1, float("nan")))).encode()
        elif others:
            other = draw.choice(others).content
            start = draw.randint(0, len(other))
            data[at:until] = other[start : start + draw.choice((8, 200, 2_000))]
    return bytes(data[: 2 * LARGEST_SEED])


def _read(directory: Path, name: str, content: bytes, verify: bool = True) -> list[History]:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return read(path, verify=verify)


def _numbers(histories: list[History]) -> Iterator[float]:
    for history in histories:
        for name in history.names():
            yield from history.series(name).values.tolist()


def tried(seed: Seed, content: bytes, anew: bool, directory: Path, judged: bool) -> tuple[str, str]:
    """("", how it ended) or (what is wrong, how it ended)."""
    try:
        histories = _read(directory, seed.name, content)
    except UnreadableError as error:
        text = str(error)
        unforeseen = text.partition(": broken ")[2].partition(":")[0]
        wrong = "an error of several lines, or without its place" if "\n" in text or seed.name not in text else ""
        if isinstance(error.__cause__, Warning):
            wrong = f"a warning: {error.__cause__}"
        return wrong, f"refused (unforeseen: {type(error.__cause__).__name__})" if unforeseen else "refused"
    finite = {number for number in _numbers(histories) if number == number}
    if seed.numbers and not anew and not finite <= seed.numbers:
        return "a wrong number in spite of its checksum", "read"
    if judged:
        reports = [Report.from_history(history, path=seed.name) for history in histories]
        for text in (reports[0].to_text(), markdown.render(*reports), sarif.render(reports), github.render(reports)):
            if "\x1b" in text or "<script" in text:
                return "a text that does something", "read"
        for history in histories:
            judge(history)
    return "", "read"


def checked(seed: Seed, content: bytes, anew: bool, work: Path, judged: bool, limits: Limits) -> tuple[str, str]:
    """As :func:`tried`; also told are tracebacks, hangs, too much memory, and files that appear."""
    before = _peak()
    signal.setitimer(signal.ITIMER_REAL, limits.seconds)
    try:
        trouble, end = tried(seed, content, anew, work, judged)
    except Hang:
        trouble, end = "a hang", "given up"
    except Exception as error:
        trouble, end = f"a traceback: {type(error).__name__}: {error!s:.80}", "traceback"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if _peak() - before > limits.megabytes << 20:
        trouble = trouble or f"{(_peak() - before) >> 20} MB for one input"
    if sorted(path for path in work.rglob("*") if path.is_file()) != [work / seed.name]:
        trouble = trouble or "a file that appeared"
    (work / seed.name).unlink(missing_ok=True)
    return trouble, end


def watch() -> None:
    """Let the alarm end what takes too long, and warnings count as mistakes."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    warnings.simplefilter("error", RuntimeWarning)  # what numpy says of a number would stand on the user's screen


def main() -> int:
    """Make up logs and read them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help="parts of the names of seeds")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--megabytes", type=int, default=400)
    asked = parser.parse_args()
    watch()
    draw = random.Random(asked.seed)
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    kept, work = home / "kept", home / "work"
    kept.mkdir()
    (home / "seeds").mkdir()
    known = [one for one in seeds(home / "seeds") if not asked.formats or any(f in one.name for f in asked.formats)]
    ends: collections.Counter[tuple[str, str]] = collections.Counter()
    wrong: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest, start = (0.0, ""), time.monotonic()
    for number in range(asked.inputs):
        seed = draw.choice(known)
        anew = seed.framed is not None and draw.random() < 0.5
        content = seed.framed(seed.content, draw) if anew and seed.framed else mutated(seed.content, draw, known)
        began = time.monotonic()
        limits = Limits(asked.seconds, asked.megabytes)
        trouble, end = checked(seed, content, anew, work, number % JUDGED == 0, limits)
        slowest = max(slowest, (time.monotonic() - began, seed.name))
        ends[seed.name, end] += 1
        if trouble:
            wrong[seed.name, trouble] += 1
            (kept / f"{number}-{seed.name.replace('/', '-')}").write_bytes(content)
        if sys.stderr.isatty() and number % 500 == 0:
            print(f"\r{number:,} of {asked.inputs:,}, {sum(wrong.values())} wrong", end="", file=sys.stderr)
    _tell(asked.inputs, time.monotonic() - start, slowest, _peak(), ends, wrong)
    if wrong:
        print(f"kept in {kept}")
    else:
        shutil.rmtree(home)
    return 1 if wrong else 0


def _peak() -> int:
    """Bytes that this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _tell(
    inputs: int,
    seconds: float,
    slowest: tuple[float, str],
    peak: int,
    ends: collections.Counter[tuple[str, str]],
    wrong: collections.Counter[tuple[str, str]],
) -> None:
    print(f"{inputs:,} inputs in {seconds:.0f} s; slowest {slowest[0]:.2f} s ({slowest[1]}); peak {peak >> 20} MB")
    for name in sorted({name for name, _ in ends}):
        print(f"  {name}: " + ", ".join(f"{end} {count:,}" for (of, end), count in sorted(ends.items()) if of == name))
    print(f"{sum(wrong.values()):,} wrong")
    for (name, trouble), count in wrong.most_common():
        print(f"  {name}: {trouble} ({count:,})")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
