"""Batches kept for trials, each with what the training made of it, and one step watched when that is asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.hooks import compiled
from trainmedic.remedies._clocks import generators
from trainmedic.remedies._containers import copied, size_in_bytes
from trainmedic.remedies._rehearsal import Example

EVERY_APART = 4
"""Of the batches kept, every so many-th is set apart: trials are judged on it, and never train on it."""


class Keeping:
    """Keeps batches of the first pass over the loader: of one pass, so that no sample is in two of them.

    The model's inputs are those of its own call, the targets those of the criterion's; both calls are seen by a global
    hook that is present while batches are kept. In compiled models there is none: then a batch is (input, target).

    Args:
        models: the watched models; the first one's call counts.
        loss_fn: the criterion; its call is seen if it is a module.
        step_fn: where it is given, the batch alone is kept.
        most: batches to keep.
        megabytes: size that they may have together.

    """

    def __init__(self, models: Sequence[nn.Module], loss_fn: Any, step_fn: Any, *, most: int, megabytes: float) -> None:
        self.examples: list[Example] = []
        self.apart: list[Example] = []
        self.collecting = False
        """Whether batches are still being kept."""
        self.complete = False
        """Whether the whole pass was kept."""
        self.why_not = "no batch was seen: iterate over medic.batches(loader)"
        self.watched: list[Example] = []
        self.random: dict[str, Any] | None = None
        """Of the step that is watched: its batches, and the generators when its forward pass began."""
        self._model, self._loss_fn, self._step_fn = models[0], loss_fn, step_fn
        self._sees_calls = step_fn is None and not compiled.is_compiled(models)
        self._most, self._room = most, megabytes * 1e6
        self._passes = 0
        self._watching = False
        self._batch: Any = None
        self._copy: Any = None
        self._open = False
        self._calls: list[tuple[tuple[Any, ...] | None, dict[str, Any], Any, Any]] = []
        self._targets: list[tuple[Any, ...] | None] = []
        self._handles: list[Any] = []

    def pass_begins(self) -> None:
        """The loader starts from its beginning."""
        self.pass_ends()
        self._passes += 1
        self.collecting = self._passes == 1 and self._most > 0
        self._look()

    def pass_ends(self) -> None:
        """The loader has no more batches."""
        self._finish()
        if self.collecting:
            self.collecting, self.complete = False, True
            self._look()

    def watch_step(self) -> None:
        """Note the batches from the next one on, and the random numbers that they meet."""
        self._watching, self.watched, self.random = True, [], None
        self._look()

    def unwatch(self) -> None:
        """The step that was watched is over."""
        self._finish()
        self._watching = False
        self._look()

    def fetched(self, batch: Any) -> None:
        """A batch is handed to the user."""
        self._finish()
        if not (self.collecting or self._watching):
            return
        self._batch, self._open = batch, True
        self._copy = copied(batch)
        if self._watching and self.random is None and not self._sees_calls:
            self.random = generators()

    def close(self) -> None:
        """Keep nothing."""
        self.collecting = self._watching = self._open = False
        self._look()
        self.examples.clear()
        self.apart.clear()
        self.watched, self.random, self._batch, self._copy, self._model = [], None, None, None, nn.Identity()
        self._calls, self._targets = [], []

    # -- what became of a batch --------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The batch before is done with: keep it, if there is room."""
        if not self._open:
            return
        self._open = False
        example = self._example()
        self._calls, self._targets, self._batch, self._copy = [], [], None, None
        if example is None:
            return
        if self._watching:
            self.watched.append(example)
        if self.collecting:
            self._keep(example)

    def _keep(self, example: Example) -> None:
        size = sum(map(size_in_bytes, (example.batch, example.args, dict(example.keywords), example.targets)))
        count = len(self.examples) + len(self.apart)
        if count >= self._most or size > self._room:
            self.collecting = False
            self._look()
            if not count:
                self.why_not = f"a batch of {size / 1e6:.3g} MB is larger than kept_batches_mb"
            return
        self._room -= size
        (self.apart if count % EVERY_APART == EVERY_APART - 1 else self.examples).append(example)

    def _example(self) -> Example | None:
        if self._step_fn is not None:
            return Example(self._copy)
        args, keywords, autocast = None, dict[str, Any](), None
        if self._sees_calls:
            again = len(self._calls) > 1 and all(call[0] is None for call in self._calls)  # by an optimizer's closure
            if len(self._calls) != 1 and not again:
                self.why_not = f"the model is called {len(self._calls)} times for a batch: give step_fn"
                return None
            args, keywords, _, autocast = self._calls[-1]
        targets = self._targets[-1] if self._targets else None
        pair = isinstance(self._copy, list | tuple) and len(self._copy) >= 2
        if (args is None or targets is None) and not pair:
            self.why_not = "a batch is no pair of input and target, and the criterion's call was not seen: give step_fn"
            return None
        return Example(self._copy, args, keywords, targets, autocast)

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        wanted = self._sees_calls and (self.collecting or self._watching)
        if wanted and not self._handles:
            registry = nn.modules.module
            self._handles = [
                registry.register_module_forward_pre_hook(self._before),
                registry.register_module_forward_hook(self._after, with_kwargs=True),
            ]
        elif not wanted and self._handles:
            marks = nn.modules.module._global_forward_hooks_with_kwargs
            for handle in self._handles:
                handle.remove()
                marks.pop(handle.id, None)  # torch leaves this mark behind
            self._handles = []

    def _before(self, module: nn.Module, _: Any) -> None:
        if self._watching and self.random is None and module is self._model and torch.is_grad_enabled():
            self.random = generators()

    def _after(self, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        if not self._open or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        first, second = self._part(0), self._part(1)
        if module is self._model:
            same = len(args) == 1 and not keywords and args[0] is first and first is not None
            self._calls.append((None if same else copied(args), copied(keywords), output, _autocast(args)))
        elif module is self._loss_fn and self._calls and args and args[0] is self._calls[-1][2]:
            same = len(args) == 2 and not keywords and args[1] is second and second is not None
            self._targets.append(None if same else copied(args[1:]))

    def _part(self, index: int) -> Any:
        """A part of the batch as the loader gave it, which the user may hand on as it is."""
        pair = isinstance(self._batch, list | tuple) and len(self._batch) > index
        return self._batch[index] if pair else None


def _autocast(args: tuple[Any, ...]) -> tuple[str, torch.dtype] | None:
    """The mixed precision that a call is made in."""
    device = next((arg.device.type for arg in args if isinstance(arg, Tensor)), "cpu")
    if not torch.is_autocast_enabled(device):
        return None
    return device, torch.get_autocast_dtype(device)
