"""What is done to a live loss function: gradients are those of another one, and its value is the one that it was.

What is logged stays comparable so, with the time before, and with validation.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainmedic.remedies._graft import Graft


class Smoothed(Graft):
    """A cross-entropy towards smoothed labels, in training."""

    parts: ClassVar[tuple[str, ...]] = ("medic_smoothing",)
    medic_smoothing: float

    def forward(self, input: Tensor, target: Tensor) -> Any:
        if not _trains(input):
            return super().forward(input, target)
        own: Any = self
        value, before = super().forward(input.detach(), target), own.label_smoothing
        own.label_smoothing = max(before, self.medic_smoothing)
        try:
            return _of_value(super().forward(input, target), value)
        finally:
            own.label_smoothing = before


class Weighted(Graft):
    """A loss in which classes weigh what ``medic_weights`` says, in training; for yes and no what a yes weighs."""

    parts: ClassVar[tuple[str, ...]] = ("medic_weights",)
    medic_weights: tuple[float, ...]

    def forward(self, input: Tensor, target: Tensor) -> Any:
        if not _trains(input):
            return super().forward(input, target)
        name = "pos_weight" if isinstance(self, nn.BCEWithLogitsLoss) else "weight"
        value, before = super().forward(input.detach(), target), self._buffers[name]
        weights = torch.tensor(self.medic_weights, device=input.device, dtype=input.dtype)
        self._buffers[name] = weights if before is None else weights * before.to(weights)
        try:
            return _of_value(super().forward(input, target), value)
        finally:
            self._buffers[name] = before


def _of_value(loss: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradients of ``loss``."""
    return value.detach() + (loss - loss.detach())


def _trains(output: Tensor) -> bool:
    return torch.is_grad_enabled() and output.requires_grad


def smoothable(criterion: Any) -> bool:
    """Whether labels can be smoothed in it."""
    return isinstance(criterion, nn.CrossEntropyLoss)


def weighable(criterion: Any) -> bool:
    """Whether classes can be weighted in it."""
    return isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss | nn.BCEWithLogitsLoss)
