"""What watching costs: watched against bare steps, interleaved in one process, on three loads and a tiny one.

    python benchmarks/overhead.py [--steps 300] [LOAD ...]

Both sides start from one state and train on the same fresh batches, in turn, step by step, each step timed on its own.
Denormals are flushed. Printed per load: the time of a bare step, then ratios to it (median over all pairs of steps, and
the quartiles of the medians of ten blocks): bare against bare first, which is the noise of this machine, then
`watch` with its defaults after its free allowance is used up, with everything on every step, a naive collector that
calls `.item()` for each layer, and torch's own `clip_grad_norm_` as a yardstick.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
from trainmedic.hooks.schedule import Schedule


class Residual(nn.Module):
    """A residual CNN for images of 32 x 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
            )
            for _ in range(4)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, 32, 32) to logits (n, 10)."""
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class GPT(nn.Module):
    """A transformer language model: 4 layers, width 256, context 128."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(256, 256), nn.Embedding(128, 256)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, 128) to logits (n, 256, 128)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.words(x) + self.places.weight[: x.shape[1]]
        return self.head(self.blocks(hidden, mask=mask, is_causal=True)).transpose(1, 2)


def mlp(width: int, depth: int) -> nn.Sequential:
    """784 inputs, ``depth`` rectified layers, 10 outputs."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(784 if i == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@dataclass(frozen=True)
class Load:
    """A model and what it is fed."""

    model: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]


LOADS = {
    "mlp": Load(lambda: mlp(1024, 3), lambda: (torch.randn(256, 784), torch.randint(0, 10, (256,)))),
    "cnn": Load(Residual, lambda: (torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,)))),
    "gpt": Load(GPT, lambda: (torch.randint(0, 256, (8, 128)), torch.randint(0, 256, (8, 128)))),
    "tiny": Load(lambda: mlp(32, 13), lambda: (torch.randn(16, 784), torch.randint(0, 10, (16,)))),
}


@dataclass
class Side:
    """One arm: a model in training, and what happens around its steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    medic: Any = None
    before_step: Callable[[nn.Module], Any] | None = None

    def step(self, x: Tensor, y: Tensor) -> float:
        """One training step; its seconds."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        if self.before_step is not None:
            self.before_step(self.model)
        self.optimizer.step()
        if self.medic is not None:
            self.medic.log(loss)
        return time.perf_counter() - start


def naive(model: nn.Module) -> list[float]:
    """What a collector written in a hurry does: four numbers per parameter, waited for one by one."""
    return [
        value.item()
        for p in model.parameters()
        if p.grad is not None
        for value in (p.grad.norm(), p.grad.abs().mean(), p.grad.std(), p.norm())
    ]


def clip(model: nn.Module) -> Tensor:
    """The yardstick."""
    return nn.utils.clip_grad_norm_(model.parameters(), 1e9)


def sides() -> Iterator[tuple[str, Callable[[Side], Side]]]:
    """The arms that are held against the bare loop."""

    def watched(settings: dict[str, Any]) -> Callable[[Side], Side]:
        def make(side: Side) -> Side:
            side.medic = trainmedic.watch(
                side.model, side.optimizer, settings=settings, on_finding=lambda finding: None
            )
            side.medic._schedule.spent = Schedule.ALLOWANCE  # what is asked for is the price after the free allowance
            return side

        return make

    def around(function: Callable[[nn.Module], Any]) -> Callable[[Side], Side]:
        def make(side: Side) -> Side:
            side.before_step = function
            return side

        return make

    yield "bare against bare", lambda side: side
    yield "watch, defaults", watched({})
    yield "watch, every step", watched({"every": 1})
    yield "naive .item()", around(naive)
    yield "clip_grad_norm_", around(clip)


def run(load: Load, make: Callable[[Side], Side], steps: int, warmup: int) -> tuple[float, list[float]]:
    """Bare and other steps in turn; seconds of a bare step, and the ratio of each pair."""
    torch.manual_seed(0)
    model = load.model()
    pair = [Side(m, torch.optim.Adam(m.parameters(), 1e-4)) for m in (model, copy.deepcopy(model))]
    bare, other = pair[0], make(pair[1])
    seconds, ratios = [], []
    for i in range(warmup + steps):
        x, y = load.batch()
        first, second = (bare, other) if i % 2 else (other, bare)
        times = {id(first): first.step(x, y), id(second): second.step(x, y)}
        if i >= warmup:
            seconds.append(times[id(bare)])
            ratios.append(times[id(other)] / times[id(bare)])
    if other.medic is not None:
        other.medic.close()
    return statistics.median(seconds), ratios


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", nargs="*", help=f"of {', '.join(LOADS)} (default: all)")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in arguments.loads or LOADS:
        for label, make in sides():
            seconds, ratios = run(LOADS[name], make, arguments.steps, warmup=60)
            blocks = [statistics.median(ratios[i::10]) for i in range(10)]
            low, _, high = statistics.quantiles(blocks, n=4)
            mean = statistics.fmean(ratios)
            print(
                f"{name:<5} {1000 * seconds:8.2f} ms  {label:<18} {statistics.median(ratios):6.3f} x"
                f"  ({low:.3f} to {high:.3f}; mean {mean:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
