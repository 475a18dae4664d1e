"""A gradient scaler followed: it skips steps, and no hook of the optimizer fires then."""

import functools
from collections.abc import Callable
from typing import Any

import torch


class ScalerWatch:
    """Calls ``skipped`` when the scaler does not take a step. ``step`` is wrapped on the instance, until ``remove``."""

    def __init__(self, scaler: Any, optimizer: torch.optim.Optimizer, skipped: Callable[[], None]) -> None:
        self.scaler = scaler
        original = scaler.step
        stepped = [False]
        self._handle = optimizer.register_step_post_hook(lambda *_: stepped.__setitem__(0, True))

        @functools.wraps(original)
        def step(which: Any, *args: Any, **kwargs: Any) -> Any:
            stepped[0] = False
            result = original(which, *args, **kwargs)
            if which is optimizer and not stepped[0]:
                skipped()
            return result

        scaler.step = step

    def remove(self) -> None:
        """Put the scaler's own method back."""
        self._handle.remove()
        self.scaler.__dict__.pop("step", None)
