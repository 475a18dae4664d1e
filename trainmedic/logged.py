"""Values that the user logs: any number or tensor of one element, averaged within a step, read a step later."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from trainmedic.errors import UsageError
from trainmedic.history import check_step
from trainmedic.hooks.reading import Reading


class Logged:
    """Logged values by step, until they are read."""

    def __init__(self) -> None:
        self._waiting: dict[int, Reading] = defaultdict(Reading)

    def put(self, step: int, name: str, value: Any) -> None:
        """Take one value; ``UsageError`` if it is not a single real number."""
        self._waiting[check_step(step)].put(name, scalar(name, value))

    def take(self, before: int | None = None) -> list[tuple[int, dict[str, float]]]:
        """Mean values of all steps before a given one (all there are, without it), in step order."""
        due = sorted(step for step in self._waiting if before is None or step < before)
        return [(step, _means(self._waiting.pop(step))) for step in due]

    def send(self) -> None:
        """Start the transfer of tensors that were logged."""
        for reading in self._waiting.values():
            reading.send()


def scalar(name: str, value: Any) -> torch.Tensor | float:
    """``value`` as a number or a tensor of one element; never waits for a device."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise UsageError(
                f"{name} must be a single number, but got a tensor of shape {tuple(value.shape)}; "
                "log its mean: loss.mean()"
            )
        if value.is_complex():
            raise UsageError(f"{name} must be a real number, but got a complex tensor")
        number: torch.Tensor = value.detach().clone()  # the user may change it in place before it is read
        return number if number.is_floating_point() else number.double()
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    raise UsageError(f"{name} must be a number or a tensor of one element, but got {type(value).__name__}")


def _means(reading: Reading) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for name, _, numbers in reading.read():
        values[name] += numbers
    return {name: sum(several) / len(several) for name, several in values.items()}
