"""``Rehearsal``: steps of a training that the medic takes by itself, on batches it kept, and that leave no trace."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.errors import TrainmedicError
from trainmedic.remedies._clocks import restore_generators
from trainmedic.remedies._containers import copied
from trainmedic.remedies._quiet import Notes, silence
from trainmedic.remedies._schedulers import schedulers_of
from trainmedic.remedies._state import State
from trainmedic.remedies.run import Run

SAME_LOSS = 1e-4
"""A replayed step must give the logged loss but for this share of it: kernels add in another order."""
SAME_UPDATE = 1e-2
"""And move the parameters as they moved, but for this share of the move."""
FORWARD = 1 / 3
"""What judging a batch costs, in steps: a forward pass, where a step has a backward one of twice the work as well."""


class Unlike(TrainmedicError):
    """A replayed step is not the user's step."""


@dataclass(frozen=True)
class Example:
    """One kept batch, and what the training made of it. Tensors are copies.

    ``args`` and ``keywords`` are those of the model's own call, ``None`` where it was called with the first part of the
    batch; ``targets`` are what the criterion was given after the output, ``None`` where that was the second part.
    """

    batch: Any
    args: tuple[Any, ...] | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Any, ...] | None = None
    autocast: tuple[str, torch.dtype] | None = None


@dataclass(frozen=True)
class Form:
    """How the user's step goes, besides its loss.

    ``zeroes``: gradients are cleared before it. ``clip``: the norm that they are clipped to. ``parts``: batches whose
    gradients are averaged for one step. ``scheduled``: schedulers, and how often each of them steps.
    """

    zeroes: bool = True
    clip: float | None = None
    parts: int = 1
    scheduled: tuple[tuple[Any, int], ...] = ()


class Rehearsal:
    """Takes whole steps of a run on kept batches: forward, backward, clipping, guards, optimizer, scaler, scheduler.

    For an act that has to measure before it can say what to change (:meth:`Remedy.measure`), at a safe point only::

        rehearsal = run.rehearsal
        if rehearsal is None or not rehearsal.ready:
            raise Refused("...")
        with rehearsal.quietly():  # from here on nothing lasts
            for number in range(60):
                loss = rehearsal.step(number)  # a float; the batches take turns
        # weights, optimizer, schedulers, random numbers, modes and hooks are what they were, bit for bit

    The user's hooks do not fire within ``quietly``, and the probe records nothing. ``judge`` gives the losses of the
    model as it stands, without training on them. ``spent`` counts the steps taken, a judged batch as a third.

    Args:
        run: the live run.
        loss_fn: ``(output, *targets) -> loss``.
        step_fn: ``(model, batch) -> loss`` where there is one: then ``loss_fn`` is not needed.
        examples: batches to train on.
        apart: batches to judge on, never trained on here.
        form: how a step goes; ``None`` until :meth:`compare` has found out.

    """

    def __init__(
        self,
        run: Run,
        *,
        loss_fn: Callable[..., Any] | None = None,
        step_fn: Callable[..., Any] | None = None,
        examples: Sequence[Example] = (),
        apart: Sequence[Example] = (),
        form: Form | None = None,
    ) -> None:
        self.run, self.loss_fn, self.step_fn = run, loss_fn, step_fn
        self.examples, self.apart = examples, apart
        self.form = form
        self.spent = 0.0

    @property
    def ready(self) -> bool:
        """Whether steps can be taken: there are batches, and a step was seen to be like the user's."""
        return self.form is not None and bool(self.examples)

    # -- steps -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def quietly(self) -> Iterator[State]:
        """Within, steps may be taken and changes made; afterwards everything is as it was. Gives the state before."""
        run, whole = self.run, self.whole()
        guards, asked = list(run.guards), run.stop_requested
        things = [module for model in whole.models for module in model.modules()]
        notes, state = Notes([*things, *guards]), State.capture(whole)
        with silence(whole.models, run.optimizers):
            handles = [optimizer.register_step_pre_hook(self._guard) for optimizer in run.optimizers]
            handles += [optimizer.register_step_post_hook(self._release) for optimizer in run.optimizers]
            try:
                yield state
            finally:
                for handle in handles:
                    handle.remove()
                run.guards[:], run.stop_requested = guards, asked
                state.restore(whole)
                notes.restore()

    def whole(self) -> Run:
        """The run with all that a step moves: also a loss that holds something, and schedulers not handed over."""
        modules = [fn for fn in (self.loss_fn, self.step_fn) if isinstance(fn, nn.Module)]
        known = {id(module) for model in self.run.models for module in model.modules()}
        return dataclasses.replace(
            self.run,
            models=[*self.run.models, *(module for module in modules if id(module) not in known)],
            schedulers=self.schedulers(),
        )

    def schedulers(self) -> list[Any]:
        """Every scheduler of the optimizers, also those inside of others, handed over or not."""
        return schedulers_of(self.run.optimizers, self.run.schedulers)

    def _guard(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for guard in list(self.run.guards):
            guard(optimizer)

    def _release(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for guard in [guard for guard in self.run.guards if hasattr(guard, "after")]:
            guard.after(optimizer)

    def step(self, number: int) -> float:
        """One step as the user takes it, on the next of the kept batches; the training loss, before it."""
        form = self.form or Form()
        count = len(self.examples)
        return self._step([self.examples[(number * form.parts + part) % count] for part in range(form.parts)], form)

    def _step(self, examples: Sequence[Example], form: Form) -> float:
        self.spent += 1
        (optimizer,) = self.run.optimizers
        scaler = self.run.scaler

        def closure() -> Tensor:
            if form.zeroes:
                optimizer.zero_grad()
            total = torch.zeros(())
            for example in examples:
                loss = self.loss_of(example) / len(examples)
                (loss if scaler is None else scaler.scale(loss)).backward()
                total = total.to(loss.device) + loss.detach()
            return total

        with torch.enable_grad():
            if isinstance(optimizer, torch.optim.LBFGS):
                loss = float(optimizer.step(closure))  # type: ignore[no-untyped-call]
            else:
                loss = float(closure())
                self._take(optimizer, form.clip)
        for scheduler, times in form.scheduled:
            for _ in range(times):
                scheduler.step()
        return loss

    def _take(self, optimizer: torch.optim.Optimizer, clip: float | None) -> None:
        scaler = self.run.scaler
        if clip is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        if scaler is None:
            optimizer.step()
        else:
            type(scaler).step(scaler, optimizer)  # not the instance's: the probe follows that one
            scaler.update()

    def loss_of(self, example: Example, loss_fn: Callable[..., Any] | None = None) -> Tensor:
        """The loss of one kept batch, with its graph; ``loss_fn`` stands in for the run's own, if that is used."""
        with torch.autocast(*example.autocast) if example.autocast else contextlib.nullcontext():
            if self.step_fn is not None:
                models = self.run.models
                loss = self.step_fn(models[0] if len(models) == 1 else list(models), copied(example.batch))
            else:
                criterion = loss_fn or self.loss_fn
                assert criterion is not None
                args = (example.batch[0],) if example.args is None else example.args
                output = self.run.models[0](*copied(args), **copied(dict(example.keywords)))
                targets = (example.batch[1],) if example.targets is None else example.targets
                loss = criterion(output, *_beside(output, copied(targets)))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise Unlike("what the loss function gives is not one number")
        return loss

    @torch.no_grad()
    def judge(self, examples: Sequence[Example], loss_fn: Callable[..., Any] | None = None) -> list[float]:
        """The losses of ``examples`` for the model as it stands, in evaluation mode. Moves nothing."""
        self.spent += len(examples) * FORWARD
        modules = [module for model in self.run.models for module in model.modules()]
        modes = [module.training for module in modules]
        try:
            for model in self.run.models:
                model.eval()
            return [float(self.loss_of(example, loss_fn)) for example in examples]
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode

    # -- is it the user's step? --------------------------------------------------------------------------------------

    def compare(
        self,
        before: State,
        examples: Sequence[Example],
        random: Mapping[str, Any],
        *,
        logged: float | None,
        clip: float | None = None,
        scheduled: Sequence[tuple[Any, int]] = (),
    ) -> None:
        """Run a step of the user's again, from the state and the random numbers that it had; sets ``form``.

        The live parameters are those after the step. Of the usual ways to write a step, the first one that gives the
        logged loss and moves the parameters alike is the user's; ``Unlike`` where none does. Nothing lasts.
        """
        parameters = [parameter for _, parameter in self.run.parameters()]
        after = [parameter.detach().clone() for parameter in parameters]
        start = [before.learnt[id(p)].copy if id(p) in before.learnt else None for p in parameters]
        if any(value is None for value in start):
            raise Unlike("the parameters were exchanged during the step")
        moved = _distance(after, [value for value in start if value is not None])
        told = ""
        for form in _forms(len(examples), clip, tuple(scheduled)):
            with self.quietly():
                before.restore(self.whole())
                restore_generators(random)
                try:
                    loss = self._step(examples, form)
                except Exception as error:
                    raise Unlike(f"it failed: {type(error).__name__}: {error}") from error
                off = _distance([parameter.detach() for parameter in parameters], after)
            same = logged is None or abs(loss - logged) <= SAME_LOSS * max(abs(logged), 1e-8)
            if not same and logged is not None:
                told = f"its loss was {loss:.6g}, but {logged:.6g} was logged"
            elif off <= SAME_UPDATE * moved:
                self.form = form
                return
            else:
                told = told or "it moved the parameters otherwise"
        raise Unlike(told)


def _forms(parts: int, clip: float | None, scheduled: tuple[tuple[Any, int], ...]) -> Iterator[Form]:
    for zeroes in (True, False):
        for limit in (None,) if clip is None else (None, clip):
            yield Form(zeroes, limit, parts, scheduled)


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    total = sum(float((a.detach().to(b).float() - b.float()).square().sum()) for a, b in zip(one, other, strict=True))
    return math.sqrt(total)


def _beside(output: Any, targets: Sequence[Any]) -> list[Any]:
    """Targets on the output's device: a user moves them there between the loader and the loss."""
    device = output.device if isinstance(output, Tensor) else None
    return [t.to(device) if isinstance(t, Tensor) and device is not None else t for t in targets]
