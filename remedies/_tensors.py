"""Copies of tensors, taken and put back together: one kernel for all of a kind."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ORDINARY = (Tensor, nn.Parameter, nn.Buffer)


@dataclass
class Kept:
    """One tensor and a copy of what it held. ``judged``: nothing is well unless it is finite."""

    live: Tensor
    copy: Tensor
    judged: bool = False


def values_of(tensor: Tensor) -> Tensor:
    """The tensor with each of its elements once: an expanded one cannot be written as it is."""
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return tensor
    for dimension, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def numbers_in(tensor: Tensor) -> Tensor | None:
    """The numbers in a tensor that can be infinite, as one whose largest can be taken; ``None`` if there are none."""
    values = tensor._values() if tensor.is_sparse else tensor
    if values.layout is not torch.strided or values.is_meta or not values.numel():
        return None
    if values.is_complex():
        return torch.view_as_real(values.resolve_conj())
    if not values.is_floating_point():
        return None
    return values.float() if values.element_size() == 1 else values  # torch computes nothing with 8-bit floats


def ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is plain memory, which may be copied together with others of its kind."""
    if type(tensor) not in ORDINARY or tensor.layout is not torch.strided:
        return False
    return not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same kind of values, wherever they are."""
    return one.shape == other.shape and one.dtype == other.dtype


def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Into the first of each pair what the second holds, with one kernel for all of a kind."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in pairs:
        kind = (target.device, source.device, target.dtype, target.is_inference())
        targets, sources = groups.setdefault(kind, ([], []))
        targets.append(target)
        sources.append(source)
    for (*_, inference), (targets, sources) in groups.items():
        with _writing(inference):
            torch._foreach_copy_(targets, sources)


def _writing(inference: bool) -> AbstractContextManager[object]:
    """For writing tensors that were made in inference mode, as in validation: only there can they be written."""
    return torch.inference_mode() if inference else nullcontext()


def copy_back(tensors: Iterable[Kept]) -> None:
    """Into the same tensors; one that has got another shape or type since is given new memory."""
    pairs = []
    for kept in tensors:
        target = values_of(kept.live)
        if target.shape != kept.copy.shape or target.dtype != kept.copy.dtype:
            kept.live.data = kept.copy.to(kept.live.device, copy=True)
        elif ordinary(target) and ordinary(kept.copy):
            pairs.append((target, kept.copy))
        else:
            with _writing(target.is_inference()):
                target.copy_(kept.copy)
    copy_all(pairs)
