"""Learning rates and everything that schedulers compute them from, scaled together."""

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainmedic.remedies.remedy import Undo

GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""Options of a parameter group that are rates; schedulers read and write them."""

SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "eta_min", "default_min_lr", "_last_lr")
"""Attributes of schedulers that are rates, or lists of them."""


def schedulers_of(optimizers: Sequence[torch.optim.Optimizer], known: Iterable[Any] = ()) -> list[Any]:
    """Every scheduler of ``optimizers``: those ``known``, those alive elsewhere, and those inside of them."""
    ours = {id(optimizer) for optimizer in optimizers}
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), LRScheduler)]
    found: dict[int, Any] = {}
    waiting = [*known, *(thing for thing in alive if id(vars(thing).get("optimizer")) in ours)]
    while waiting:
        scheduler = waiting.pop()
        if id(scheduler) not in found:
            found[id(scheduler)] = scheduler
            waiting += list(getattr(scheduler, "_schedulers", ()))
    return list(found.values())


@dataclass
class _Slot:
    """One rate where it lies: an entry of a dict or a list."""

    holder: Any
    key: Any
    before: Any
    after: Any

    def put(self, value: Any) -> None:
        live = self.holder[self.key]
        if isinstance(live, Tensor):
            live.fill_(value)
        else:
            self.holder[self.key] = value


def scale_rates(optimizers: Sequence[torch.optim.Optimizer], schedulers: Iterable[Any], factor: float) -> Undo:
    """Multiply all rates by ``factor``; the inverse restores them, or divides by it those that have moved since."""
    slots = list(_slots(optimizers, schedulers_of(optimizers, schedulers), factor))

    def undo() -> None:
        for slot in slots:
            now = _plain(slot.holder[slot.key])
            slot.put(slot.before if now == slot.after else now / factor)

    try:
        for slot in slots:
            slot.put(slot.after)
            slot.after = _plain(slot.holder[slot.key])  # as rounded by a tensor's own precision
    except BaseException:
        for slot in slots:
            slot.put(slot.before)
        raise
    return undo


def _slots(optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any], factor: float) -> Iterator[_Slot]:
    """Every rate once: groups that were given one tensor as their rate share it."""
    seen: set[int] = set()
    for holder, key in _places(optimizers, schedulers):
        value = holder[key]
        if isinstance(value, Tensor):
            if id(value) in seen:
                continue
            seen.add(id(value))
        elif not isinstance(value, int | float) or isinstance(value, bool):
            continue
        before = _plain(value)
        yield _Slot(holder, key, before, before * factor)


def _places(optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            yield from ((group, key) for key in GROUP_RATES if key in group)
    lists: set[int] = set()
    for scheduler in schedulers:
        own = vars(scheduler)
        keys = (*SCHEDULER_RATES, "eps") if isinstance(scheduler, ReduceLROnPlateau) else SCHEDULER_RATES
        for key in keys:
            value = own.get(key)
            if isinstance(value, list) and id(value) not in lists:
                lists.add(id(value))  # a scheduler made of others may hold the very list of one of them
                yield from ((value, i) for i in range(len(value)))
            elif isinstance(value, int | float | Tensor):
                yield own, key


def _plain(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) else value
