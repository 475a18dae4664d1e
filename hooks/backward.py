"""When a backward pass has ended: told by a few parameters, so that the others need no hook."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.hooks import ranks

KINDS = 32
"""Kinds of backward passes that are remembered: with stochastic depth each may be another."""

PROBES = 4
"""Parameters whose gradient is looked at before a backward pass adds to it, at most."""


class Backward:
    """Calls ``ended`` after each backward pass that reaches a parameter, before anybody reads the gradients.

    While learning, every parameter has a hook, and which of them each pass reaches is remembered. Once settled, only a
    few sentinels keep theirs: a small set, found greedily, of which every pass seen so far reaches at least one.
    ``left_over`` is called, while learning, with a parameter and the gradient that is about to be added to its own.
    """

    def __init__(self, ended: Callable[[], None], left_over: Callable[[Tensor, Tensor], None]) -> None:
        self._ended, self._left_over = ended, left_over
        self._parameters: list[nn.Parameter] = []
        self._looked_at: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._reached: set[int] = set()
        self._passes: dict[frozenset[int], None] = {}  # the newest kinds, in order
        self._hook = _unserializable(lambda parameter: self._arrived(parameter))
        self._pass = -1  # the engine's number of the backward pass whose end is waited for
        self._learning = False

    def watch(self, parameters: Sequence[nn.Parameter], looked_at: Sequence[nn.Parameter]) -> None:
        """Follow these parameters from now on; of ``looked_at``, what a few hold before a pass adds to it."""
        self._parameters = list(parameters)
        self._looked_at = list(looked_at)[:: -(-len(looked_at) // PROBES) or 1]
        self._passes.clear()
        self.remove()
        self.learn()

    def learn(self) -> None:
        """Have a hook on every parameter."""
        if self._learning:
            return
        self.remove()
        self._learning = True
        self._add(self._parameters)
        for parameter in filter(_follows, self._looked_at):
            follow: Any = parameter.register_hook
            look = functools.partial(self._left_over, parameter)
            self._handles.append(follow(_unserializable(look)))

    @property
    def settled(self) -> bool:
        """Whether only sentinels have hooks."""
        return not self._learning

    def settle(self) -> None:
        """Leave hooks on sentinels only."""
        if self._learning and self._passes:
            self.remove()
            self._add(self._sentinels())

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._learning = False

    def _sentinels(self) -> list[nn.Parameter]:
        """A few parameters such that each pass seen reaches one of them."""
        chosen: set[int] = set()
        missing = set(self._passes)
        while missing:
            best = max({key for reached in missing for key in reached}, key=lambda k: sum(k in r for r in missing))
            chosen.add(best)
            missing = {reached for reached in missing if best not in reached}
        return [parameter for parameter in self._parameters if id(parameter) in chosen]

    def _add(self, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in filter(_follows, parameters):  # the user may freeze and thaw them at any time
            register: Any = parameter.register_post_accumulate_grad_hook
            self._handles.append(register(self._hook))

    def _arrived(self, parameter: Tensor) -> None:
        if torch.compiler.is_compiling():
            return  # compiled autograd has no callbacks: the step finds out that nobody told
        if self._learning:
            self._reached.add(id(parameter))
        number = torch._C._current_graph_task_id()
        if number != self._pass:  # not a flag: a pass that raises never calls back
            self._pass = number
            self._queue(self._over if ranks.processes() == 1 else self._arrived_all)

    def _arrived_all(self) -> None:
        """What others have put off until the end (the averaging of DDP) comes first: wait once more."""
        self._queue(self._over)

    def _over(self) -> None:
        if self._learning and self._reached:
            self._passes[frozenset(self._reached)] = None
            self._reached.clear()
            if len(self._passes) > KINDS:
                del self._passes[next(iter(self._passes))]
        self._ended()

    def forget(self) -> None:
        """Keep no parameter."""
        self.remove()
        self._parameters, self._looked_at = [], []
        self._passes.clear()
        self._reached.clear()

    @staticmethod
    def _queue(callback: Callable[[], None]) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(callback)


def _follows(parameter: nn.Parameter) -> bool:
    """Whether a hook can be put on a parameter's gradient."""
    return parameter.requires_grad and parameter.is_leaf


def _unserializable(hook: Any) -> Any:
    """Mark a hook as one that stays behind, without a warning, when its tensor is sent to another process."""
    mark: Any = torch.utils.hooks.unserializable_hook
    return mark(hook)
