"""Numbers on their way from the device to the record, without stopping the device."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Label = tuple[str, str]
"""(statistic, layer) of a number, or (series, "") at run level."""


class Reading:
    """Scalars of one step. They are stacked on their device, leave it in one piece, and are read a step later."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[torch.device, torch.dtype], list[tuple[Label, Tensor]]] = defaultdict(list)
        self._sent: list[tuple[list[Label], Tensor, Any]] = []
        self._plain: list[tuple[Label, float]] = []

    def put(self, label: Label, value: Tensor | float) -> None:
        """Add one number; a tensor must hold one element."""
        if isinstance(value, Tensor):
            value = value.detach().reshape(())
            self._waiting[value.device, value.dtype].append((label, value))
        else:
            self._plain.append((label, float(value)))

    def put_each(self, statistic: str, layers: Iterable[str], values: Sequence[Tensor]) -> None:
        """Add one number per layer."""
        for layer, value in zip(layers, values, strict=True):
            self._waiting[value.device, value.dtype].append(((statistic, layer), value))

    def send(self) -> None:
        """Start the transfer of what was added since the last call."""
        for (device, _), pairs in self._waiting.items():
            stacked = torch.stack([value for _, value in pairs])
            arrived = None
            if device.type == "cuda":
                target = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
                target.copy_(stacked, non_blocking=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record(torch.cuda.current_stream(device))
                stacked = target
            self._sent.append(([label for label, _ in pairs], stacked, arrived))
        self._waiting.clear()

    def read(self) -> list[tuple[Label, float]]:
        """All numbers, in the order in which they were added on each device; waits for those still on the way."""
        self.send()
        numbers = list(self._plain)
        for labels, values, arrived in self._sent:
            if arrived is not None:
                arrived.synchronize()
            numbers += zip(labels, values.tolist(), strict=True)
        self._sent, self._plain = [], []
        return numbers
