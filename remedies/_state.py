"""``State``: everything that training moves, kept exactly and put back into the same tensors."""

import copy
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from trainmedic.remedies._clocks import clocks_of, generators, own_data, restore_generators
from trainmedic.remedies._containers import freeze, is_mark, thaw
from trainmedic.remedies._store import Store
from trainmedic.remedies._tensors import Kept, alike, copy_all, copy_back, numbers_in, ordinary, values_of
from trainmedic.remedies.run import Run

RATES = {"lr", "initial_lr", "max_lr", "min_lr", "swa_lr"}
CLOCKS = RATES | {"momentum", "base_momentum", "max_momentum", "betas", "weight_decay", "_opt_called", "_step_count"}
"""Options of a parameter group, and marks on an optimizer, that schedules move: clocks, not what was learnt."""


@dataclass
class Leaf:
    """What hangs on one parameter beside its values."""

    live: Tensor
    gradient: Tensor | None
    trains: bool


@dataclass
class Part:
    """One module as it was: its class, what it holds by name, its mode, and its extra state."""

    module: nn.Module
    kind: type[nn.Module]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    transient: frozenset[str]  # buffers that its state_dict leaves out
    training: bool
    extra: Any


@dataclass
class Stepper:
    """An optimizer as it was: state by parameter, options and parameters of its groups, marks on the optimizer itself.

    Containers are frozen: ``Held`` in their place, live tensors in them.
    """

    live: torch.optim.Optimizer
    kind: type[torch.optim.Optimizer]
    state: dict[Any, Any]
    options: list[dict[str, Any]]
    members: list[list[Tensor]]
    marks: dict[str, Any]


class Memory:
    """Where copies are put: into those of an older state where they fit, else into new memory; all at the end.

    As nothing is written before everything has its place, running out of memory leaves the older state whole.
    """

    def __init__(self, older: "State | None", store: Store | None) -> None:
        self._older, self._store = older, store
        self._spare = {} if older is None or older.spent else older.copies()
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def place(self, key: tuple[str, int], source: Tensor) -> Tensor:
        """A tensor that will hold what ``source`` holds now, once ``fill`` was called."""
        if not ordinary(source):
            return source.clone()
        spare = self._spare.get(key)
        if spare is not None and alike(spare, source):
            target = spare
        else:
            store = None if source.is_meta else self._store
            target = torch.empty_like(source) if store is None else store.empty_like(source)
        self._pairs.append((target, source))
        return target

    def fill(self) -> None:
        """Copy everything. The older state is used up."""
        if self._older is not None:
            self._older.spent = True
        copy_all(self._pairs)


@dataclass(eq=False)
class State:
    """Parameters, buffers, gradients, modes, extra state and options of all watched models, optimizers, schedulers and
    the scaler, and all random number generators, as they were after ``step``.

    Kept where the run's store has room for them, in host memory or in files, or without one on the devices they are on;
    a tensor in several places (tied weights) once. ``load_state_dict`` alone would not
    do: it casts the float32 momentum of a bfloat16 parameter, and puts new tensors where others hold the old ones.

    Not part of it: plain attributes of modules; objects of unknown kinds inside of an optimizer's state, which are kept
    by reference; parameters of lazy modules that are not initialised yet.
    """

    step: int
    spent: bool = False  # its memory was handed on to a newer state
    learnt: dict[int, Kept] = field(default_factory=dict)  # by id of the live tensor, which is held here
    clocked: dict[int, Kept] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    parts: dict[int, Part] = field(default_factory=dict)
    models: list[list[tuple[str, Part]]] = field(default_factory=list)  # all places, a shared module several times
    steppers: list[Stepper] = field(default_factory=list)
    clocks: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    generators: dict[str, Any] = field(default_factory=dict)

    # -- keeping -------------------------------------------------------------------------------------------------

    @classmethod
    @torch.inference_mode(False)
    @torch.no_grad()
    def capture(cls, run: Run, *, into: "State | None" = None) -> "State":
        """Keep the present state of ``run``. Changes nothing in it, not even a random number.

        The memory of ``into``, an older state, is used again where shapes agree; ``into`` cannot be restored then.
        """
        state, memory = cls(run.step), Memory(into, run.store)
        state._keep_models(run.models, memory)
        state._keep_optimizers(run.optimizers, memory)
        for thing in clocks_of(run):
            keep = state._keeper(memory, clock=True)
            state.clocks.append((thing, {key: freeze(value, keep) for key, value in own_data(thing).items()}))
        state.generators = generators()
        memory.fill()
        return state

    def _keep(self, tensor: Tensor, memory: Memory, *, clock: bool = False, judged: bool = False) -> Tensor:
        home, key = self.clocked if clock else self.learnt, id(tensor)
        if key not in self.learnt and key not in home and not is_lazy(tensor):
            home[key] = Kept(tensor, memory.place(("tensor", key), values_of(tensor)), judged)
        return tensor

    def _keeper(self, memory: Memory, *, clock: bool = False, judged: bool = False) -> Callable[[Tensor], Tensor]:
        return lambda tensor: self._keep(tensor, memory, clock=clock, judged=judged)

    def _keep_leaf(self, leaf: Tensor, memory: Memory) -> None:
        if id(leaf) in self.leaves or is_lazy(leaf):
            return
        self._keep(leaf, memory, judged=True)
        gradient = None if leaf.grad is None else memory.place(("gradient", id(leaf)), leaf.grad)
        self.leaves[id(leaf)] = Leaf(leaf, gradient, leaf.requires_grad)

    def _keep_models(self, models: Iterable[nn.Module], memory: Memory) -> None:
        for model in models:
            places = []
            for name, module in model.named_modules(remove_duplicate=False):
                if id(module) not in self.parts:
                    self.parts[id(module)] = self._keep_module(module, memory)
                places.append((name, self.parts[id(module)]))
            self.models.append(places)

    def _keep_module(self, module: nn.Module, memory: Memory) -> Part:
        parameters, buffers = dict(module._parameters.items()), dict(module._buffers.items())
        for parameter in parameters.values():
            if parameter is not None:
                self._keep_leaf(parameter, memory)
        for buffer in buffers.values():
            if buffer is not None:
                self._keep(buffer, memory, judged=isinstance(module, _NormBase))
        extra = copy.deepcopy(module.get_extra_state()) if has_extra(module) else None
        transient = frozenset(module._non_persistent_buffers_set)
        return Part(module, type(module), parameters, buffers, transient, module.training, extra)

    def _keep_optimizers(self, optimizers: Iterable[torch.optim.Optimizer], memory: Memory) -> None:
        for optimizer in optimizers:
            members: list[list[Tensor]] = [list(group["params"]) for group in optimizer.param_groups]
            for leaf in (leaf for group in members for leaf in group):
                self._keep_leaf(leaf, memory)
            learnt = self._keeper(memory, judged=True)
            state = {key: freeze(value, learnt) for key, value in optimizer.state.items()}
            marks = {key: freeze(value, learnt) for key, value in vars(optimizer).items() if is_mark(value)}
            options = [
                {k: freeze(v, self._keeper(memory, clock=k in CLOCKS)) for k, v in group.items() if k != "params"}
                for group in optimizer.param_groups
            ]
            self.steppers.append(Stepper(optimizer, type(optimizer), state, options, members, marks))

    def copies(self) -> dict[tuple[str, int], Tensor]:
        """All memory of this state, by what it is the copy of."""
        kept = {("tensor", key): kept.copy for home in (self.clocked, self.learnt) for key, kept in home.items()}
        gradients = {("gradient", key): leaf.gradient for key, leaf in self.leaves.items() if leaf.gradient is not None}
        return kept | gradients

    def finite(self) -> bool:
        """Whether all parameters, running statistics of norms, and averages of optimizers are finite.

        Other buffers are not looked at: masks may hold infinities. Waits for each device once.
        """
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for values in (numbers_in(kept.copy) for kept in self.learnt.values() if kept.judged):
            if values is not None:
                kinds.setdefault((values.device, values.dtype), []).append(values)
        flags: dict[torch.device, list[Tensor]] = {}
        for (device, _), members in kinds.items():
            largest = torch.stack(torch._foreach_norm(members, math.inf))
            flags.setdefault(device, []).append(torch.isfinite(largest).all())
        return all(bool(torch.stack(each).all()) for each in flags.values())

    def fits(self, run: Run) -> bool:
        """Whether models and optimizers are built as they were: weights alone do not make them do what they did."""
        built = {id(module): type(module) for model in run.models for module in model.modules()}
        same = all(type(kept.live) is kept.kind for kept in self.steppers)
        return same and built == {key: part.kind for key, part in self.parts.items()}

    # -- putting back --------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def restore(self, run: Run, *, clocks: bool = True) -> None:
        """Put everything back, bit for bit and into the same tensors. May be done any number of times.

        What was added since (modules, parameters, groups and the state of what joined them) is left alone, and what is
        gone from the run is passed over.

        Args:
            run: The run that the state is of.
            clocks: Without them only what training has learnt is put back: weights, buffers, gradients, extra state and
                the optimizers' state with its step counts. Schedulers and the options that they set, the loss scale,
                membership of groups, which buffers there are, modes, requires_grad and random numbers go on.

        Raises:
            RuntimeError: If its memory was handed on to a newer state.

        """
        self._check_unspent()
        alive = {id(module) for model in run.models for module in model.modules()}
        parts = [part for key, part in self.parts.items() if key in alive]
        steppers = [kept for kept in self.steppers if any(kept.live is live for live in run.optimizers)]
        if clocks:
            self._restore_members(run, steppers)
            for part in parts:
                _restore_names(part)
        present = _present(run)
        self._restore_learnt(present, parts, steppers)
        self._restore_gradients(present)
        for kept in steppers:
            _restore_options(kept, clocks=clocks)
        if clocks:
            self._restore_clocks(parts, present)

    def _check_unspent(self) -> None:
        if self.spent:
            raise RuntimeError(f"the state of step {self.step} is gone: its memory was used for a newer one")

    def _restore_members(self, run: Run, steppers: Iterable[Stepper]) -> None:
        """Groups hold what they held, in order, and then what has joined since."""
        alive = {id(parameter) for model in run.models for parameter in model.parameters()}
        modelled = {id(parameter) for part in self.parts.values() for parameter in part.parameters.values()}
        for kept in steppers:
            for group, members in zip(kept.live.param_groups, kept.members, strict=False):
                known = {id(member) for member in members}
                back = [member for member in members if id(member) in alive or id(member) not in modelled]
                group["params"][:] = [*back, *(member for member in group["params"] if id(member) not in known)]

    def _restore_learnt(self, present: set[int], parts: Iterable[Part], steppers: Iterable[Stepper]) -> None:
        back = {key: kept for key, kept in self.learnt.items() if key in present}

        def mark(tensor: Tensor) -> Tensor:
            if id(tensor) in self.learnt:
                back[id(tensor)] = self.learnt[id(tensor)]
            return tensor

        for stepper in steppers:
            _restore_state(stepper, present, mark)
            for held in (stepper.marks, *stepper.options):
                for value in (value for key, value in held.items() if key not in CLOCKS):
                    thaw(value, mark)
        for part in parts:
            _restore_buffers(part, mark)
        copy_back(back.values())
        for part in parts:
            if has_extra(part.module):
                part.module.set_extra_state(copy.deepcopy(part.extra))

    def _restore_gradients(self, present: set[int]) -> None:
        pairs = []
        for leaf in (leaf for key, leaf in self.leaves.items() if key in present):
            kept, now = leaf.gradient, leaf.live.grad
            if kept is not None and now is not None and ordinary(now) and alike(values_of(now), kept):
                pairs.append((now, kept))
            elif kept is not None or now is not None:
                leaf.live.grad = None if kept is None else kept.to(leaf.live.device, copy=True)
        copy_all(pairs)

    def _restore_clocks(self, parts: Iterable[Part], present: set[int]) -> None:
        copy_back(self.clocked.values())
        for part in parts:
            if part.module.training != part.training:
                part.module.training = part.training
        for leaf in (leaf for key, leaf in self.leaves.items() if key in present):
            if leaf.live.requires_grad != leaf.trains:
                leaf.live.requires_grad_(leaf.trains)
        for thing, own in self.clocks:
            for key in [key for key in own_data(thing) if key not in own]:
                delattr(thing, key)
            vars(thing).update({key: thaw(value) for key, value in own.items()})
        restore_generators(self.generators)

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], run: Run | None = None) -> None:
        """Write what was learnt, whole or not at all; ``torch.load(path, weights_only=True)`` reads it anywhere.

        The file holds ``{"step": int, "models": [state_dict, ...], "optimizers": [state_dict, ...]}``, on the CPU, with
        the keys that the models had when they were kept, ready for each one's ``load_state_dict``. Values that no such
        file may hold (functions, objects) are left out. ``run`` is not needed: a state knows its models.

        Raises:
            RuntimeError: If its memory was handed on to a newer state.
            OSError: If the file cannot be written; an older one is still there.

        """
        from trainmedic.remedies import _state_file

        self._check_unspent()
        _state_file.write(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], run: Run) -> "State":
        """The state that ``save`` wrote, for a run of the same models and optimizers; nothing in ``run`` changes.

        What a file does not hold (schedulers, random numbers, modes, gradients) is as it is in ``run`` now.

        Raises:
            UnreadableError: If the file cannot be read, or is none of ``save``.
            UsageError: If it is of other models or optimizers.

        """
        from trainmedic.remedies import _state_file

        return _state_file.read(path, run)

    @classmethod
    def load_into(cls, path: str | os.PathLike[str], run: Run) -> "State":
        """Load a state and put it into ``run``, in place; raises as ``load`` does, and then nothing was changed."""
        state = cls.load(path, run)
        state.restore(run)
        return state


# -- modules and optimizers -------------------------------------------------------------------------------------------


def has_extra(module: nn.Module) -> bool:
    """Whether a module has state of its own beside parameters and buffers."""
    return type(module).get_extra_state is not nn.Module.get_extra_state


def _present(run: Run) -> set[int]:
    """The ids of all parameters of the run's models and in its optimizers' groups."""
    modelled = {id(leaf) for model in run.models for leaf in model.parameters()}
    return modelled | {id(leaf) for opt in run.optimizers for group in opt.param_groups for leaf in group["params"]}


def _restore_names(part: Part) -> None:
    """The buffers that the module had, and no others; what remedies do to parameters they undo themselves."""
    live = part.module._buffers
    for name in [name for name in live.keys() if name not in part.buffers]:  # noqa: SIM118 - scripted: no dict
        del live[name]
    for name in [name for name in part.buffers if name not in live and not hasattr(part.module, name)]:
        live[name] = part.buffers[name]
    if part.module._non_persistent_buffers_set != part.transient:
        part.module._non_persistent_buffers_set = set(part.transient)


def _restore_buffers(part: Part, mark: Callable[[Tensor], Tensor]) -> None:
    live = part.module._buffers
    for name, buffer in part.buffers.items():
        if name in live:
            if live[name] is not buffer:
                live[name] = buffer
            if buffer is not None:
                mark(buffer)


def _restore_state(kept: Stepper, present: set[int], mark: Callable[[Tensor], Tensor]) -> None:
    """The state of everything that was there; that of parameters that have joined since stays."""
    live = kept.live.state
    members = {id(member) for group in kept.members for member in group}
    joined = {key: value for key, value in live.items() if isinstance(key, Tensor) and id(key) not in members}
    there = {key: value for key, value in kept.state.items() if not isinstance(key, Tensor) or id(key) in present}
    back = {key: thaw(value, mark) for key, value in there.items()}
    live.clear()
    live.update({**back, **joined})


def _restore_options(kept: Stepper, *, clocks: bool) -> None:
    for live, options in zip(kept.live.param_groups, kept.options, strict=False):
        if clocks:
            for key in [key for key in live if key not in options and key != "params"]:
                del live[key]
        live.update({key: thaw(value) for key, value in options.items() if clocks or key not in CLOCKS})
    marks = {key: thaw(value) for key, value in kept.marks.items() if clocks or key not in CLOCKS}
    vars(kept.live).update(marks)
