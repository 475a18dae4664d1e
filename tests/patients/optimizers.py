"""The optimizers that patients use, by their usual names and rates."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adam(model: nn.Module, lr: float = 1e-3, **options: Any) -> Optimizer:
    return torch.optim.Adam(trainable(model), lr=lr, **options)


def adamw(model: nn.Module, lr: float = 3e-3, **options: Any) -> Optimizer:
    return torch.optim.AdamW(trainable(model), lr=lr, **options)


def momentum(model: nn.Module, lr: float = 0.05, **options: Any) -> Optimizer:
    return torch.optim.SGD(trainable(model), lr=lr, momentum=0.9, **options)


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> Optimizer:
    return torch.optim.SGD(trainable(model), lr=lr, **options)
