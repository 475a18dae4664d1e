"""The next training forward pass at which no graph of a watched model is still needed."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.hooks.activations import first_tensor


class SafePoint:
    """Calls ``act`` once, right before a training forward pass of a watched model, when it is safe to change it.

    Changing a model between the forward and the backward pass of another one breaks that backward pass: in a GAN the
    generator's graph is alive while the critic runs. So, for at least one whole step, outputs of the watched models
    are followed: each must have been through its backward pass, or be gone. While this waits it is a global hook; it
    removes itself afterwards.
    """

    def __init__(self, models: Sequence[nn.Module], act: Callable[[], None]) -> None:
        self._models = {id(model) for model in models}
        self._act = act
        self._alive: list[tuple[weakref.ref[Tensor], list[bool]]] = []
        self._steps = 0
        registry = nn.modules.module
        self._handles = [
            registry.register_module_forward_pre_hook(self._before),
            registry.register_module_forward_hook(self._after),
        ]

    def step_ended(self) -> None:
        """A whole step of the run is over; after two, every graph that is still alive has been followed."""
        self._steps += 1

    def remove(self) -> None:
        """Stop waiting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watched(self, module: nn.Module) -> bool:
        return id(module) in self._models and torch.is_grad_enabled() and not torch.compiler.is_compiling()

    def _before(self, module: nn.Module, _: Any) -> None:
        if not self._watched(module) or not module.training or torch._C._current_graph_task_id() != -1:
            return
        self._alive = [(output, done) for output, done in self._alive if output() is not None and not done[0]]
        if self._steps >= 2 and not self._alive:
            self.remove()
            self._act()

    def _after(self, module: nn.Module, _: Any, output: Any) -> None:
        tensor = first_tensor(output) if self._watched(module) else None
        if tensor is None or not tensor.requires_grad:
            return
        done = [False]
        follow: Any = tensor.register_hook
        follow(lambda _: done.__setitem__(0, True))
        self._alive.append((weakref.ref(tensor), done))
