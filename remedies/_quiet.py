"""For steps that the medic runs by itself: hooks of others are silent, and what objects note is put back."""

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from trainmedic.remedies._containers import freeze, is_data, thaw

MODULE_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in MODULE_HOOKS)
STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
PART_OF_THE_MODEL = ("torch", "trainmedic.remedies")
"""Hooks from here compute what the model computes (weight norm, pruning, a treatment that was kept): they stay."""
KEPT_ELSEWHERE = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
"""Attributes of a module that a ``State`` puts back."""


@contextlib.contextmanager
def silence(models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """No hook of the user or of the probe fires within; afterwards each is where it was.

    The dictionaries that hold them stay the same objects, so that handles go on working. Hooks that are added within
    fire, and are gone afterwards.
    """
    held = list(_hooks(models, optimizers))
    before = [dict(hooks) for hooks in held]
    try:
        for hooks in held:
            for key in [key for key, hook in hooks.items() if not _belongs_to_the_model(hook)]:
                del hooks[key]
        yield
    finally:
        for hooks, kept in zip(held, before, strict=True):
            hooks.clear()
            hooks.update(kept)


def _hooks(models: Iterable[nn.Module], optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[dict[int, Any]]:
    yield from (vars(nn.modules.module)[name] for name in GLOBAL_HOOKS)
    yield from (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
    tensors: dict[int, Tensor] = {}
    for model in models:
        for module in model.modules():
            yield from (hooks for name in MODULE_HOOKS if (hooks := vars(module).get(name)) is not None)
            tensors |= {id(parameter): parameter for parameter in module._parameters.values() if parameter is not None}
    for optimizer in optimizers:
        yield from (hooks for name in STEP_HOOKS if (hooks := vars(optimizer).get(name)) is not None)
        tensors |= {id(parameter): parameter for group in optimizer.param_groups for parameter in group["params"]}
    for tensor in tensors.values():
        yield from (hooks for name in TENSOR_HOOKS if (hooks := getattr(tensor, name, None)) is not None)


def _belongs_to_the_model(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    home = getattr(hook, "__module__", None) or type(hook).__module__
    return any(home == name or home.startswith(name + ".") for name in PART_OF_THE_MODEL)


class Notes:
    """What objects hold in plain attributes: counters and lists of modules, averages of guards."""

    def __init__(self, things: Iterable[Any]) -> None:
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._held = []
        for thing in {id(thing): thing for thing in things if hasattr(thing, "__dict__")}.values():
            own = {key: value for key, value in vars(thing).items() if key not in KEPT_ELSEWHERE}
            self._held.append((thing, {key: freeze(v, self._copied) if is_data(v) else v for key, v in own.items()}))

    def _copied(self, tensor: Tensor) -> Tensor:
        self._copies.append((tensor, tensor.detach().clone()))
        return tensor

    @torch.no_grad()
    def restore(self) -> None:
        """Each object holds what it held; attributes that it has got since are gone."""
        for thing, own in self._held:
            live = vars(thing)
            for key in [key for key in live if key not in own and key not in KEPT_ELSEWHERE]:
                del live[key]
            live.update({key: thaw(value) for key, value in own.items()})
        for tensor, copy in self._copies:
            if tensor.shape == copy.shape:
                tensor.copy_(copy)
