"""A gradient scaler followed: it skips steps, and no hook of the optimizer fires then."""

import copy
from collections.abc import Callable
from typing import Any

import torch


class ScalerWatch:
    """Calls ``skipped`` when the scaler takes no step. ``step`` is replaced on the instance, until ``remove``."""

    def __init__(self, scaler: Any, optimizer: torch.optim.Optimizer, skipped: Callable[[], None]) -> None:
        self._scaler, self._optimizer, self._skipped = scaler, optimizer, skipped
        self._replaced = scaler.__dict__.get("step")  # of somebody else
        self._original = scaler.step
        self._stepped = False
        self._handle = optimizer.register_step_post_hook(self._took_a_step)
        self._step = scaler.step = _Step(self, scaler)

    def _took_a_step(self, *_: Any) -> None:
        self._stepped = True

    def step(self, which: Any, *args: Any, **kwargs: Any) -> Any:
        """What the user's call of ``scaler.step`` does: what it always did, and a look."""
        self._stepped = False
        result = self._original(which, *args, **kwargs)
        if which is self._optimizer and not self._stepped:
            self._skipped()
        return result

    def remove(self) -> None:
        """Put back what was there, unless somebody has replaced it since; then only look no more."""
        self._handle.remove()
        self._skipped = _nothing
        if self._scaler.__dict__.get("step") is self._step:
            if self._replaced is None:
                del self._scaler.step
            else:
                self._scaler.step = self._replaced


class _Step:
    """Stands in for ``scaler.step``; copies and pickles of the scaler get their own method again."""

    def __init__(self, watch: ScalerWatch, scaler: Any) -> None:
        self._watch, self._scaler = watch, scaler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._watch.step(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(copy.deepcopy(self._scaler, memo), "step")  # noqa: B009 (its own, not yet replaced)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._scaler, "step")


def _nothing() -> None:
    """Nobody looks any more."""


def found_inf(scaler: Any, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Per device, above 0 where gradients are not finite: the scaler calls a fused optimizer all the same."""
    state = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer)) or {}
    return list(state.get("found_inf_per_device", {}).values())


def unscaled(scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the scaler has taken its scale out of the optimizer's gradients in this step."""
    state = getattr(scaler, "_per_optimizer_states", {}).get(id(optimizer)) or {}
    return getattr(state.get("stage"), "name", "") != "READY"
