"""What happens to parameters: their gradients, their norms, and the updates that the optimizer really makes."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainmedic.hooks.ranks import sharded, summed, whole
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import ORDINARY, dense, gathered, stride, thinned, unreadable

Named = Sequence[tuple[str, nn.Parameter]]
Sum = Callable[[Tensor], Tensor]

UNITS = 2_048
"""Units of a weight that are compared with each other, at most."""


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of each tensor, as one vector in at least single precision, with one kernel for all of a kind."""
    if len({tensor.dtype for tensor in tensors}) == 1 and len({tensor.device for tensor in tensors}) == 1:
        return torch.stack(torch._foreach_norm(list(tensors), order, dtype=_wide(tensors[0].dtype)))
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    results: list[Tensor] = [tensors[0]] * len(tensors)
    for (_, dtype), members in groups.items():
        of_a_kind = torch._foreach_norm([tensors[i] for i in members], order, dtype=_wide(dtype))
        for i, norm in zip(members, of_a_kind, strict=True):
            results[i] = norm
    first = results[0]
    return torch.stack([norm.to(first.device, first.dtype, non_blocking=True) for norm in results])


def _of_a_kind(parameters: Sequence[Tensor]) -> bool:
    """Whether all are ordinary tensors in single precision on one device."""
    kinds = {(type(parameter), parameter.layout, parameter.dtype, parameter.device) for parameter in parameters}
    return len(kinds) == 1 and kinds.issubset(
        (kind, torch.strided, torch.float32, parameters[0].device) for kind in ORDINARY
    )


def _wide(dtype: torch.dtype) -> torch.dtype | None:
    """Half precision would overflow at 65,504."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else None


class Gradients:
    """Gradients of all parameters, as the last backward pass of a step has left them."""

    def __init__(self, named: Named) -> None:
        self.named = [(name, p) for name, p in named if sharded([p]) or not unreadable(p)]
        self.sharded = sharded([parameter for _, parameter in named])
        self._earlier: _Sampled | None = None  # of the step before
        self._current: _Sampled | None = None
        self._watched: list[tuple[nn.Parameter, Tensor]] = []  # a few, to see what happens to them before the step
        self._names = [name for name, _ in self.named]
        self._of_a_kind = not self.sharded and _of_a_kind([parameter for _, parameter in self.named])

    def put(self, reading: Reading, scale: Tensor | float | None, *, full: bool) -> Tensor | None:
        """Gradient norms of every parameter; with ``full`` also what a sample of each tells.

        ``scale`` is the loss scale that the gradients still carry. Returns the vector of norms.
        """
        self._watched, self._current = [], None
        if self._of_a_kind and not full and scale is None and (two := self._norms_at_once()) is not None:
            reading.put_row("gradient_norm", self._names, two)
            return two
        return self._put(reading, scale, full)

    @torch.no_grad()
    def _put(self, reading: Reading, scale: Tensor | float | None, full: bool) -> Tensor | None:
        present = [(name, gradient) for name, p in self.named if (gradient := p.grad) is not None]
        if not present:
            return None
        names = [name for name, _ in present]
        values = [dense(gradient) for _, gradient in present]
        divisor = scale.to(values[0].device) if isinstance(scale, Tensor) else scale
        two = self._whole(values, present) if self.sharded else norms(values)
        two = two if divisor is None else two / divisor
        reading.put_row("gradient_norm", names, two)
        if full:
            self._current = now = _Sampled(names, gathered(values))
            sums = self._summed([gradient for _, gradient in present] if self.sharded else ())
            now.put(reading, divisor, self._earlier, sums)
            self._watch([parameter for _, parameter in self.named if parameter.grad is not None])
        return two

    def _norms_at_once(self) -> Tensor | None:
        """The norms where every parameter has an ordinary gradient, with nothing looked at twice: done at each step."""
        gradients = [parameter.grad for _, parameter in self.named]
        for gradient in gradients:
            if gradient is None or gradient.layout is not torch.strided or gradient.dtype is not torch.float32:
                return None
            if gradient.requires_grad:  # made with create_graph: its norm would get a graph too
                return None
        return torch.stack(torch._foreach_norm(gradients))  # type: ignore[arg-type]

    @staticmethod
    def _summed(sharded_gradients: Sequence[Tensor]) -> Sum:
        """How sums over this rank's parts of the gradients become sums over all of them."""
        return functools.partial(summed, tensors=sharded_gradients) if sharded_gradients else lambda values: values

    @staticmethod
    def _whole(values: list[Tensor], present: list[tuple[str, Tensor]]) -> Tensor:
        """Norms of sharded gradients. The other ranks wait for this one: whatever happens here, it takes part."""
        try:
            own = norms(values)
        except Exception:
            own = torch.full((len(values),), torch.nan, device=values[0].device)
        return whole(own, [gradient for _, gradient in present])

    def step_ended(self) -> None:
        """From now on the current step is the one before."""
        self._earlier, self._current, self._watched = self._current, None, []

    def _watch(self, parameters: list[nn.Parameter]) -> None:
        chosen = parameters[:: -(-len(parameters) // 4)]
        samples = gathered([dense(p.grad) for p in chosen if p.grad is not None])
        self._watched = list(zip(chosen, samples, strict=True))

    @torch.no_grad()
    def put_clipping(self, reading: Reading, scale: Tensor | float | None) -> None:
        """Right before the optimizer's step: by what the user has multiplied the gradients since the backward pass."""
        if not self._watched or any(p.grad is None for p, _ in self._watched):
            return
        now = norms(gathered([dense(p.grad) for p, _ in self._watched if p.grad is not None]))
        before = norms([sample for _, sample in self._watched])
        ratio = now.norm() / before.norm()
        reading.put("gradient/clipped", ratio if scale is None else ratio * scale)
        self._watched = []


@dataclass
class _Sampled:
    """A sample of each gradient, at one step."""

    names: list[str]
    parts: list[Tensor]

    def matches(self, other: "_Sampled") -> bool:
        return self.names == other.names and all(
            a.shape == b.shape and a.device == b.device for a, b in zip(self.parts, other.parts, strict=True)
        )

    def put(
        self, reading: Reading, scale: Tensor | float | None, earlier: "_Sampled | None", of_all_ranks: Sum
    ) -> None:
        """Mean absolute value, share of zeros, and the cosine with the sample of the step before."""
        lengths = _lengths(tuple(part.numel() for part in self.parts), self.parts[0].device)
        signs = norms(list(torch._foreach_sign(self.parts)), 1.0)
        rows = [lengths, norms(self.parts, 1.0), signs]
        compared = earlier is not None and earlier.matches(self)
        if earlier is not None and compared:
            rows += products(self.parts, earlier.parts)
        lengths, total, signs, *squares = of_all_ranks(torch.stack(rows))
        mean = total / lengths
        reading.put_row("gradient_mean_abs", self.names, mean if scale is None else mean / scale)
        reading.put_row("gradient_zeros", self.names, 1 - signs / lengths)
        if compared:
            reading.put_row("gradient_cosine", self.names, cosines(*squares))


@functools.lru_cache(maxsize=8)
def _lengths(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers as a vector on a device, where they stay: a new one each time would be waited for."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


def products(now: list[Tensor], before: list[Tensor]) -> list[Tensor]:
    """``|a + b|^2``, ``|a - b|^2``, ``|a|^2`` and ``|b|^2`` of each pair of vectors, with fused kernels."""
    plus, minus = norms(list(torch._foreach_add(now, before))), norms(list(torch._foreach_sub(now, before)))
    return [plus.square(), minus.square(), norms(now).square(), norms(before).square()]


def cosines(plus: Tensor, minus: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """The cosine of each pair of vectors from their :func:`products`: ``|a + b|^2 - |a - b|^2 = 4 a.b``."""
    return (plus - minus) / (4 * now.sqrt() * before.sqrt())


class Updates:
    """|update| / |weight| of each parameter over one optimizer step, on a fixed sample of its elements."""

    def __init__(self, named: Named) -> None:
        self.given = named
        self.named = [(name, p) for name, p in named if p.requires_grad and p.numel() and not unreadable(p)]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Right before the step: keep the sample."""
        self.sharded = sharded([parameter for _, parameter in self.named])
        if not self.sharded:  # of shards the others may have more
            self.named = [(name, parameter) for name, parameter in self.named if dense(parameter.detach()).numel()]
        if self.named:
            self._before = gathered([dense(parameter.detach()) for _, parameter in self.named])

    @torch.no_grad()
    def after(self, reading: Reading) -> None:
        """Right after the step: compare."""
        if not self._before:
            return
        names = tuple(name for name, _ in self.named)
        values = [dense(parameter.detach()) for _, parameter in self.named]
        now = gathered(values)
        moved = norms(list(torch._foreach_sub(now, self._before)))
        parts = torch.stack([moved, norms(self._before), norms(values)])
        if self.sharded:
            parts = whole(parts, [parameter for _, parameter in self.named])
        reading.put_row("update_ratio", names, parts[0] / parts[1])
        reading.put_row("weight_norm", names, parts[2])
        self._before = []


@torch.no_grad()
def put_spreads(named: Named, reading: Reading) -> None:
    """How different the elements, and the units (slices along the first dimension), of each weight are."""
    for name, parameter in named:
        if unreadable(parameter):
            continue
        weight = dense(parameter.detach())
        if weight.numel() > 1 and weight.is_floating_point():
            reading.put("weight_std", thinned(weight).float().std(correction=0), name)
            if weight.ndim > 1 and weight.shape[0] > 1 and weight[0].numel():
                reading.put("equal_units", _equal_units(weight), name)


def _equal_units(weight: Tensor) -> Tensor:
    """The share of units that are the same as another one; of at most ``UNITS``, by 64 elements of each."""
    units = weight[:: -(-weight.shape[0] // UNITS)].flatten(1)
    units = units[:, :: stride(units.shape[1], 64, 1)].float()
    # one number per unit, its projection on a direction that no initialisation knows of: equal ones become neighbours
    direction = torch.arange(1, units.shape[1] + 1, device=units.device).mul(math.sqrt(2)).cos()
    units = units[(units * direction).sum(1).argsort()]
    close = units.diff(dim=0).abs().amax(1) <= 1e-6 * units.abs().amax()
    return (functional.pad(close, (1, 0)) | functional.pad(close, (0, 1))).float().mean()
