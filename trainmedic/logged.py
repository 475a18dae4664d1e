"""Values that the user logs: any number or tensor of one element, averaged within a step, read a step later."""

import math
from typing import Any

import numpy as np
import torch

from trainmedic.errors import UsageError
from trainmedic.hooks.reading import Reading, at_once


class Logged:
    """Logged values by step, until they are read."""

    def __init__(self) -> None:
        self._numbers: dict[int, dict[str, list[float]]] = {}
        self._waiting: dict[int, Reading] = {}  # on other devices
        self.alarming = False  # something that is not finite, or not known yet, waits to be read

    def put(self, step: int, name: str, value: Any) -> None:
        """Take one value; ``UsageError`` if it is not a single real number."""
        number = scalar(name, value)
        if isinstance(number, torch.Tensor):
            self._waiting.setdefault(step, Reading()).put(name, number)
            self.alarming = True
        else:
            self._numbers.setdefault(step, {}).setdefault(name, []).append(number)
            self.alarming |= not math.isfinite(number)

    def take(self, before: int | None = None) -> list[tuple[int, dict[str, float]]]:
        """Mean values of all steps before a given one (all there are, without it), in step order."""
        due = [step for step in {**self._numbers, **self._waiting} if before is None or step < before]
        taken = [(step, self._means(step)) for step in sorted(due)]
        left = (number for values in self._numbers.values() for several in values.values() for number in several)
        self.alarming = bool(self._waiting) or not all(map(math.isfinite, left))
        return taken

    def _means(self, step: int) -> dict[str, float]:
        values = self._numbers.pop(step, {})
        if step in self._waiting:
            for name, _, numbers in self._waiting.pop(step).read():
                values.setdefault(name, []).extend(numbers)
        return {name: sum(several) / len(several) for name, several in values.items()}

    def send(self) -> None:
        """Start the transfer of tensors that were logged."""
        for reading in self._waiting.values():
            reading.send()


def scalar(name: str, value: Any) -> torch.Tensor | float:
    """``value`` as a number, or as a tensor of one element where it would have to be waited for."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise UsageError(
                f"{name} must be a single number, but got a tensor of shape {tuple(value.shape)}; "
                "log its mean: loss.mean()"
            )
        if value.is_complex():
            raise UsageError(f"{name} must be a real number, but got a complex tensor")
        if torch._C._functorch.is_functorch_wrapped_tensor(value):
            raise UsageError(f"{name} has no value yet inside vmap or grad: return it from there, and log it outside")
        if at_once(value):
            return float(value.detach())
        number: torch.Tensor = value.detach().clone()  # the user may change it in place before it is read
        return number if number.is_floating_point() else number.double()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    raise UsageError(f"{name} must be a number or a tensor of one element, but got {type(value).__name__}")
