"""Gradients set to zero when a step is over."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Clear:
    """A guard that sets the gradients of an optimizer to zero after its step."""

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is done before a step."""

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """The step is over: what it has used is not to be used again."""
        for gradient in _gradients(optimizer):
            gradient.zero_()

    @torch.no_grad()
    def clear(self, optimizers: Iterable[torch.optim.Optimizer]) -> list[tuple[Tensor, Tensor]]:
        """Set all gradients to zero, and give each with a copy of what it was."""
        kept = [(gradient, gradient.clone()) for optimizer in optimizers for gradient in _gradients(optimizer)]
        for gradient, _ in kept:
            gradient.zero_()
        return kept

    @torch.no_grad()
    def put_back(self, kept: list[tuple[Tensor, Tensor]]) -> None:
        """Undo ``clear``, in the gradients that are still in use."""
        for gradient, values in kept:
            gradient.detach().copy_(values)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
