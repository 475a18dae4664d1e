"""What people do to weights, rightly and wrongly."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def matrices(model: M, draw: Callable[[Tensor], object]) -> M:
    """With every matrix and kernel drawn anew by ``draw``."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            draw(parameter)
    return model


def he(model: M, gain: float = 1.0) -> M:
    """By He's law, ``gain`` times as large."""
    return matrices(model, lambda weight: nn.init.kaiming_normal_(weight).mul_(gain))


def xavier(model: M, gain: float = 1.0) -> M:
    return matrices(model, lambda weight: nn.init.xavier_normal_(weight, gain))


def constant(model: M, value: float) -> M:
    """All the same: no unit ever differs from its neighbour."""
    return matrices(model, lambda weight: nn.init.constant_(weight, value))


@torch.no_grad()
def hidden_biases(model: M, value: float) -> M:
    """All biases but those of the last layer."""
    for parameter in list(model.parameters())[:-2]:
        if parameter.ndim == 1:
            parameter.fill_(value)
    return model
