"""Histograms of weights and gradients, counted on the device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainmedic.buckets import LIMITS, SIDE, SMALLEST
from trainmedic.hooks.parameters import Named
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import dense, gathered, local, unreadable

MOST = 100
"""Layers whose histograms are counted: the largest ones, those that train before those that do not."""

_FIRST = (127 + SMALLEST) * 4
"""Exponent and first two bits of the fraction of the smallest number that has a bucket of its own, as one number."""


def chosen(named: Named) -> Named:
    """The parameters of which there are histograms, in their order."""
    readable = [
        i
        for i, (_, p) in enumerate(named)
        if p.numel() and (p.is_floating_point() or p.is_complex()) and not unreadable(p)
    ]
    readable.sort(key=lambda i: (not named[i][1].requires_grad, -named[i][1].numel()))
    return [named[i] for i in sorted(readable[:MOST])]


@torch.no_grad()
def put_histograms(
    kind: str, tensors: Sequence[tuple[str, Tensor]], reading: Reading, scale: Tensor | float | None = None
) -> None:
    """Count a fixed sample of each tensor, divided by ``scale``; of distributed ones this rank's shard."""
    own = [(name, tensor, dense(tensor.detach())) for name, tensor in tensors]
    own = [row for row in own if row[2].numel()]
    samples = gathered([values for _, _, values in own])
    for device in {sample.device for sample in samples}:
        rows = [i for i, sample in enumerate(samples) if sample.device == device]
        stands_for = [_elements(own[i][1], own[i][2]) / samples[i].numel() for i in rows]
        divisor = scale.to(device) if isinstance(scale, Tensor) else scale
        numbers = counted([samples[i] for i in rows], divisor)
        reading.put_histograms(kind, [own[i][0] for i in rows], stands_for, numbers)


def _elements(tensor: Tensor, values: Tensor) -> float:
    """How many real numbers the whole tensor holds; of a sparse one those that are stored."""
    return values.numel() * tensor.numel() / local(tensor).numel()


def counted(samples: Sequence[Tensor], scale: Tensor | float | None = None) -> Tensor:
    """Vectors of single precision on one device, as rows of :class:`trainmedic.buckets.Counted`; none is waited for.

    What is not finite is left out. (``bincount`` would have the device waited for, ``histc`` is not deterministic.)
    """
    values = nn.utils.rnn.pad_sequence(list(samples), batch_first=True, padding_value=math.nan)
    values = values if scale is None else values / scale
    present = values.isfinite()
    low, high = values.where(present, math.inf).amin(1), values.where(present, -math.inf).amax(1)
    values = values.where(present, 0.0)
    total = values.sum(1)
    unit = values.abs().amax(1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    squares = (values / unit).square().sum(1)  # their own would overflow beyond 1.8e19
    bits = values.contiguous().view(torch.int32)
    # sign, exponent and the first two bits of the fraction: a number's place on a logarithmic scale
    place = (((bits & 0x7FFFFFFF) >> 21) - (_FIRST - 1)).clamp(0, SIDE)
    place = SIDE + place.where(bits >= 0, -place)
    place = place + len(LIMITS) * torch.arange(len(samples), dtype=torch.int32, device=values.device)[:, None]
    counts = torch.zeros(len(samples) * len(LIMITS), device=values.device)
    counts.index_add_(0, place.flatten(), present.flatten().to(counts.dtype))
    return torch.cat([torch.stack([low, high, total, squares], 1), counts.view(len(samples), -1)], 1)
