"""The checks of fuzz.py on logs that are chosen by which branches of the readers they reach: atheris, by libFuzzer.

    pip install -c constraints.txt -e .[fuzz]
    python benchmarks/fuzz_coverage.py [--runs 100000] [--seed 0] [--corpus DIRECTORY] [FORMAT ...]

What reached something new stays in the corpus, for the next time. Stops at the first input that goes wrong, with its
trouble and where it is kept: two bytes (which seed it comes from, whether its checksums were made anew), then the log.
"""

import argparse
import importlib
import os
import pkgutil
import random
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    raise SystemExit("fuzz_coverage.py needs atheris: pip install -c constraints.txt -e .[fuzz]") from None

os.environ.setdefault("OMP_NUM_THREADS", "1")
with atheris.instrument_imports(include=["trainmedic.readers"]):
    import fuzz

    from trainmedic import readers

    for module in pkgutil.iter_modules(readers.__path__, "trainmedic.readers."):
        importlib.import_module(module.name)  # most readers are imported when they are needed: too late to be watched


def main() -> None:
    """Read what libFuzzer makes of the seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help="parts of the names of seeds")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, help="by default a new directory")
    asked = parser.parse_args()
    fuzz.watch()
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = (asked.corpus or home / "corpus").absolute()
    corpus.mkdir(parents=True, exist_ok=True)
    (home / "seeds").mkdir()
    known = fuzz.seeds(home / "seeds")  # all of them, whatever is asked for: their places stand in the corpus
    for place, seed in enumerate(known):
        if not asked.formats or any(part in seed.name for part in asked.formats):
            (corpus / f"seed-{place}").write_bytes(bytes((place, 0)) + seed.content)
    count = 0

    def read(data: bytes) -> None:
        nonlocal count
        count += 1
        if len(data) < 2 or data[0] >= len(known):
            return
        seed = known[data[0]]
        judged = count % fuzz.JUDGED == 0
        trouble, _ = fuzz.checked(seed, data[2:], bool(data[1]), home / "work", judged, fuzz.Limits())
        if trouble:
            raise AssertionError(f"{seed.name}: {trouble}")

    def mutated(data: bytes, most: int, number: int) -> bytes:
        """Only the log: by libFuzzer, or, where it has checksums, every other time framed anew."""
        head, body, draw = data[:2], data[2:], random.Random(number)
        framed = known[head[0]].framed if len(head) == 2 and head[0] < len(known) else None
        if framed and draw.random() < 0.5:
            try:
                head, body = bytes((head[0], 1)), framed(body, draw)
            except (IndexError, ValueError):  # a log that is too broken to have records
                framed = None
        if not framed or head == data[:2]:
            body = atheris.Mutate(body, most - 2)
        return (head + body)[:most]

    print(f"corpus: {corpus}; what goes wrong is kept in {home}", file=sys.stderr)
    options = [f"-runs={asked.runs}", f"-seed={asked.seed + 1}", f"-max_len={2 * fuzz.LARGEST_SEED}", "-timeout=0"]
    options += ["-rss_limit_mb=0"]  # libFuzzer's own memory grows; what one input takes is checked
    options += ["-cross_over=0", f"-artifact_prefix={home}/", str(corpus)]  # pieces of others bring their numbers along
    atheris.Setup([sys.argv[0], *options], read, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
