"""Rates that follow a course of the medic's own, step by step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainmedic.remedies.remedy import Undo

Course = Callable[[int], float]
"""By what the rates are multiplied after so many steps with it."""


class Envelope:
    """A guard that multiplies every rate for the time of a step only: whatever schedule there is goes on unseen by it.

    The multipliers end at 1 after ``length`` steps of each optimizer.
    """

    def __init__(self, course: Course, length: int) -> None:
        self.course, self.length = course, length
        self._steps: dict[int, int] = {}
        self._kept: list[tuple[dict[str, Any], Any]] = []

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        self.after(optimizer)  # where the step before has raised, its rates are still there
        step = self._steps.get(id(optimizer), 0)
        self._steps[id(optimizer)] = step + 1
        if step >= self.length:
            return
        for group in optimizer.param_groups:
            rate = group["lr"]
            self._kept.append((group, rate))
            group["lr"] = rate * self.course(step)

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the rates back, as the very objects that they were."""
        while self._kept:
            group, rate = self._kept.pop()
            group["lr"] = rate


class Instead:
    """A guard that gives the rates for the time of a step only, whatever a schedule has made of them meanwhile.

    Between steps the groups hold what that schedule gives them: it goes on unseen, and finds its own rates.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], peaks: list[float], course: Course) -> None:
        self.course = course
        groups = iter(peaks)
        self._peaks = {id(o): [next(groups) for _ in o.param_groups] for o in optimizers}
        self._steps: dict[int, int] = {}
        self._kept: list[tuple[dict[str, Any], Any]] = []

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        self.after(optimizer)  # where the step before has raised, its rates are still there
        step = self._steps.get(id(optimizer), 0)
        self._steps[id(optimizer)] = step + 1
        factor = self.course(step)
        for group, peak in zip(optimizer.param_groups, self._peaks.get(id(optimizer), ()), strict=False):
            rate = group["lr"]
            self._kept.append((group, rate))
            group["lr"] = torch.full_like(rate, peak * factor) if isinstance(rate, Tensor) else peak * factor

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Put the rates back, as the very objects that they were."""
        while self._kept:
            group, rate = self._kept.pop()
            group["lr"] = rate


class Program:
    """A guard that gives an optimizer without a scheduler its rates: the ones of now times a course.

    The rates are written into the groups after each step, so that the user sees them, and checkpoints hold them. A rate
    that somebody else sets is taken for the new base.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer], course: Course) -> None:
        self.course = course
        self._bases = {id(o): [_number(group["lr"]) for group in o.param_groups] for o in optimizers}
        self._last = {id(o): [_number(group["lr"]) for group in o.param_groups] for o in optimizers}
        self._steps: dict[int, int] = {}

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is done before a step."""

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the rates of the next step."""
        bases = self._bases.get(id(optimizer))
        if bases is None:
            return
        self._take_over(optimizer, bases)
        step = self._steps[id(optimizer)] = self._steps.get(id(optimizer), 0) + 1
        factor = self.course(step)
        for group, base in zip(optimizer.param_groups, bases, strict=False):
            set_rate(group, base * factor)
        self._last[id(optimizer)] = [_number(group["lr"]) for group in optimizer.param_groups]

    def _take_over(self, optimizer: torch.optim.Optimizer, bases: list[float]) -> None:
        for i, (group, last) in enumerate(zip(optimizer.param_groups, self._last[id(optimizer)], strict=False)):
            now = _number(group["lr"])
            if now != last:
                bases[i] = bases[i] * now / last if last else now

    def release(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Give the optimizers the rates that they would have without it."""
        for optimizer in optimizers:
            bases = self._bases.get(id(optimizer), [])
            if bases:
                self._take_over(optimizer, bases)
            for group, base in zip(optimizer.param_groups, bases, strict=False):
                if _number(group["lr"]) != base:
                    set_rate(group, base)


def install(guards: list[Any], guard: Any) -> Undo:
    """Add a guard; the inverse takes it away."""
    guards.append(guard)

    def undo() -> None:
        if guard in guards:
            guards.remove(guard)

    return undo


def warm_up(length: int) -> Course:
    """Linear, from 1 / length to 1."""
    return lambda step: min(1.0, (step + 1) / length)


def cosine(length: int, least: float) -> Course:
    """Half a cosine from 1 down to ``least`` (Loshchilov and Hutter 2017, equation 5)."""
    return lambda step: least + (1 - least) * (1 + math.cos(math.pi * min(step / length, 1.0))) / 2


def cooling(length: int, least: float, held: float = 0.6) -> Course:
    """1 for ``held`` of the way, then half a cosine down to ``least`` (Haegele et al. 2024, arXiv:2405.18392)."""
    down = cosine(max(length - int(held * length), 1), least)
    return lambda step: down(max(step - int(held * length), 0))


def exponential(length: int, least: float) -> Course:
    """From 1 down to ``least`` by the same share each step."""
    return lambda step: least ** min(step / length, 1.0)


def steps(length: int) -> Course:
    """A tenth after a half, a hundredth after three quarters (He et al. 2016)."""
    return lambda step: 0.1 ** ((step >= length / 2) + (step >= 3 * length / 4))


def cyclical(length: int, least: float, cycles: int = 4) -> Course:
    """Triangles down to ``least``, from the peak of the first, each half as high ("triangular2" of Smith 2017)."""

    def course(step: int) -> float:
        cycle, within = divmod(step / max(length / cycles, 1.0) + 0.5, 1.0)
        return float(least + (1 - least) * 0.5**cycle * (1 - abs(1 - 2 * within)))

    return course


def one_cycle(length: int, peak: float, least: float, rise: float = 0.3) -> Course:
    """Half a cosine up from 1 to ``peak`` over the first 30 %, then one down to ``least`` (Smith and Topin 2018)."""

    def course(step: int) -> float:
        up = rise * length
        if step < up:
            return 1 + (peak - 1) * (1 - math.cos(math.pi * step / up)) / 2
        down = min((step - up) / max(length - up, 1.0), 1.0)
        return least + (peak - least) * (1 + math.cos(math.pi * down)) / 2

    return course


class Plateau:
    """A tenth whenever a value has not come down by ``threshold`` of itself for ``patience`` looks in a row."""

    def __init__(self, look: Callable[[], float | None], every: int, patience: int, threshold: float = 1e-4) -> None:
        self.look, self.every, self.patience, self.threshold = look, every, patience, threshold
        self.best, self.bad, self.factor = math.inf, 0, 1.0

    def __call__(self, step: int) -> float:
        value = self.look() if step % self.every == 0 else None
        if value is not None:
            if value < self.best - self.threshold * abs(self.best if math.isfinite(self.best) else 0.0):
                self.best, self.bad = value, 0
            else:
                self.bad += 1
            if self.bad > self.patience:
                self.factor, self.bad = self.factor * 0.1, 0
        return self.factor


def _number(rate: Any) -> float:
    return float(rate)


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Give a group a rate; one that is a tensor stays that tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
