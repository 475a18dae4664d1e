"""Nested containers of plain data and tensors: what was in them, and filling the same ones again."""

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from torch import Tensor, nn


@dataclass
class Held:
    """A dict, list or deque and what was in it; it is filled again rather than replaced, as others may refer to it."""

    live: Any
    items: Any


def freeze(value: Any, keep: Callable[[Tensor], Tensor]) -> Any:
    """Nested containers with what is in them now; ``keep`` is called with each tensor, unknown objects stay."""
    if isinstance(value, Tensor):
        return keep(value)
    if isinstance(value, dict):
        return Held(value, {key: freeze(inner, keep) for key, inner in value.items()})
    if isinstance(value, list | deque):
        return Held(value, [freeze(inner, keep) for inner in value])
    if type(value) is tuple:
        return tuple(freeze(inner, keep) for inner in value)
    return copy.copy(value) if isinstance(value, set | np.ndarray) else value


def thaw(frozen: Any, mark: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Any:
    """The same containers, filled as they were; ``mark`` is called with each tensor."""
    if isinstance(frozen, Tensor):
        return mark(frozen)
    if isinstance(frozen, Held):
        return _refilled(frozen, mark)
    if type(frozen) is tuple:
        return tuple(thaw(inner, mark) for inner in frozen)
    return copy.copy(frozen) if isinstance(frozen, set | np.ndarray) else frozen


def _refilled(held: Held, mark: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(held.items, dict):
        inside = {key: thaw(inner, mark) for key, inner in held.items.items()}
        held.live.clear()
        held.live.update(inside)
    else:
        listed = [thaw(inner, mark) for inner in held.items]
        held.live.clear()
        held.live.extend(listed)
    return held.live


def is_data(value: Any) -> bool:
    """Whether a value is data throughout: no parameters, functions or objects, which are somebody else's."""
    if isinstance(value, dict):
        return all(map(is_data, value.values()))
    if isinstance(value, list | tuple | deque | set | frozenset):
        return all(map(is_data, value))
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter)
    return value is None or isinstance(
        value, bool | int | float | complex | str | bytes | Enum | np.generic | np.ndarray
    )


def is_mark(value: Any) -> bool:
    """Data on an optimizer itself; its containers are left out: they hold hooks and parameters."""
    return not isinstance(value, dict | list | tuple | deque | set | frozenset) and is_data(value)


def copied(batch: Any) -> Any:
    """A batch whose tensors are copies: users and models may change theirs in place."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, dict):
        return {key: copied(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [copied(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def size_in_bytes(batch: Any) -> int:
    """Bytes of all tensors in a batch."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, dict):
        return sum(map(size_in_bytes, batch.values()))
    return sum(map(size_in_bytes, batch)) if isinstance(batch, list | tuple) else 0
