"""What judging costs: a million steps of 300 layers from scratch, and live, beside the steps that it judges.

    python benchmarks/judging.py                # both
    python benchmarks/judging.py --rules        # also each rule's share
    python benchmarks/judging.py --steps 100000 --layers 50

From scratch: every run-level series holds a value at each step, as a log does, and each layer statistic what a live
recording holds. Three runs: one that learns, one that stands at chance (rules that find something look back to where it
began), one that diverged. Live: a small net and one of 300 layers are trained under `watch`; the time of judging is
held against that of all steps. What judging costs a step does not depend on how long a step takes, and falls as a run
goes on: so it is also told from which time of a step on the bar holds.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import trainmedic  # noqa: E402
from trainmedic import medic as medic_module  # noqa: E402
from trainmedic.diagnose.judge import catalogue, judge  # noqa: E402
from trainmedic.history import SERIES, STATISTICS, History, Layer, Snapshot  # noqa: E402

BAR_SECONDS, BAR_SHARE = 2.0, 0.002
Curve = Callable[[np.ndarray], np.ndarray]
RUNS: dict[str, Curve] = {
    "learns": lambda t: 0.3 + 2.0 * np.exp(-12 * t),
    "stands at chance": lambda t: 2.3026 + 0 * t,
    "diverged": lambda t: 0.3 + 2.0 * np.exp(-12 * t) + np.where(t > 0.7, 40 * (t - 0.7), 0),
}


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=300, help="weight matrices; each has a bias and an activation")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rules", action="store_true", help="print each rule's seconds")
    parser.add_argument("--live", type=int, default=2_000, metavar="STEPS", help="steps of the live runs; 0: none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge(recording(RUNS["diverged"], 1_000, 4))  # imports what rules need
    print(f"{arguments.steps:,} steps x {arguments.layers} layers, from scratch (bar: {BAR_SECONDS:g} s)")
    for name, curve in RUNS.items():
        history = recording(curve, arguments.steps, arguments.layers)
        seconds = [timed(partial(judge, history)) for _ in range(arguments.repeats)]
        found = [finding.code for finding in judge(history).findings]
        print(f"  {name:<18}{statistics.median(seconds):6.2f} s   {' '.join(found) or 'nothing found'}")
        if arguments.rules:
            by_rule(history)
    if arguments.live:
        print(f"live, {arguments.live:,} steps (bar: {100 * BAR_SHARE:g} % of step time)")
        for name, width, depth in (("4 layers, 1 ms a step", 128, 4), ("300 layers", 32, 300)):
            live(name, width, depth, arguments.live)


def by_rule(history: History) -> None:
    """Seconds of each rule, the slowest first."""
    rules = [rule() for rule in catalogue()]
    seconds = {rule.name: timed(partial(judge, history, [rule])) for rule in rules}
    for name, value in sorted(seconds.items(), key=lambda item: -item[1])[:12]:
        print(f"    {name:<26}{1000 * value:8.1f} ms")


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def recording(curve: Curve, steps: int, layers: int) -> History:
    """A run as it is recorded, with every series and every statistic there is."""
    random = np.random.default_rng(0)
    history = History()
    at = np.arange(steps)
    loss = curve(at / steps) * np.exp(0.05 * random.standard_normal(steps))
    usual = {
        "train/loss": loss,
        "gradient/norm": np.exp(0.3 * random.standard_normal(steps)),
        "gradient/clipped": np.ones(steps),
        "optimizer/learning_rate": 1e-3 * (1 - 0.9 * at / steps),
        "optimizer/loss_scale": np.full(steps, 1024.0),
        "time/step": np.full(steps, 0.1),
        "time/data": np.full(steps, 0.001),
        "memory/host": np.full(steps, 1e9),
        "input/feature_scale": np.ones(steps),
        "input/feature_scale_max": np.full(steps, 2.0),
        "output/batch_std": np.full(steps, 1.0),
        "output/row_sum_error": np.full(steps, 3.0),
        "output/min": np.full(steps, -3.0),
        "output/max": np.full(steps, 3.0),
        "output/accuracy": np.clip(1 - loss / 2.5, 0.1, 1),
    }
    for name in SERIES:
        if name != "validation/loss":
            history.add_series(name, at, usual.get(name, np.zeros(steps)))
    every = max(1, steps // 1_000)
    history.add_series("validation/loss", at[::every], loss[::every] * 1.1)
    history.facts.update(
        loss="CrossEntropyLoss", reduction="mean", classes=10, total_steps=steps, optimizer="Adam", batch_size=64
    )
    for i in range(layers):
        history.architecture[f"l{i}"] = Layer(f"l{i}", "Linear", 2 * i, (64,))
        history.architecture[f"l{i}.weight"] = Layer(f"l{i}.weight", "parameter", 2 * i, (64, 64))
        history.architecture[f"l{i}.bias"] = Layer(f"l{i}.bias", "parameter", 2 * i, (64,))
        kind = "Tanh" if i % 2 else "ReLU"
        history.architecture[f"a{i}"] = Layer(f"a{i}", kind, 2 * i + 1, (64,), activation=kind.lower())
    rows = min(History.TABLE_LIMIT, steps)
    measured = np.unique(np.concatenate([np.arange(min(64, steps)), np.linspace(0, steps - 1, rows).astype(int)]))
    for statistic in STATISTICS:
        fill(history, statistic, measured, layers, random)
    return history


def fill(history: History, statistic: str, steps: np.ndarray, layers: int, random: np.random.Generator) -> None:
    """One layer table with plausible values."""
    own = (".weight", ".bias") if STATISTICS[statistic].startswith(("per parameter", "per weight")) else ("",)
    names = [f"l{i}{end}" for i in range(layers) for end in own]
    if statistic in ("label_share", "predicted_share"):
        names = [str(label) for label in range(10)]
    elif not STATISTICS[statistic].startswith(("per parameter", "per weight", "per module")):
        names = [f"a{i}" for i in range(layers)]
    level = {
        "gradient_norm": 0.1, "gradient_mean_abs": 1e-3, "weight_norm": 5.0, "weight_std": 0.07, "update_ratio": 1e-3,
        "activation_std": 1.0, "activation_batch_std": 1.0, "activation_max": 4.0, "label_share": 0.1,
        "predicted_share": 0.1, "batchnorm_training": 1.0, "batchnorm_values": 1e3, "dead_samples": 1e6,
    }.get(statistic, 0.0)  # fmt: skip
    noise = 0.1 if statistic not in ("label_share", "predicted_share") else 0.0
    history.record(Snapshot(0, layers={statistic: dict.fromkeys(names, 0.0)}))
    values = level * np.exp(noise * random.standard_normal((len(steps), len(names))))
    history._tables[statistic].fill(steps, values)


def live(name: str, width: int, depth: int, steps: int) -> None:
    """Train a net of linear layers and print judging's share of the time."""
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    x, y = torch.randn(256, width), torch.randint(0, 10, (256,))
    spent: list[float] = []
    honest = medic_module.judge

    def measured(*given: object) -> object:
        start = time.perf_counter()
        try:
            return honest(*given)  # type: ignore[arg-type]
        finally:
            spent.append(time.perf_counter() - start)

    medic_module.judge = measured  # type: ignore[assignment]
    try:
        start = time.perf_counter()
        with trainmedic.watch(model, optimizer, loss_fn=nn.CrossEntropyLoss(), total_steps=steps, settings={}) as medic:
            for step in range(steps):
                batch = torch.arange(32) + 32 * (step % 8)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                loss.backward()
                optimizer.step()
                medic.log(loss)
            taken = time.perf_counter() - start
            judging = sum(spent)
    finally:
        medic_module.judge = honest
    print(
        f"  {name:<24}{1000 * taken / steps:7.2f} ms a step, judged {len(spent)} times, "
        f"{1000 * judging / max(1, len(spent)):.1f} ms each, {100 * judging / taken:.2f} % of the time; within the bar "
        f"for steps of {1000 * judging / steps / BAR_SHARE:.0f} ms and more"
    )


if __name__ == "__main__":
    main()
