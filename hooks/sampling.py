"""A few elements that stand for a large tensor: always the same ones, spread evenly over all of it.

A sample of n independent elements tells a share to within 0.5 / sqrt(n) and a standard deviation to within
1 / sqrt(2 n) of itself (one standard error). Extremes, values that are not finite and silent units are never looked for
in a sample.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 4_096
"""Elements of a parameter, or of its gradient, that are looked at one by one, at most."""

ORDINARY = (Tensor, torch.nn.Parameter)

ROWS = 64
"""Rows of an output that its sample is spread over, at least, where there are as many."""


def dense(tensor: Tensor) -> Tensor:
    """A tensor's own values as an ordinary real one.

    Of a sparse tensor the stored entries, of a complex one both parts, of a distributed one this rank's shard.
    """
    if type(tensor) not in ORDINARY:
        tensor = local(tensor)
    if tensor.layout is torch.strided:
        return torch.view_as_real(tensor) if tensor.is_complex() else tensor
    tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def unreadable(tensor: Tensor) -> bool:
    """Whether a tensor's values cannot be looked at here: an odd kind, inside vmap or grad, on the meta device."""
    if type(tensor) not in ORDINARY and not hasattr(tensor, "to_local"):
        return True
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return wrapped or tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided or tensor.dtype.itemsize < 2


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that this rank holds; any other tensor as it is."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def stride(elements: int, limit: int, width: int) -> int:
    """Which every n-th of ``elements`` to take for at most ``limit``; not in step with rows of ``width``."""
    every = max(1, -(-elements // max(limit, 1)))
    while math.gcd(every, max(width, 1)) > 1:  # or a few columns would stand for all
        every += 1
    return every


def thinned(tensor: Tensor, limit: int = SAMPLE) -> Tensor:
    """At most ``limit`` elements of a dense tensor, as a vector; always the same ones."""
    if tensor.numel() <= limit:
        return tensor.reshape(-1)
    if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    flat = tensor.reshape(-1)
    return flat[:: stride(flat.numel(), limit, tensor.shape[-1] if tensor.ndim else 1)]


def gathered(tensors: Sequence[Tensor], limit: int = SAMPLE) -> list[Tensor]:
    """A copy of each dense tensor's sample in single precision: views of one piece of memory per device."""
    result: dict[int, Tensor] = {}
    by_device: dict[torch.device, list[int]] = {}
    parts = [thinned(tensor, limit) for tensor in tensors]
    for i, part in enumerate(parts):
        by_device.setdefault(part.device, []).append(i)
    for members in by_device.values():
        piece = torch.cat([parts[i].float() for i in members])
        result.update(zip(members, torch.split(piece, [parts[i].numel() for i in members]), strict=True))
    return [result[i] for i in range(len(parts))]


def rows(tensor: Tensor, limit: int, start: int = 0) -> Tensor:
    """A sample of a batch as (rows, columns) in single precision: some of its samples, the same elements of each.

    ``start`` moves the elements that are taken, so that over several steps all come into view.
    """
    tensor = tensor.detach()
    if tensor.ndim < 2:
        tensor = tensor.reshape(-1, 1)
    if tensor.numel() <= limit and tensor.is_contiguous():
        return tensor.reshape(tensor.shape[0], -1).float()
    order = sorted(range(1, tensor.ndim), key=tensor.stride, reverse=True)  # along the memory, whatever its format
    flat = tensor.permute(0, *order).reshape(tensor.shape[0], -1)
    flat = flat[:: max(1, flat.shape[0] // ROWS)]
    every = stride(flat.numel(), limit, tensor.shape[order[-1]])
    return flat[:, start % min(every, flat.shape[1]) :: every].float().contiguous()
