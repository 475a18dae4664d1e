"""What keeps time in a run: schedulers, the loss scaler, and generators of random numbers."""

import random
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from trainmedic.remedies._containers import is_data
from trainmedic.remedies.run import Run


def clocks_of(run: Run) -> Iterator[Any]:
    """Schedulers and scaler, the schedulers inside of schedulers, and callables that compute rates and hold values."""
    found: set[int] = set()
    waiting = [*run.schedulers, run.scaler]
    while waiting:
        thing = waiting.pop()
        if thing is None or id(thing) in found or not hasattr(thing, "__dict__"):
            continue
        found.add(id(thing))
        yield thing
        waiting += [f for f in vars(thing).get("lr_lambdas", ()) if not isinstance(f, FunctionType | type | nn.Module)]
        for value in vars(thing).values():
            waiting += [inner for inner in (value if isinstance(value, list | tuple) else [value]) if _is_clock(inner)]


def _is_clock(thing: Any) -> bool:
    """Whether a scheduler's attribute keeps time itself, as far as can be told: it can be saved, and is no model."""
    if isinstance(thing, torch.optim.Optimizer | nn.Module):
        return False
    return hasattr(type(thing), "state_dict") and hasattr(type(thing), "load_state_dict")


def own_data(thing: Any) -> dict[str, Any]:
    """What a scheduler or scaler keeps, without what it refers to (the optimizer, wrapped functions)."""
    return {key: value for key, value in vars(thing).items() if is_data(value)}


def generators() -> dict[str, Any]:
    """The state of every random number generator: Python's, NumPy's, torch's, and each used device's."""
    kept = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False), "torch": torch.get_rng_state()}
    for name in ("cuda", "xpu"):
        device = getattr(torch, name)
        if device.is_available() and device.is_initialized():
            kept[name] = device.get_rng_state_all()
    if torch.backends.mps.is_available():
        kept["mps"] = torch.mps.get_rng_state()
    return kept


def restore_generators(kept: Mapping[str, Any]) -> None:
    random.setstate(kept["python"])
    np.random.set_state(kept["numpy"])
    torch.set_rng_state(kept["torch"])
    for name in kept.keys() & {"cuda", "xpu"}:
        getattr(torch, name).set_rng_state_all(kept[name])
    if "mps" in kept:
        torch.mps.set_rng_state(kept["mps"])
