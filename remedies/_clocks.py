"""What goes on by itself in a run, whatever the weights: schedulers, the loss scale, random numbers."""

import copy
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Data = dict[str, Any]

PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, np.generic, np.ndarray, Tensor)


def mapped(value: Any, tensor: Callable[[Tensor], Any]) -> Any:
    """A copy of nested containers of whatever class, with ``tensor`` applied to the tensors in them."""
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, dict):
        result = copy.copy(value)  # of its own class, with its default: Counter, defaultdict, OrderedDict
        for key, inner in value.items():
            result[key] = mapped(inner, tensor)
        return result
    if isinstance(value, list | deque):
        copied: Any = copy.copy(value)
        for i, inner in enumerate(value):
            copied[i] = mapped(inner, tensor)
        return copied
    if type(value) is tuple:
        return tuple(mapped(inner, tensor) for inner in value)
    return value.copy() if isinstance(value, np.ndarray | set) else value


def cloned(tensor: Tensor) -> Tensor:
    """A copy of its own."""
    return tensor.detach().clone()


class Clock:
    """The data of a scheduler or a scaler, and of the schedulers within it."""

    def __init__(self, thing: Any) -> None:
        self._kept = [(part, {key: mapped(value, cloned) for key, value in _data(part)}) for part in _parts(thing)]

    def restore(self) -> None:
        """Put the data back; what came since is removed."""
        for part, kept in self._kept:
            for key in [key for key, _ in _data(part) if key not in kept]:
                del vars(part)[key]
            for key, value in kept.items():
                put_back(vars(part), key, value)


def put_back(holder: dict[str, Any], key: str, value: Any) -> None:
    """``holder[key] = value``; a tensor's value goes into the same tensor."""
    live = holder.get(key)
    if isinstance(live, Tensor) and isinstance(value, Tensor) and live.shape == value.shape:
        live.detach().copy_(value)
    else:
        holder[key] = mapped(value, cloned)


def _data(part: Any) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in vars(part).items() if _is_data(value))


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_data, value.values()))
    if isinstance(value, list | tuple | set | frozenset | deque):
        return all(map(_is_data, value))
    return isinstance(value, PLAIN)


def _parts(thing: Any) -> list[Any]:
    """A scheduler, and what it is made of: schedulers that it holds or wraps, functions that remember something."""
    found: dict[int, Any] = {}
    waiting = [thing]
    while waiting:
        part = waiting.pop()
        if id(part) in found or not hasattr(part, "__dict__"):
            continue
        found[id(part)] = part
        for value in vars(part).values():
            waiting += [inner for inner in (value if isinstance(value, list | tuple) else [value]) if _is_part(inner)]
    return list(found.values())


def _is_part(thing: Any) -> bool:
    if isinstance(thing, torch.optim.Optimizer | nn.Module | type) or not hasattr(thing, "__dict__"):
        return False
    is_function = hasattr(thing, "__name__") or hasattr(thing, "__func__")
    return hasattr(thing, "load_state_dict") or (callable(thing) and not is_function)


class Generators:
    """The state of every random number generator: Python's, NumPy's, torch's, and each device's in use."""

    def __init__(self) -> None:
        self._put_back: list[tuple[Callable[[Any], Any], Any]] = [
            (random.setstate, random.getstate()),
            (np.random.set_state, np.random.get_state()),
            (torch.set_rng_state, torch.get_rng_state()),
        ]
        for device in (torch.cuda, torch.xpu):
            if device.is_available() and device.is_initialized():
                self._put_back.append((device.set_rng_state_all, device.get_rng_state_all()))
        if torch.backends.mps.is_available():
            self._put_back.append((torch.mps.set_rng_state, torch.mps.get_rng_state()))

    def restore(self) -> None:
        """Put all of them back."""
        for put_back, state in self._put_back:
            put_back(state)
