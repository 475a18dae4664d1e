"""Guards that change the objective through its gradients, right before a step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainmedic.remedies._clipping import carried
from trainmedic.remedies._gradients import live_gradients


@dataclass(eq=False)
class Lasso:
    """Adds strength x sign(weight) to the gradients of matrices."""

    strength: float

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, gradient in _matrices(optimizer):
            pull = parameter.detach().sign() * (self.strength * carried(optimizer, gradient))
            gradient.add_(pull.to(gradient.dtype))


@dataclass(eq=False)
class Rescale:
    """Multiplies all gradients, as if the loss had been."""

    factor: float

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        for gradient in live_gradients(optimizer):
            gradient.mul_(self.factor)


def _matrices(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if parameter.ndim > 1 and gradient is not None and not gradient.is_sparse and not gradient.is_complex():
                yield parameter, gradient.detach()
