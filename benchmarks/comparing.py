"""How often `trainmedic compare` is wrong, and how often it sees what is there, on curves whose truth is known.

    python benchmarks/comparing.py [--draws 1000]

Pairs of runs that are equal but for their noise must not be called different more often than is said; pairs of which
one is worse by the spread of its noise, over the last 40 % of the run, should be. The noise of neighbours correlates
(a process of first order), as that of losses and evaluations does.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import Series
from trainmedic.reports.difference import ALPHA, difference

COUNTS = (8, 20, 50, 100, 1_000, 5_000)
CORRELATIONS = (0.0, 0.5, 0.8, 0.9)


def drawn(count: int, correlation: float, draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(draws, count) noise of spread 1 whose neighbours correlate."""
    noise = generator.standard_normal((draws, count + 300)) * math.sqrt(1 - correlation**2)
    for i in range(1, noise.shape[1]):
        noise[:, i] += correlation * noise[:, i - 1]
    return noise[:, 300:]


def called(
    count: int, correlation: float, draws: int, worse: float, generator: np.random.Generator
) -> tuple[float, float]:
    """(share called better or worse, share called better) for the first of two runs, the second of which is worse."""
    time = np.arange(count, dtype=np.int64)
    trend = 10 + 20 * np.exp(-6 * time / count)
    shift = worse * (time >= 0.6 * count)
    first, second = (drawn(count, correlation, draws, generator) for _ in range(2))
    verdicts = [
        difference(Series(time, trend + a), Series(time, trend + b + shift), -1).verdict
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(np.abs(verdicts))), float(np.mean(np.array(verdicts) > 0))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1_000)
    draws = parser.parse_args().draws
    generator = np.random.default_rng(0)
    for title, worse in ((f"equal runs called different (at most {100 * ALPHA:.0f} %)", 0.0), ("found", 1.0)):
        print(f"\n{title}, by number of values and correlation of neighbours\n")
        print("| values |" + "".join(f" {correlation} |" for correlation in CORRELATIONS))
        print("|--:|" + "--:|" * len(CORRELATIONS))
        for count in COUNTS:
            shares = [called(count, correlation, draws, worse, generator)[worse > 0] for correlation in CORRELATIONS]
            print(f"| {count:,} |" + "".join(f" {100 * share:.1f} % |" for share in shares), flush=True)


if __name__ == "__main__":
    main()
