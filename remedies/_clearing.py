"""Gradients set to zero when a step is over."""

from collections.abc import Iterable

import torch
from torch import Tensor

Kept = tuple[Tensor, Tensor, Tensor | None]
"""A parameter, its gradient, and a copy of that; a sparse one is kept itself."""


class Clear:
    """A guard that sets the gradients of an optimizer to zero after its step."""

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is done before a step."""

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """The step is over: what it has used is not to be used again."""
        for parameter in _with_gradients(optimizer):
            _clear(parameter)

    @torch.no_grad()
    def clear(self, optimizers: Iterable[torch.optim.Optimizer]) -> list[Kept]:
        """Set all gradients to zero, and give what they were."""
        members = [parameter for optimizer in optimizers for parameter in _with_gradients(optimizer)]
        kept = [(p, p.grad, None if p.grad.is_sparse else p.grad.clone()) for p in members if p.grad is not None]
        for parameter in members:
            _clear(parameter)
        return kept

    @torch.no_grad()
    def put_back(self, kept: list[Kept]) -> None:
        """Undo ``clear``: the same gradients, with what they held."""
        for parameter, gradient, values in kept:
            if values is not None:
                gradient.detach().copy_(values)
            parameter.grad = gradient


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _clear(parameter: Tensor) -> None:
    gradient = parameter.grad
    if gradient is None or gradient.is_sparse:
        parameter.grad = None
    else:
        gradient.zero_()
