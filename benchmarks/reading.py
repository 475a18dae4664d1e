"""How fast logs are read: against TensorBoard's own reader and tbparse, by size, and for many small runs.

    python benchmarks/reading.py [--megabytes 50] [--repeat 3] [--large] [PART ...]

Parts: tensorboard, formats, linear, many, start. All files are generated into a temporary directory. Each time is the
median of ``--repeat`` runs. ``tensorboard`` reads a file of mixed scalars and histograms with EventAccumulator (size
guidance 0) and tbparse (where it is installed), and checks that steps, wall times and values are the same bit for bit.
``linear`` fits processor time = a x size ** b to files of four sizes. ``--large`` analyses an event file of 1 GB.
"""

import argparse
import json
import math
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2

from trainmedic.analysis import analyze, analyze_all
from trainmedic.parallel import processors
from trainmedic.readers import read
from trainmedic.readers.crc32c import length_checksums, masked_crc32c
from trainmedic.readers.events import Run
from trainmedic.readers.reader import Options
from trainmedic.readers.tensorboard import TensorBoardReader

PARTS = ("tensorboard", "formats", "linear", "many", "start")


def events(seed: int, histograms: bool) -> Iterator[bytes]:
    """Endless events: four scalars a step, and every fourth step a histogram, as torch's writer makes them."""
    draw = random.Random(seed)
    limits = [1e-12 * 1.1**i for i in range(60)]
    yield event_pb2.Event(wall_time=1.7e9, file_version="brain.Event:2").SerializeToString()
    step = 0
    while True:
        for tag in ("train/loss", "train/grad_norm", "optimizer/lr", "val/loss"):
            entry = summary_pb2.Summary.Value(tag=tag, simple_value=draw.random())
            yield _event(step, entry)
        if histograms and step % 4 == 0:
            histogram = summary_pb2.HistogramProto(min=0, max=1, num=60, sum=30, sum_squares=20)
            histogram.bucket_limit.extend(limits)
            histogram.bucket.extend(draw.random() for _ in limits)
            yield _event(step, summary_pb2.Summary.Value(tag="gradients/fc1", histo=histogram))
        step += 1


def _event(step: int, entry: object) -> bytes:
    summary = summary_pb2.Summary(value=[entry])
    return event_pb2.Event(wall_time=1.7e9 + step / 7, step=step, summary=summary).SerializeToString()


def write_events(path: Path, size: int, histograms: bool = True) -> Path:
    """An event file of about ``size`` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records: list[bytes] = []
    written = 0
    with open(path, "wb") as file:
        for record in events(0, histograms):
            records.append(record)
            written += len(record) + 16
            if len(records) == 50_000 or written >= size:
                file.write(_framed(records))
                records = []
            if written >= size:
                return path
    return path


def _framed(records: list[bytes]) -> bytes:
    lengths = np.array([len(record) for record in records], dtype=np.int64)
    stop = np.cumsum(lengths)
    of_data = masked_crc32c(np.frombuffer(b"".join(records), dtype=np.uint8), stop - lengths, stop)
    heads = length_checksums(lengths)
    return b"".join(
        struct.pack("<QI", len(record), head) + record + struct.pack("<I", crc)
        for record, head, crc in zip(records, heads.tolist(), of_data.tolist(), strict=True)
    )


def median(work: Callable[[], object], repeat: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds, the median of ``repeat`` calls."""
    times = []
    for _ in range(repeat):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def tensorboard(directory: Path, size: int, repeat: int) -> None:
    """Ours against TensorBoard's own reader and tbparse."""
    for name, histograms in (("mixed", True), ("scalars", False)):
        path = write_events(directory / name / "events.out.tfevents.1.host", size, histograms)
        reader = TensorBoardReader()
        ours = median(lambda: reader.read(path, Options()), repeat)  # noqa: B023 - called at once
        verified = median(lambda: reader.read(path, Options(verify=True)), repeat)  # noqa: B023
        print(f"{name}, {path.stat().st_size / 1e6:.0f} MB: {ours:.2f} s; with checksums {verified:.2f} s")
        print(f"  peak memory {_peak(path) / path.stat().st_size:.1f} x the file, beyond an interpreter with numpy")
        start = time.perf_counter()
        same = _same(path)
        theirs = time.perf_counter() - start
        print(
            f"  EventAccumulator {theirs:.1f} s: {theirs / ours:.0f} x ours, {theirs / verified:.0f} x with checksums"
        )
        print(f"  every step, wall time and value the same: {same}")
        try:
            from tbparse import SummaryReader  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            print("  tbparse is not installed")
            continue
        theirs = median(lambda: SummaryReader(str(path), event_types={"scalars"}).scalars, 1)  # noqa: B023
        print(f"  tbparse {theirs:.1f} s: {theirs / ours:.0f} x ours, {theirs / verified:.0f} x with checksums")


def _same(path: Path) -> bool:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kinds = ("scalars", "tensors", "histograms", "images", "compressedHistograms", "audio")
    accumulator = EventAccumulator(str(path), size_guidance=dict.fromkeys(kinds, 0))
    accumulator.Reload()
    ours = {name: rest for name, *rest in Run.of([path]).scalars()}
    theirs = accumulator.Tags()["scalars"]
    return sorted(ours) == sorted(theirs) and all(
        np.array_equal(
            np.stack(ours[tag]), np.array([(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)]).T
        )
        for tag in theirs
    )


def _peak(path: Path) -> int:
    """Bytes that reading takes at most, beyond what the imports take."""
    code = (
        "import re, sys; from pathlib import Path; from trainmedic.readers.tensorboard import TensorBoardReader; "
        "from trainmedic.readers.reader import Options; "
        "used = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]); "
        "before = used(); TensorBoardReader().read(Path(sys.argv[1]), Options()); print((used() - before) * 1024)"
    )
    return int(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True).stdout)


def rows(count: int) -> Iterator[tuple[int, float, float, float]]:
    """Step, loss, learning rate and gradient norm, with six digits as most tools print them."""
    draw = random.Random(0)
    for step in range(count):
        yield step, round(math.exp(-step / count) + draw.random() / 10, 6), 0.001, round(draw.random(), 6)


def write_csv(path: Path, count: int) -> Path:
    """Four columns."""
    lines = (f"{step},{loss},{rate},{norm}\n" for step, loss, rate, norm in rows(count))
    return _write(path, "step,loss,lr,grad_norm\n", lines)


def write_sparse_csv(path: Path, count: int) -> Path:
    """Lightning's: validation every tenth row, on rows of its own."""
    lines = (
        f"{step // 100},{step},,{norm}\n" if step % 10 == 0 else f"{step // 100},{step},{loss},\n"
        for step, loss, _, norm in rows(count)
    )
    return _write(path, "epoch,step,train_loss,val_loss\n", lines)


def write_jsonl(path: Path, count: int) -> Path:
    """Four numbers a line."""
    lines = (
        json.dumps({"step": step, "loss": loss, "lr": rate, "grad_norm": norm}) + "\n"
        for step, loss, rate, norm in rows(count)
    )
    return _write(path, "", lines)


def write_text(path: Path, count: int) -> Path:
    """Four numbers a line."""
    lines = (f"step {step}: loss {loss}, lr {rate}, grad_norm {norm}\n" for step, loss, rate, norm in rows(count))
    return _write(path, "", lines)


def write_state(path: Path, count: int) -> Path:
    """A ``trainer_state.json``."""
    history = [
        {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm} for step, loss, rate, norm in rows(count)
    ]
    return _write(path, json.dumps({"log_history": history}), ())


def _write(path: Path, first: str, lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        file.write(first)
        file.writelines(lines)  # type: ignore[arg-type]
    return path


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "log.csv": write_csv,
    "metrics.csv": write_sparse_csv,
    "log.jsonl": write_jsonl,
    "train.log": write_text,
    "trainer_state.json": write_state,
}


def formats(directory: Path, _size: int, repeat: int) -> None:
    """A file of a million rows in each text format; 200,000 where each row costs more."""
    for name, writer in WRITERS.items():
        count = 1_000_000 if name.endswith(".csv") else 200_000
        path = writer(directory / "formats" / name, count)
        seconds = median(lambda: read(path), repeat)  # noqa: B023 - called at once
        megabytes = path.stat().st_size / 1e6
        print(f"{name}: {count:,} rows, {megabytes:.0f} MB in {seconds:.2f} s ({megabytes / seconds:.0f} MB/s)")


def linear(directory: Path, size: int, repeat: int) -> None:
    """How time grows with size: that of the processor, which other processes take no part of."""
    for name, writer in {"events": None, **WRITERS}.items():
        sizes, times = [], []
        for part in (1, 2, 4, 8):
            if writer is None:
                path = write_events(directory / "linear" / str(part) / "events.out.tfevents.1.host", size * part // 8)
            else:
                path = writer(directory / "linear" / str(part) / name, 20_000 * part)
            sizes.append(path.stat().st_size)
            times.append(median(lambda: read(path), repeat, time.process_time))  # noqa: B023 - called at once
        exponent = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        print(f"{name}: time grows as size ** {exponent:.2f} ({sizes[-1] / 1e6:.0f} MB in {times[-1]:.2f} s)")


def many(directory: Path, _size: int, _repeat: int) -> None:
    """A thousand small runs of mixed formats, read and judged: by one process, and by one a processor."""
    root = directory / "many"
    writers = [*WRITERS.items(), ("events.out.tfevents.1.host", lambda path, _: write_events(path, 20_000))]
    for run in range(1_000):
        name, writer = writers[run % len(writers)]
        writer(root / f"run{run}" / name, 100)
    print(f"1,000 small runs: read in {median(lambda: read(root), 1):.1f} s")
    for jobs in sorted({1, processors()}):
        seconds = median(lambda: analyze_all([str(root)], jobs=jobs), 1)  # noqa: B023 - called at once
        print(f"1,000 small runs: analysed in {seconds:.1f} s ({jobs} at once)")


def start(directory: Path, _size: int, repeat: int) -> None:
    """The command line on a small log against the import of scipy.stats."""
    path = write_csv(directory / "small" / "log.csv", 100)

    commands = (["-c", "import scipy.stats"], ["-m", "trainmedic", "analyze", str(path)])
    times: list[list[float]] = [[], []]
    for _ in range(4 * repeat + 1):  # in turn: what else the machine does falls on both
        for each, command in zip(times, commands, strict=True):
            done = lambda command=command: subprocess.run([sys.executable, *command], capture_output=True)  # noqa: E731
            each.append(median(done, 1))
    base, ours = map(statistics.median, times)
    print(f"analyze on a small log {ours:.2f} s, import scipy.stats {base:.2f} s: {ours / base:.2f} x")
    loaded = subprocess.run([sys.executable, "-X", "importtime", *commands[1]], capture_output=True, text=True).stderr
    print(f"  torch imported: {'| torch' in loaded}")


def large(directory: Path) -> None:
    """An event file of 1 GB, analysed: the same 50 MB again and again."""
    path = write_events(directory / "large" / "events.out.tfevents.1.host", 50_000_000)
    content = path.read_bytes()
    with open(path, "ab") as file:
        for _ in range(19):
            file.write(content)
    for what, work in (("read", lambda: read(path)), ("analysed", lambda: analyze(path))):
        start, begun = time.perf_counter(), time.process_time()
        work()
        busy = time.process_time() - begun
        print(f"1 GB of events: {what} in {time.perf_counter() - start:.1f} s ({busy:.1f} s of one processor)")


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--large", action="store_true")
    asked = parser.parse_args()
    works = {work.__name__: work for work in (tensorboard, formats, linear, many, start)}
    unknown = sorted(set(asked.parts) - set(works))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(works)}")
    with tempfile.TemporaryDirectory() as directory:
        for part in asked.parts or ([] if asked.large else PARTS):
            works[part](Path(directory), asked.megabytes * 1_000_000, asked.repeat)
        if asked.large:
            large(Path(directory))


if __name__ == "__main__":
    main()
