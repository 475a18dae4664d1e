"""What a long recording holds in memory and on disk: every series at every step, every statistic of 300 layers.

    python benchmarks/recording.py [--steps 1000000] [--layers 300] [--every 100]

A process records ``--steps`` steps as a live run does, all statistics of all layers at every ``--every``-th, saves them
once and loads the file again. Printed: the most memory that it held above what it began with (as the system counts it),
the size of the file, the seconds it all took, and whether what was loaded is what was saved.
"""

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trainmedic.history import SERIES, STATISTICS, History, Snapshot
from trainmedic.hooks.memory import resident


def record(steps: int, layers: int, every: int) -> History:
    """A bounded history of a run of noise."""
    history = History(bounded=True)
    noise = np.random.default_rng(0).normal(size=(64, layers)).tolist()
    names = [f"blocks.{i // 6}.part{i % 6}.weight" for i in range(layers)]
    rows = [dict(zip(names, values, strict=True)) for values in noise]
    for step in range(steps):
        snapshot = Snapshot(step, dict.fromkeys(SERIES, noise[step % 64][0]))
        if step % every == 0:
            snapshot.layers = dict.fromkeys(STATISTICS, rows[step // every % 64])
        history.record(snapshot)
    return history


def same(one: History, other: History) -> bool:
    """Whether two histories hold the same numbers under the same names."""
    if (one.names(), one.statistics(), one.facts) != (other.names(), other.statistics(), other.facts):
        return False
    pairs = [(one.series(name), other.series(name)) for name in one.names()]
    tables = [(one.layers(name), other.layers(name)) for name in one.statistics()]
    return all(a.layers == b.layers for a, b in tables) and all(
        np.array_equal(a.steps, b.steps) and np.array_equal(a.values, b.values, equal_nan=True)
        for a, b in [*pairs, *tables]
    )


def most_resident() -> float:
    """The most memory that this process ever held, in bytes."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:  # getrusage counts the parent's too
        return next(1024 * float(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def main() -> None:
    """Read the command line, record, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="every how many steps layers are recorded")
    arguments = parser.parse_args()
    held, start = resident() or 0.0, time.perf_counter()
    history = record(arguments.steps, arguments.layers, arguments.every)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.npz"
        recorded, began = time.perf_counter() - start, time.perf_counter()
        history.save(path)
        saved = time.perf_counter() - began
        peak = most_resident() - held
        size, equal = path.stat().st_size, same(history, History.load(path))
    print(f"{arguments.steps} steps x {arguments.layers} layers, recorded in {recorded:.0f} s, saved in {saved:.1f} s")
    print(f"memory {peak / 1e6:.1f} MB, file {size / 1e6:.1f} MB, loaded {'as it was saved' if equal else 'CHANGED'}")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
