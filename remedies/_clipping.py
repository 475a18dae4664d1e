"""Guards that scale gradients down right before a step. None of them waits for the device."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainmedic.hooks.parameters import norms
from trainmedic.remedies._gradients import live_gradients


@dataclass(eq=False)
class Clip:
    """Scales the gradients of an optimizer down to ``limit`` whenever their norm exceeds it."""

    limit: float

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = live_gradients(optimizer)
        if gradients:
            norm = Norm(gradients)
            norm.scale_to(self.limit * carried(optimizer, norm.value))


@dataclass(eq=False)
class ZClip:
    """Scales the gradients of an optimizer down whenever their norm lies too many deviations above its running mean.

    Mean and variance of the norms are exponential averages, begun with ``mean`` and ``deviation``. A norm at z > limit
    becomes mean + limit / (z / limit) deviations, and that is what the averages go on with, so that a spike does not
    widen them (ZClip, arXiv:2504.02507, equations 2 to 8).
    """

    mean: float
    deviation: float
    limit: float = 2.5
    decay: float = 0.97
    _running: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = live_gradients(optimizer)
        if not gradients:
            return
        norm = Norm(gradients)
        scale = carried(optimizer, norm.value)
        value = norm.value / scale
        mean, variance = self._running.get(id(optimizer)) or (
            torch.full_like(value, self.mean), torch.full_like(value, self.deviation**2)
        )  # fmt: skip
        deviation = variance.sqrt() + 1e-6 * mean
        z = (value - mean) / deviation
        over = z > self.limit
        clipped = torch.where(over, mean + self.limit**2 / z.clamp_min(self.limit) * deviation, value)
        clipped = torch.where(torch.isfinite(value), clipped, mean)  # of finite gradients whose squares overflow
        norm.scale_to(clipped * scale)
        sound = torch.isfinite(norm.largest)
        moved = self.decay * mean + (1 - self.decay) * clipped
        spread = self.decay * variance + (1 - self.decay) * (clipped - moved).square()
        self._running[id(optimizer)] = torch.where(sound, moved, mean), torch.where(sound, spread, variance)


@dataclass(eq=False)
class UnitClip:
    """Scales the gradient of each unit down to a share of the size of its weights (AGC, arXiv:2102.06171, equation 3).

    A unit is a slice along the first dimension; a gradient above ``share`` x max(|weights|, ``floor``) is scaled to it.
    The last layer is clipped as well, which the paper leaves out: a guard sees parameters, not layers.
    """

    share: float = 0.01
    floor: float = 1e-3

    @torch.no_grad()
    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter, gradient in _dense(optimizer):
            weights = _by_unit(parameter.detach())
            limit = self.share * weights.clamp_min(self.floor) * carried(optimizer, gradient)
            size = _by_unit(gradient)
            factor = torch.where(torch.isfinite(size) & (size > limit), limit / size, 1.0)
            gradient.mul_(factor.to(gradient.dtype))


class Norm:
    """The 2-norm of some gradients together, on the device of the first."""

    def __init__(self, gradients: list[Tensor]) -> None:
        self.gradients = gradients
        home, wide = gradients[0].device, torch.float32
        if any(gradient.dtype == torch.float64 for gradient in gradients):
            wide = torch.float64
        self.value = torch.linalg.vector_norm(torch.stack([each.to(home, wide) for each in norms(gradients)]))
        self.largest = torch.stack([each.to(home, wide) for each in norms(gradients, float("inf"))]).amax()

    def scale_to(self, limit: Tensor | float) -> None:
        """Scale all gradients so that their norm is at most ``limit``; those that are not finite are left alone."""
        # squares of finite gradients can overflow: then largest times root of count, which is never below the norm
        bound = self.largest * sum(gradient.numel() for gradient in self.gradients) ** 0.5
        over = torch.isfinite(self.largest) & (self.value > limit)
        factor = torch.where(torch.isfinite(self.value), limit / self.value, limit / bound)
        factor = torch.where(over, factor, torch.ones_like(self.value))
        for gradient in self.gradients:
            gradient.mul_(factor.to(gradient.device, gradient.dtype))


def carried(optimizer: torch.optim.Optimizer, like: Tensor) -> Tensor:
    """The loss scale that gradients still carry: a fused optimizer under a loss scaler divides by it itself, later."""
    scale = getattr(optimizer, "grad_scale", None)
    factor: Tensor = torch.ones((), device=like.device) if scale is None else scale.to(like.device)
    return factor


def _dense(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, Tensor]]:
    """Parameters of two dimensions and more, with their gradients, which are dense and real."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if parameter.ndim > 1 and gradient is not None and not gradient.is_sparse and not gradient.is_complex():
                yield parameter, gradient.detach()


def _by_unit(tensor: Tensor) -> Tensor:
    """The norm of each slice along the first dimension, in single precision at least, of a shape that broadcasts."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    norm: Tensor = torch.linalg.vector_norm(wide, dim=tuple(range(1, tensor.ndim)), keepdim=True)
    return norm
