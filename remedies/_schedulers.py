"""Learning rates and everything that schedulers compute them from, scaled together."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainmedic.remedies._alive import alive
from trainmedic.remedies.remedy import Undo

GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
"""Options of a parameter group that are rates; schedulers read and write them."""

SCHEDULER_RATES = ("base_lrs", "max_lrs", "min_lrs", "eta_min", "default_min_lr", "_last_lr")
"""Attributes of schedulers that are rates, or lists of them."""


def schedulers_of(optimizers: Sequence[torch.optim.Optimizer], known: Iterable[Any] = ()) -> list[Any]:
    """Every scheduler of ``optimizers``: those ``known``, those alive elsewhere, and those inside of them."""
    ours = {id(optimizer.param_groups) for optimizer in optimizers}  # a wrapper has those of the optimizer it wraps

    def is_ours(scheduler: LRScheduler) -> bool:
        return id(getattr(vars(scheduler).get("optimizer"), "param_groups", None)) in ours

    found: dict[int, Any] = {}
    waiting: list[Any] = [*known, *filter(is_ours, alive(LRScheduler))]
    while waiting:
        scheduler = waiting.pop()
        if id(scheduler) not in found:
            found[id(scheduler)] = scheduler
            waiting += list(getattr(scheduler, "_schedulers", ()))
    return list(found.values())


@dataclass
class _Slot:
    """One rate: an option of a group, an attribute of a scheduler, or an element of one that is a list.

    It is looked up anew each time: schedulers replace their lists, and loading a state replaces the groups.
    """

    owner: Callable[[], dict[str, Any]]
    name: str
    index: int | None
    before: float = 0.0
    after: float = 0.0

    def place(self) -> tuple[Any, Any]:
        """The container that holds it now, and where in it."""
        holder = self.owner()
        return (holder, self.name) if self.index is None else (holder[self.name], self.index)

    def get(self) -> float:
        holder, key = self.place()
        return _plain(holder[key])

    def put(self, value: float) -> None:
        holder, key = self.place()
        if isinstance(holder[key], Tensor):
            holder[key].fill_(value)
        else:
            holder[key] = value


def scale_rates(optimizers: Sequence[torch.optim.Optimizer], schedulers: Iterable[Any], factor: float) -> Undo:
    """Multiply all rates by ``factor``; the inverse restores them, or divides by it those that have moved since."""
    slots = list(_slots(optimizers, schedulers_of(optimizers, schedulers)))
    for slot in slots:
        slot.before = slot.get()

    def undo() -> None:
        for slot in _each_once(slots):
            now = slot.get()
            slot.put(slot.before if now == slot.after else now / factor)

    try:
        for slot in _each_once(slots):
            slot.put(slot.before * factor)
    except BaseException:
        for slot in slots:
            slot.put(slot.before)
        raise
    for slot in slots:
        slot.after = slot.get()  # as rounded by a tensor's own precision
    return undo


def _each_once(slots: Iterable[_Slot]) -> Iterator[_Slot]:
    """Slots that exist; of several that lie in one place (a shared list, or one tensor for all groups) the first."""
    seen: set[Any] = set()
    for slot in slots:
        try:
            holder, key = slot.place()
            value = holder[key]
        except LookupError:
            continue  # its group or list is gone
        mark = id(value) if isinstance(value, Tensor) else (id(holder), key)
        if mark not in seen:
            seen.add(mark)
            yield slot


def _slots(optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any]) -> Iterator[_Slot]:
    """Every rate that is a number."""
    for optimizer in optimizers:
        for i, group in enumerate(optimizer.param_groups):
            owner = functools.partial(_group, optimizer, i)
            yield from (_Slot(owner, key, None) for key in GROUP_RATES if _is_number(group.get(key)))
    for scheduler in schedulers:
        keys = (*SCHEDULER_RATES, "eps") if isinstance(scheduler, ReduceLROnPlateau) else SCHEDULER_RATES
        owner = functools.partial(vars, scheduler)
        for key in keys:
            value = vars(scheduler).get(key)
            if isinstance(value, list):
                yield from (_Slot(owner, key, i) for i, inner in enumerate(value) if _is_number(inner))
            elif _is_number(value):
                yield _Slot(owner, key, None)


def _group(optimizer: torch.optim.Optimizer, i: int) -> dict[str, Any]:
    return optimizer.param_groups[i]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Tensor) and not isinstance(value, bool)


def _plain(value: Any) -> float:
    return value.item() if isinstance(value, Tensor) else value
