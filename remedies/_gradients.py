"""The gradients that an optimizer is about to use, as plain tensors."""

import torch
from torch import Tensor


def live_gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every gradient of ``optimizer``, as real and dense tensors that share its memory: writing to them changes it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [_values(p) for p in parameters if p.grad is not None and p.grad.numel()]


def _values(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_sparse:
        if not gradient.is_coalesced():
            gradient = parameter.grad = gradient.coalesce()  # the same gradient, each entry once
        gradient = gradient._values()
    gradient = gradient.detach()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
