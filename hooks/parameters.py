"""What happens to parameters: their gradients, their norms, and the updates that the optimizer really makes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainmedic.hooks.reading import Reading

SAMPLE = 4_096
"""Elements of a tensor, at most, on which its update is measured; evenly spaced, always the same ones."""

Named = Sequence[tuple[str, nn.Parameter]]


def dense(tensor: Tensor) -> Tensor:
    """A tensor's values as an ordinary real one: the stored entries of a sparse one, both parts of a complex one."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> list[Tensor]:
    """The norm of each tensor, as scalars of at least single precision, with one kernel for all of a kind."""
    results: list[Tensor | None] = [None] * len(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    for (_, dtype), members in groups.items():
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else None
        for i, norm in zip(members, torch._foreach_norm([tensors[i] for i in members], order, dtype=wide), strict=True):
            results[i] = norm
    return [result for result in results if result is not None]


def gradients(named: Named) -> tuple[list[str], list[Tensor]]:
    """Names and gradients of the parameters that have one."""
    with_gradient = [(name, parameter.grad) for name, parameter in named if parameter.grad is not None]
    return [name for name, _ in with_gradient], [dense(gradient) for _, gradient in with_gradient]


@torch.no_grad()
def put_gradients(named: Named, reading: Reading, *, full: bool, scale: Tensor | float | None) -> None:
    """Gradient norms of every parameter; with ``full`` also the mean and the share of zeros.

    ``scale`` is the loss scale that the gradients still carry.
    """
    names, values = gradients(named)
    if not values:
        return
    two = norms(values)
    reading.put_each("gradient_norm", names, _unscaled(two, scale))
    if not full:
        return
    one = norms(values, 1.0)
    sizes = [max(value.numel(), 1) for value in values]
    reading.put_each(
        "gradient_mean_abs", names, _unscaled(list(torch._foreach_div(one, [float(size) for size in sizes])), scale)
    )
    zeros = [1 - value.count_nonzero() / size for value, size in zip(values, sizes, strict=True)]
    reading.put_each("gradient_zeros", names, zeros)


def _unscaled(values: list[Tensor], scale: Tensor | float | None) -> list[Tensor]:
    if scale is None:
        return values
    return [value / (scale.to(value.device) if isinstance(scale, Tensor) else scale) for value in values]


class Updates:
    """|update| / |weight| of each parameter over one optimizer step, on a fixed sample of its elements."""

    def __init__(self, named: Named) -> None:
        self.named = [(name, parameter) for name, parameter in named if parameter.requires_grad and parameter.numel()]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Right before the step: keep the sample."""
        self._before = [sample(parameter).clone() for _, parameter in self.named]

    @torch.no_grad()
    def after(self, reading: Reading) -> None:
        """Right after the step: compare."""
        if not self._before:
            return
        now = [sample(parameter) for _, parameter in self.named]
        moved = norms([new - old for new, old in zip(now, self._before, strict=True)])
        weights = norms(self._before)
        names = [name for name, _ in self.named]
        reading.put_each("update_ratio", names, [m / w for m, w in zip(moved, weights, strict=True)])
        reading.put_each("weight_norm", names, norms([dense(parameter.detach()) for _, parameter in self.named]))
        self._before = []


def sample(parameter: Tensor) -> Tensor:
    """At most ``SAMPLE`` evenly spaced elements of a parameter, as a vector."""
    flat = dense(parameter.detach()).reshape(-1)
    return flat[:: -(-flat.numel() // SAMPLE)]
