"""The trainings themselves: what is trained, on what, and the loop around it, written as users write it."""

import contextlib
import ctypes
import gc
import importlib
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic


class Missing(Exception):
    """Something that a patient needs is not on this system."""


def needed(module: str) -> Any:
    """An optional module that brings data; ``Missing`` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"needs {module}") from error


# -- what is trained on ------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Inputs and targets to train on and to validate on."""

    x: Tensor
    y: Tensor
    val_x: Tensor
    val_y: Tensor

    @classmethod
    def split(cls, x: Tensor, y: Tensor, held_out: int) -> "Data":
        """Shuffled, always in the same way, and the last ``held_out`` kept to validate on."""
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        x, y = x[order], y[order]
        return cls(x[:-held_out], y[:-held_out], x[-held_out:], y[-held_out:])

    def first(self, count: int) -> "Data":
        """With fewer samples to train on."""
        return self._replace(x=self.x[:count], y=self.y[:count])

    def inputs(self, change: Callable[[Tensor], Tensor]) -> "Data":
        """With every input changed, to train on and to validate on."""
        return self._replace(x=change(self.x), val_x=change(self.val_x))

    def targets(self, change: Callable[[Tensor], Tensor]) -> "Data":
        """With every target changed, to train on and to validate on."""
        return self._replace(y=change(self.y), val_y=change(self.val_y))


class Loader:
    """Shuffled batches cut out of two tensors at once, which is as fast as small models need."""

    def __init__(self, x: Tensor, y: Tensor, batch: int = 64, *, shuffle: bool = True, drop_last: bool = True) -> None:
        self.dataset = torch.utils.data.TensorDataset(x, y)
        self.batch_size, self.shuffle, self.drop_last = batch, shuffle, drop_last
        self.waited = self.worked = 0.0
        """Seconds that the loop spent waiting for batches, and working on them."""

    def __len__(self) -> int:
        count = len(self.dataset)
        return count // self.batch_size if self.drop_last else math.ceil(count / self.batch_size)

    def __iter__(self) -> Iterator[list[Tensor]]:
        order = torch.randperm(len(self.dataset)) if self.shuffle else torch.arange(len(self.dataset))
        for number in range(len(self)):
            start = time.perf_counter()
            batch = self.load(order[number * self.batch_size : (number + 1) * self.batch_size])
            ready = time.perf_counter()
            self.waited += ready - start
            yield batch
            self.worked += time.perf_counter() - ready

    def load(self, rows: Tensor) -> list[Tensor]:
        """One batch."""
        return [tensor[rows] for tensor in self.dataset.tensors]


# -- what is trained ---------------------------------------------------------------------------------------------------


@dataclass
class Training:
    """A training that is set up: everything that its loop needs, and what a benchmark may want to exchange."""

    model: Any
    """A module, or a list of them."""
    optimizer: Any
    data: Data
    loss: Any = None
    """``(output, target) -> loss``; cross-entropy unless this or an objective is given."""
    epochs: int = 5
    batch: int = 64
    scheduler: Any = None
    per: Literal["step", "epoch"] = "step"
    """When the scheduler steps."""
    parts: int = 1
    """Batches whose gradients ``accumulating_step`` adds up for one step."""
    scaler: Any = None
    objective: Callable[[Any, Any], Tensor] | None = None
    """``(model, batch) -> loss`` where that is more than ``loss(model(x), y)``."""
    step: Callable[["Training", Any], Tensor] | None = None
    """One step of the loop, ``plain_step`` unless the training has its own; gives the loss to log."""
    start_epoch: Callable[["Training"], Any] | None = None
    """What the user calls before each epoch; ``model.train()`` unless given."""
    log: Callable[[Any, Tensor, int], Any] = lambda medic, loss, step: medic.log(loss)
    """How the user logs a step."""
    validate: Callable[["Training"], dict[str, Any]] | None = None
    """What the user logs of the validation set after each epoch; ``loss`` and a metric unless given."""
    habit: Literal["all", "no batches", "no validation", "nothing"] = "all"
    """Which of the medic's calls the user makes."""
    loader: Any = None
    metric: Any = None
    """Set by the patient."""
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss is None and self.objective is None:
            self.loss = nn.CrossEntropyLoss()
        self.loader = self.loader or Loader(self.data.x, self.data.y, self.batch)
        self.tensors = self.data.val_x, self.data.val_y

    @property
    def main(self) -> nn.Module:
        """The model, or the first of several."""
        return self.model[0] if isinstance(self.model, list) else self.model

    @property
    def steps(self) -> int:
        """Steps of the optimizer in the whole run."""
        return int(self.epochs * len(self.loader)) // self.parts

    @property
    def val_loader(self) -> Loader:
        return Loader(*self.tensors, batch=256, shuffle=False, drop_last=False)

    def loss_of(self, batch: Any) -> Tensor:
        """The loss of one batch, as the user computes it."""
        if self.objective is not None:
            return self.objective(self.model, batch)
        x, y = batch
        return self.loss(self.model(x), y)

    def scheduled(self, make: Callable[..., Any], *arguments: Any, per: str = "step", **named: Any) -> "Training":
        """With a scheduler: ``training.scheduled(CosineAnnealingLR, training.steps)``."""
        self.scheduler, self.per = make(self.optimizer, *arguments, **named), per  # type: ignore[assignment]
        return self

    def watch_arguments(self) -> dict[str, Any]:
        """What the user hands to ``trainmedic.watch`` besides model and optimizer."""
        several = isinstance(self.model, list)  # whose steps are more than one loss
        given = {
            "loss_fn": None if several else self.loss,
            "step_fn": self.objective,
            "val_loader": self.val_loader,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "total_steps": self.steps,
        }
        return {} if self.habit == "nothing" else {name: value for name, value in given.items() if value is not None}


def plain_step(t: Training, batch: Any) -> Tensor:
    """What every tutorial shows."""
    t.optimizer.zero_grad()
    loss = t.loss_of(batch)
    loss.backward()
    t.optimizer.step()
    return loss


def clipped_step(norm: float) -> Callable[[Training, Any], Tensor]:
    """With the gradients' norm clipped."""

    def step(t: Training, batch: Any) -> Tensor:
        t.optimizer.zero_grad()
        loss = t.loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(t.main.parameters(), norm)
        t.optimizer.step()
        return loss

    return step


def accumulating_step(t: Training, batch: Any) -> Tensor:
    """One step of the optimizer for several batches."""
    loss = t.loss_of(batch)
    (loss / t.parts).backward()
    t.notes["batches"] = t.notes.get("batches", 0) + 1
    if t.notes["batches"] % t.parts == 0:
        t.optimizer.step()
        t.optimizer.zero_grad()
    return loss


def step_without_zero_grad(t: Training, batch: Any) -> Tensor:
    """The line that everybody forgets once."""
    loss = t.loss_of(batch)
    loss.backward()
    t.optimizer.step()
    return loss


# -- the loop ----------------------------------------------------------------------------------------------------------


class Unwatched:
    """Stands where the medic stands, and does nothing."""

    should_stop = False

    def __enter__(self) -> "Unwatched":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def batches(self, loader: Any) -> Any:
        return loader

    def log(self, loss: Any = None, *, step: int | None = None, **values: Any) -> None:
        pass

    def log_validation(self, loss: Any = None, **values: Any) -> None:
        pass


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    score: float
    chance: float
    """What a model scores that has learnt nothing."""
    seconds: float
    steps: int
    report: Any = None
    """The medic's; ``None`` where it did not watch."""


def train(t: Training, *, watched: bool = True, **watch: Any) -> Outcome:
    """Run the loop. ``watch``: further keywords for ``trainmedic.watch``."""
    quiet: dict[str, Any] = {"settings": {}, "on_finding": lambda finding: None}
    medic: Any = Unwatched()
    give_memory_back()
    t.notes["resident"] = resident_megabytes()
    start = time.perf_counter()
    if watched:
        medic = trainmedic.watch(t.model, t.optimizer, **{**t.watch_arguments(), **quiet, **watch})
    with medic:
        loop(t, medic)
        seconds = time.perf_counter() - start
        report = medic.report() if watched else None
    return Outcome(*measured(t), seconds, t.notes["steps"], report)


def loop(t: Training, medic: Any) -> None:
    """Epochs, batches, validation."""
    step = t.step or plain_step
    t.notes["steps"] = 0
    for _ in range(t.epochs):
        (t.start_epoch or train_mode)(t)
        for batch in medic.batches(t.loader) if t.habit in ("all", "no validation") else t.loader:
            loss = step(t, batch)
            if t.scheduler is not None and t.per == "step":
                t.scheduler.step()
            if t.habit != "nothing":
                t.log(medic, loss.detach(), t.notes["steps"])
            t.notes["steps"] += 1
        if t.scheduler is not None and t.per == "epoch":
            t.scheduler.step()
        validated = (t.validate or validation)(t)
        if t.habit in ("all", "no batches"):
            medic.log_validation(**validated)
        if medic.should_stop:
            return


def train_mode(t: Training) -> None:
    for model in t.model if isinstance(t.model, list) else [t.model]:
        model.train()


@torch.no_grad()
def validation(t: Training) -> dict[str, Any]:
    """Loss on the validation set, and for classes the accuracy."""
    t.main.eval()
    loss = t.loss_of(t.tensors)
    return {"loss": loss, **({"accuracy": accuracy(t)} if t.metric in (ACCURACY, BALANCED) else {})}


def measured(t: Training) -> tuple[float, float]:
    """Score and chance, on the model as it stands."""
    t.main.eval()
    with torch.no_grad():
        return float(t.metric.score(t)), float(t.metric.chance(t))


def seeded(seed: int) -> None:
    """All generators of random numbers."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


# -- how well it went --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A measure of the trained model, or of the run."""

    name: str
    mode: Literal["min", "max"]
    score: Callable[[Training], float]
    chance: Callable[[Training], float] = lambda t: 0.0
    margin: float = 0.03
    """The least difference between a sick run and its twin that counts."""
    learnt: float = 0.25
    """Share of the way from chance to 1 that a healthy run has gone at its end."""


@torch.no_grad()
def predicted(t: Training) -> Tensor:
    """Classes of the validation set, by the largest logit, or by the sign of a single one."""
    output = t.main(t.tensors[0])
    if isinstance(output, tuple):
        output = output[0]
    return (output.flatten() > 0).long() if output.shape[1] == 1 else output.argmax(1)


def targets(t: Training) -> Tensor:
    return t.tensors[1].long().flatten()


def accuracy(t: Training) -> float:
    """Share of the validation set that is classified rightly, 0 to 1; so too where the targets are sequences."""
    guessed = predicted(t)
    return float((guessed.flatten() == targets(t)).float().mean())


@torch.no_grad()
def accuracy_of_probabilities(t: Training) -> float:
    """The same for one output between 0 and 1."""
    return float(((t.main(t.tensors[0]).flatten() > 0.5).long() == targets(t)).float().mean())


def balanced_accuracy(t: Training) -> float:
    """Mean over the classes of the share that is found, 0 to 1."""
    guessed, true = predicted(t).flatten(), targets(t)
    return float(np.mean([(guessed[true == c] == c).float().mean().item() for c in true.unique()]))


def explained(t: Training) -> float:
    """1 - squared error / variance of the targets, not below -1."""
    output, target = t.main(t.tensors[0]), t.tensors[1]
    output = output[0] if isinstance(output, tuple) else output
    share = 1 - float(F.mse_loss(output, target) / (target - target.mean(0)).square().mean())
    return max(share, -1.0) if math.isfinite(share) else -1.0


def skill(t: Training) -> float:
    """Of a language model: 1 - loss / entropy of single tokens, not below -1."""
    true = t.tensors[1].flatten()
    share = torch.bincount(true).float() / len(true)
    entropy = float(-(share * share.clamp_min(1e-9).log()).sum())
    loss = float(F.cross_entropy(t.main(t.tensors[0]), t.tensors[1]))
    return max(1 - loss / entropy, -1.0) if math.isfinite(loss) else -1.0


def largest_share(t: Training) -> float:
    """Accuracy of always naming the largest class."""
    counts = torch.bincount(targets(t))
    return float(counts.max() / counts.sum())


def resident_megabytes() -> float:
    """Memory that this process holds; NaN where the system does not tell."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return math.nan


def give_memory_back() -> None:
    """What earlier trainings have freed would hide how this one grows."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def logged_once(t: Training) -> float:
    """Share of the steps that stand in the log exactly once."""
    steps: Iterable[int] = t.notes.get("logged", range(t.notes["steps"]))
    counts = np.bincount(np.asarray(list(steps), dtype=np.int64), minlength=t.notes["steps"])
    return float(np.mean(counts[: t.notes["steps"]] == 1))


ACCURACY = Metric("accuracy", "max", accuracy, largest_share)
PROBABILITY = Metric("accuracy", "max", accuracy_of_probabilities, largest_share)
BALANCED = Metric("balanced accuracy", "max", balanced_accuracy, lambda t: 1 / len(targets(t).unique()), margin=0.05)
EXPLAINED = Metric("explained variance", "max", explained)
SKILL = Metric("skill over single tokens", "max", skill, learnt=0.1)
WAITING = Metric("share of time waiting", "min", lambda t: t.loader.waited / (t.loader.waited + t.loader.worked))
MEMORY = Metric("memory grown, MB", "min", lambda t: resident_megabytes() - t.notes["resident"], margin=20.0)
LOGGED = Metric("share of steps logged once", "max", logged_once)
