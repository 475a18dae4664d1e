"""What watching costs: watched against bare steps, interleaved in one process, on three loads and a tiny one.

    python benchmarks/overhead.py [--steps 500] [--arms bare,watch] [--clock cpu] [--memory] [--device cuda --block 20]
        [LOAD ...]

All arms start from one state and train on the same fresh batches, step by step, in an order drawn anew for each, each
step timed on its own (on a machine that does other work too, ``--clock cpu`` counts the process' own time). Denormals
are flushed. Where in memory a model happens to lie makes up to 1 % of difference between equal arms, for as long as it
lives: so all arms are made anew several times, in another order, by an allocator that keeps what is freed. Printed per
load: the time of a bare step, then ratios to it (the median of the rounds' medians, their quartiles, and the mean):
bare against bare first, which is the noise of this machine, then ``watch`` with its defaults as in the middle of a run
of 10,000 steps (2 steps of 128 are measured in full; the mean has them, if so many steps are timed), with everything on
every step, one fused norm of all gradients, which is the floor of anything that reads each gradient once, torch's own
``clip_grad_norm_`` as a yardstick, a naive collector that calls ``.item()`` for each layer, and W&B's
``watch(log="all")`` offline at its default frequency and at 1 (where wandb is installed). ``--memory`` prints peak
memory.
"""

import argparse
import dataclasses
import importlib.util
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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


GLOBAL_HOOKS: list[dict[int, Any]] = [
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_hooks_with_kwargs,
    nn.modules.module._global_forward_pre_hooks,
]
"""Where hooks lie that torch calls for every module of the process."""


@dataclass
class Side:
    """One arm: a model in training, and what happens around its steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    medic: Any = None
    before_step: Callable[[nn.Module], Any] | None = None
    after_step: Callable[[Tensor], Any] | None = None
    close: Callable[[], Any] | None = None
    hooks: list[dict[int, Any]] = field(default_factory=lambda: [{} for _ in GLOBAL_HOOKS])

    def set_aside(self) -> None:
        """Take this arm's global hooks away, so that the others do not pay for them."""
        self.hooks = [dict(registry) for registry in GLOBAL_HOOKS]
        for registry in GLOBAL_HOOKS:
            registry.clear()

    def take_up(self) -> None:
        """Put them back."""
        for registry, own in zip(GLOBAL_HOOKS, self.hooks, strict=True):
            registry.update(own)

    def step(self, x: Tensor, y: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        if self.before_step is not None:
            self.before_step(self.model)
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step(loss)


def naive(model: nn.Module) -> list[float]:
    """What a collector written in a hurry does: four numbers per parameter, waited for one by one."""
    return [
        value.item()
        for p in model.parameters()
        if p.grad is not None
        for value in (p.grad.norm(), p.grad.abs().mean(), p.grad.std(), p.norm())
    ]


def norm(model: nn.Module) -> Tensor:
    """The floor: every gradient read once, by one fused call. Below it no global norm at every step can be had."""
    with torch.no_grad():
        return torch.stack(torch._foreach_norm([p.grad for p in model.parameters() if p.grad is not None]))


def clip(model: nn.Module) -> Tensor:
    """The yardstick."""
    return nn.utils.clip_grad_norm_(model.parameters(), 1e9)


def watched(side: Side, every: int | None) -> Side:
    """Under the medic; without ``every`` as in a run of 10,000 steps whose free allowance is used up."""
    settings = {"every": every} if every else {}
    total = None if every else 10_000
    side.medic = trainmedic.watch(
        side.model, side.optimizer, settings=settings, total_steps=total, on_finding=lambda finding: None
    )
    side.medic._schedule.spent = Schedule.ALLOWANCE
    if every is None:
        side.medic._schedule.interval = 128  # where the budget leads in such a run
    side.after_step, side.close = side.medic.log, side.medic.close
    return side


def wandb(side: Side, frequency: int) -> Side:
    """Under ``wandb.watch(log="all")``, offline."""
    import wandb as weights_and_biases

    os.environ["WANDB_SILENT"] = "true"
    run = weights_and_biases.init(mode="offline", dir=tempfile.mkdtemp(), project="overhead")
    run.watch(side.model, log="all", log_freq=frequency)
    side.after_step, side.close = lambda loss: run.log({"loss": loss.detach()}), run.finish
    return side


ARMS: dict[str, Callable[[Side], Side]] = {
    "": lambda side: side,
    "bare": lambda side: side,
    "watch": lambda side: watched(side, None),
    "watch, every step": lambda side: watched(side, 1),
    "norm": lambda side: dataclasses.replace(side, before_step=norm),
    "clip_grad_norm_": lambda side: dataclasses.replace(side, before_step=clip),
    "naive .item()": lambda side: dataclasses.replace(side, before_step=naive),
    "W&B, every 1000th": lambda side: wandb(side, 1000),
    "W&B, every step": lambda side: wandb(side, 1),
}
"""The bare loop, and what is held against it."""


def side(load: Load, arm: str, device: str) -> Side:
    """A fresh arm: every one from the same state."""
    torch.manual_seed(0)
    model = load.model().to(device)
    bare = Side(model, torch.optim.Adam(model.parameters(), 1e-4))
    x, y = load.batch()
    bare.step(x.to(device), y.to(device))  # the optimizer's state lies where a bare run has it, in every arm
    return ARMS[arm](bare)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(side: Side, batches: list[tuple[Tensor, Tensor]], device: str, clock: str) -> float:
    """Time of one step, over a block of them."""
    side.take_up()
    start = CLOCKS[clock]()
    for x, y in batches:
        side.step(x, y)
    if device == "cuda":
        torch.cuda.synchronize()
    taken = CLOCKS[clock]() - start
    side.set_aside()
    return taken / len(batches)


def ratios(load: Load, arms: list[str], arguments: argparse.Namespace, number: int) -> dict[str, list[float]]:
    """One round: blocks of steps of a bare arm and the others, in turn. Ratios by arm; "": seconds of a bare step."""
    torch.manual_seed(1 + number)
    chance = random.Random(number)
    everyone = ["", *arms]
    shift = number % len(everyone)
    sides = {}
    for arm in everyone[shift:] + everyone[:shift]:
        sides[arm] = side(load, arm, arguments.device)
        sides[arm].set_aside()
    found: dict[str, list[float]] = {arm: [] for arm in everyone}
    for i in range(arguments.warmup // arguments.block + arguments.steps // arguments.block // arguments.rounds):
        batches = [tuple(part.to(arguments.device) for part in load.batch()) for _ in range(arguments.block)]
        order = chance.sample(everyone, len(everyone))  # none always comes after the same other one
        taken = {arm: seconds(sides[arm], batches, arguments.device, arguments.clock) for arm in order}
        if i >= arguments.warmup // arguments.block:
            found[""].append(taken[""])
            for arm in arms:
                found[arm].append(taken[arm] / taken[""])
    for each in sides.values():
        each.take_up()
        if each.close is not None:
            each.close()
    return found


def memory(name: str, arm: str, device: str) -> float:
    """Peak memory of a process of its own that trains 60 steps, in bytes."""
    code = (
        f"import overhead, torch, resource; torch.set_num_threads(1); load = overhead.LOADS[{name!r}]\n"
        f"side = overhead.side(load, {arm!r}, {device!r})\n"
        f"for _ in range(60): side.step(*(part.to({device!r}) for part in load.batch()))\n"
        f"cuda = torch.cuda.max_memory_allocated() if {device!r} == 'cuda' else 0\n"
        "print(cuda or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    here = os.path.dirname(os.path.abspath(__file__))
    # the same modules in memory on both sides: what the medic's own code takes does not grow with the model
    modules = (
        "import trainmedic.medic, scipy.stats; from trainmedic.diagnose.judge import catalogue; "
        "from trainmedic.remedies.remedy import pharmacy; catalogue(); pharmacy()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", modules + code], cwd=here, capture_output=True, text=True, check=True
    )
    return float(answer.stdout.split()[-1])


def report(name: str, arms: list[str], arguments: argparse.Namespace) -> None:
    """Measure arms on one load, all in turn, and print a line for each."""
    rounds = [ratios(LOADS[name], arms, arguments, number) for number in range(arguments.rounds)]
    bare = statistics.median(statistics.median(found[""]) for found in rounds)
    for arm in arms:
        low, middle, high = statistics.quantiles([statistics.median(found[arm]) for found in rounds], n=4)
        mean = statistics.fmean(value for found in rounds for value in found[arm])
        print(
            f"{name:<5} {1000 * bare:8.2f} ms  {arm:<18} {middle:6.3f} x  ({low:.3f} to {high:.3f}; mean {mean:.3f})",
            flush=True,
        )


def keep_memory() -> None:
    """Start again with an allocator that keeps what was freed.

    Otherwise thousands of pages go back and forth between process and system in every step, in some arms more than in
    others, by chance: 1 % of the time of a step that has nothing to do with what the arm does.
    """
    kept = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
    if not kept.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **kept})


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loads", nargs="*", help=f"of {', '.join(LOADS)} (default: all)")
    parser.add_argument(
        "--arms", default=",".join(filter(None, ARMS)), help="some of the arms, by commas (default: all)"
    )
    parser.add_argument("--steps", type=int, default=500, help="steps that are timed, of each arm")
    parser.add_argument(
        "--rounds", type=int, default=10, help="of so many rounds, each with models of its own (2 or more)"
    )
    parser.add_argument("--warmup", type=int, default=40, help="steps before them, in each round")
    parser.add_argument("--block", type=int, default=1, help="steps timed as one (on a GPU at least 20)")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS), help="cpu: other processes do not count")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--memory", action="store_true", help="peak memory in place of time")
    arguments = parser.parse_args()
    arms = [arm for arm in ARMS if arm and arm in re.split(r",(?! )", arguments.arms)]
    if not arguments.memory:
        keep_memory()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if not importlib.util.find_spec("wandb") and any(arm.startswith("W&B") for arm in arms):
        print("W&B is not measured: wandb is not installed", file=sys.stderr)
        arms = [arm for arm in arms if not arm.startswith("W&B")]
    for name in arguments.loads or list(LOADS):
        if not arguments.memory:
            report(name, [arm for arm in arms if not arm.startswith("W&B")], arguments)
            for arm in arms:
                if arm.startswith("W&B"):  # it allows one run at a time
                    report(name, [arm], arguments)
            continue
        bare = memory(name, "bare", arguments.device)
        for arm in ("bare", "watch", "watch, every step"):
            held = memory(name, arm, arguments.device)
            print(f"{name:<5} {bare / 1e6:8.1f} MB  {arm:<18} {held / bare:6.3f} x", flush=True)


if __name__ == "__main__":
    main()
