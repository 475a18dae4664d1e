"""The demo's cases over several seeds: final validation accuracy untreated, treated, and of the healthy twin.

    python benchmarks/demo.py [--seeds 5] [CASE ...]

Prints one row per case: mean and standard deviation over the seeds, how many seeds were better treated than untreated,
and the gap to the healthy twin that was closed.
"""

import argparse
import statistics
import time

import torch

from trainmedic.demo import ARMS, CASES, Case, compare


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="cases to run (default: all)")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'case':<12}" + "".join(f"{arm:>18}" for arm in ARMS) + f"{'better':>9}{'gap closed':>12}{'seconds':>9}")
    for name in arguments.cases or CASES:
        run_case(CASES[name], arguments.seeds)


def run_case(case: Case, seeds: int) -> None:
    """Run one case and print its row."""
    start = time.perf_counter()
    results = [compare(case, seed=seed) for seed in range(seeds)]
    arms = [[getattr(r, arm).accuracy for r in results] for arm in ("untreated", "treated", "twin")]
    means = [statistics.fmean(arm) for arm in arms]
    spreads = [statistics.stdev(arm) if seeds > 1 else 0.0 for arm in arms]
    better = sum(treated > untreated for untreated, treated in zip(arms[0], arms[1], strict=True))
    closed = (means[1] - means[0]) / max(means[2] - means[0], 1e-9)
    cells = "".join(f"{f'{100 * m:.1f} ± {100 * s:.1f} %':>18}" for m, s in zip(means, spreads, strict=True))
    seconds = (time.perf_counter() - start) / seeds
    print(f"{case.name:<12}{cells}{f'{better}/{seeds}':>9}{100 * closed:>10.0f} %{seconds:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
