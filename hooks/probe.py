"""``Probe``: attached to live models and optimizers, it hands over one ``Snapshot`` per step, and leaves no trace."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from trainmedic.buckets import Counted
from trainmedic.history import Layer, Snapshot
from trainmedic.hooks import compiled, ranks
from trainmedic.hooks.activations import Activations
from trainmedic.hooks.assembling import Assembling
from trainmedic.hooks.backward import Backward
from trainmedic.hooks.counting import chosen, put_histograms
from trainmedic.hooks.ends import Ends
from trainmedic.hooks.facts import anatomy
from trainmedic.hooks.memory import Memory
from trainmedic.hooks.noise import NoiseScale
from trainmedic.hooks.parameters import Gradients, Updates, put_spreads
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.scaler import ScalerWatch, found_inf, unscaled
from trainmedic.hooks.schedule import Schedule

COMPILED = "modules are compiled in this process: hooks that come and go would have them compiled again"
NONE_LEFT = "a backward pass leaves none: they are used and cleared within it"

Guard = Callable[[torch.optim.Optimizer], bool | None]
"""Called right before a step; a guard's method ``after(optimizer)``, if it has one, is called when the step is over."""

RARELY = 10
"""What changes slowly (spread of the weights, units that are equal, memory of devices) is read every tenth time."""


LATEST = 1.0
"""Seconds after which a step's numbers are handed over, even if they could wait for those of more steps."""

RATES = ("optimizer/learning_rate", *(f"optimizer/learning_rate/{i}" for i in range(1, 8)))
"""Series of the learning rates of the first eight parameter groups."""


class Probe:
    """Measures the training of ``models`` by ``optimizers``.

    A step ends with each ``step()`` of the first optimizer, counted also when the loss scaler skips it. Gradients are
    read when a backward pass has ended, before the user clips them; the last backward pass before the step counts.
    Forward hooks are present only on steps that are measured, as one global hook: nothing is stored in the modules, so
    that copies of a watched model carry nothing of it. Once anything compiles, no hook comes or goes any more.

    ``on_snapshot`` receives each step's numbers one step later, or those of up to ``together`` steps in a row of which
    none is measured, was bad, or has numbers on a device: what is done for many steps at once finds its code in the
    processor's caches, which a large training step empties. ``on_step`` is called at the end of each step with its
    number (from 0), ``on_error`` with any error inside the probe, which then leaves that part out. ``wants_histograms``
    is asked before a step that may have some, with its number.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        schedule: Schedule,
        on_snapshot: Callable[[Snapshot], None],
        on_step: Callable[[int], None],
        on_error: Callable[[str, Exception], None],
        scaler: Any = None,
        loss_fn: Any = None,
        dead_after: int = 1_000,
        sample: int = 16_384,
        wants_histograms: Callable[[int], bool] = lambda _: False,
        together: int = 1,
    ) -> None:
        self.models = list(models)
        self.optimizers = list(optimizers)
        self.schedule = schedule
        self.scaler = scaler
        self.step = 0  # the step in progress, or the next one
        self.begun = False  # whether anything of it has been seen
        self.measuring = False  # whether it is measured in full
        self._counting = False  # whether it has histograms
        self.guards: list[Guard] = []
        self.not_measured: dict[str, str] = {}
        self.ends = Ends(loss_fn, sample)
        self.observed: dict[str, Any] = self.ends.observed
        self.data_time = 0.0
        self._on_snapshot, self._on_step, self._on_error = on_snapshot, on_step, on_error
        self._wants_histograms = wants_histograms
        self._together = together
        self._handles: list[Any] = []
        self._forward_handle: Any = None
        self._backward = Backward(self._backward_ended, self._left_over)
        self._noise = NoiseScale()
        self._memory = Memory()
        self._assembling = Assembling()
        self._off: set[str] = set()
        self._frozen = False  # hooks stay as they are
        self._learning = False  # a backward pass of a new kind is waited for
        self._idle = False  # all is as it should be in a step that is not measured
        self._frames = 0  # pieces of code that were compiled before watching began
        self._reading = Reading()
        self._values: dict[str, float] = {}
        self._pending: list[_Pending] = []
        self._gradient_reading: Reading | None = None
        self._fixed: dict[int, Reading] = {}  # per optimizer the gradients that it has stepped with
        self._depth = [0] * len(optimizers)  # steps within steps: a subclass that calls its parent's
        self._stepping: list[Reading | None] = [None] * len(optimizers)
        self._deaf = False  # closed, or another process: hooks do nothing
        self._process = os.getpid()
        self._trained: bool | None = None  # whether a model was in training mode at a backward pass of this step
        self._compiled_step = False
        self._left = False  # whether a backward pass has ever left gradients
        self._updates: list[Updates] = []
        self._started = self._last = time.perf_counter()
        self.architecture: dict[str, Layer] = {}
        self.activations = Activations(dead_after, sample, {}, self.architecture, self.not_measured)
        self.refresh()

    # -- attaching and detaching ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the models again: their modules and parameters may have changed."""
        layers, leaves, self.parameters = anatomy(self.models)
        for name, layer in self.architecture.items():
            if name in layers:
                layers[name] = dataclasses.replace(layer, trainable=layers[name].trainable)
            elif ":" in name:
                layers[name] = layer
        self.architecture.clear()  # others hold on to it
        self.architecture.update(layers)
        self.activations.names = leaves
        self._tops = {id(model) for model in self.models}
        owner = {
            id(p): i for i, o in reversed(list(enumerate(self.optimizers))) for g in o.param_groups for p in g["params"]
        }
        self._owned = [
            [(n, p) for n, p in self.parameters if owner.get(id(p)) == i] for i in range(len(self.optimizers))
        ]
        self.observed["not_in_optimizer"] = [n for n, p in self.parameters if p.requires_grad and id(p) not in owner]
        known = {id(p) for _, p in self.parameters}
        held = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]
        self.observed["not_in_model"] = [list(p.shape) for p in held if id(p) not in known]
        self._gradients = Gradients(self.parameters)
        self._known = self._fingerprint()
        if self._handles:
            self._watch_backward()
        self._idle = False

    def _fingerprint(self) -> list[tuple[int, bool]]:
        """Which parameters there are, in the models and in the optimizers, and which of them train."""
        in_models = [(id(p), p.requires_grad) for model in self.models for p in model.parameters()]
        in_groups = [(id(p), True) for o in self.optimizers for group in o.param_groups for p in group["params"]]
        return in_models + in_groups

    def attach(self) -> None:
        """Start measuring."""
        for i, optimizer in enumerate(self.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(functools.partial(self._before_step, i)))
            self._handles.append(optimizer.register_step_post_hook(functools.partial(self._after_step, i)))
        if self.scaler is not None:
            self._handles.append(ScalerWatch(self.scaler, self.optimizers[0], self._skipped))
        self._watch_backward()
        register = nn.modules.module.register_module_module_registration_hook
        self._handles.append(register(self._registered))
        self._frames = compiled.frames()
        if compiled.is_compiled(self.models) or compiled.sees_hooks():
            self._freeze(COMPILED)
        if ranks.processes() > 1:
            self.not_measured["loss, activations, inputs and outputs of other processes"] = "each sees its own batches"
        if any(isinstance(module, torch.jit.ScriptModule) for model in self.models for module in model.modules()):
            self.not_measured["activations of scripted modules"] = "no hook sees inside them"
        if ranks.sharded([parameter for _, parameter in self.parameters]):
            self.schedule.deterministic()  # all ranks must measure the same steps
            self.not_measured["spread of weights and equal units in other processes"] = "each holds a shard"
        self._begin()

    def detach(self) -> None:
        """Stop measuring: hand over what is still on the way, and remove every hook."""
        self._deaf = True
        self.let_go()
        self._backward.forget()
        self._forward_off()
        with self._guarded("the last reading"):
            self.hand_over()
        self._memory.close()
        self._pending = []
        self._reading, self._gradient_reading, self._updates = Reading(), None, []
        self._gradients, self._fixed = Gradients([]), {}
        self._noise.begin()
        self.activations.forget_units()
        self.activations.begin(self.step)
        self.ends.forget()

    def let_go(self) -> None:
        """Remove the hooks, unless this is called from within one: their dictionary is being gone through then."""
        if not any(self._depth):
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _watch_backward(self) -> None:
        owned = [parameter for named in self._owned for _, parameter in named]
        self._backward.watch([parameter for _, parameter in self.parameters], owned)

    def _guarded(self, part: str) -> "_Guarded":
        """The training goes on whatever happens in here; the time it takes is counted as the cost of watching."""
        return _Guarded(self, part)

    def _failed(self, part: str, error: Exception) -> None:
        self._off.add(part)
        self.not_measured[part] = f"measuring them failed: {type(error).__name__}: {error}"
        self._on_error(part, error)

    def _registered(self, module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        """``torch.compile`` puts a model into a wrapper: hooks on modules go before anything is traced."""
        if type(module).__name__ == "OptimizedModule" and not self._frozen:
            self._forward_off()
            self._freeze(COMPILED)

    def _freeze(self, reason: str) -> None:
        self._frozen = True
        self.not_measured["activations"] = reason

    # -- forward -------------------------------------------------------------------------------------------------

    @property
    def sees_forward(self) -> bool:
        """Whether a forward pass of the step in progress would be noticed."""
        return self._forward_handle is not None and not self._frozen

    def _begin(self) -> None:
        """The next step: hooks on modules are present if it is measured."""
        self.begun = False
        self._gradient_reading, self._trained = None, None
        self.measuring = self.schedule.measures(self.step)  # in full
        self._counting = self.measuring and self._rarely() and self._wants_histograms(self.step)
        if self._idle and not self.measuring:
            return
        with self._guarded("the step"):
            self._prepare()
            self._idle = not self.measuring and (self._frozen or self._backward.settled)

    def _prepare(self) -> None:
        if self.measuring and self._fingerprint() != self._known:
            self.refresh()
        if self.step and not self._left:
            self.not_measured["gradients"] = NONE_LEFT
        elif self.not_measured.get("gradients") == NONE_LEFT:
            del self.not_measured["gradients"]
        self.activations.begin(self.step)
        self.ends.begin()
        self._noise.begin()
        if not self._frozen and compiled.frames() > self._frames:
            self._frames = compiled.frames()
            if compiled.sees_hooks():
                self._freeze(COMPILED)
        if self._frozen:
            return
        if self.measuring:
            self._backward.learn()
            if self._forward_handle is None:
                register = nn.modules.module.register_module_forward_hook
                self._forward_handle = register(self._forward, with_kwargs=True)
        else:
            self._forward_off()
            if not self._learning:
                self._backward.settle()

    def _forward_off(self) -> None:
        if self._forward_handle is not None:
            self._forward_handle.remove()
            # torch leaves this mark behind, and takes it for a hook that is still there
            nn.modules.module._global_forward_hooks_with_kwargs.pop(self._forward_handle.id, None)
            self._forward_handle = None

    def _forward(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._forward_seen(module, arguments, keywords, output)

    def _forward_seen(
        self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        if self._frozen or self._deaf or torch._C._get_tracing_state() is not None or _get_current_dispatch_mode():
            return
        if not torch.is_grad_enabled():
            if self._in_training() and module.training and "activations" not in self._off:
                with self._guarded("activations"):
                    self.activations.seen(module, output)
            return
        name = self.activations.names.get(id(module))
        top = id(module) in self._tops
        if not self._in_training():
            return
        if self.ends.is_criterion(module) and "inputs and outputs" not in self._off:
            with self._guarded("inputs and outputs"):
                self.ends.criterion_called(module, [*arguments, *keywords.values()], output, self._reading)
        if name is None and not top:
            return
        self.begun = True
        if name is not None and "activations" not in self._off:
            with self._guarded("activations"):
                self.activations.measure(module, arguments or (*keywords.values(),), output, self._reading)
        if "inputs and outputs" not in self._off:
            with self._guarded("inputs and outputs"):
                if name is not None:
                    self.ends.layer_called(module, name, arguments or (*keywords.values(),), self._reading, self.step)
                if top and torch._C._current_graph_task_id() == -1:
                    self.ends.model_called(output)
                    self.activations.pass_ended()
                    if self.activations.repeated:
                        self.observed["called_repeatedly"] = sorted(self.activations.repeated)

    def _in_training(self) -> bool:
        """Whether a forward pass with gradients trains: evaluation without ``no_grad`` happens too."""
        return any(model.training for model in self.models) or self.observed.get("trains_in_eval_mode", False)

    # -- backward ------------------------------------------------------------------------------------------------

    def _scale(self) -> Tensor | float | None:
        """The loss scale that gradients carry, on its device."""
        scale = getattr(self.scaler, "_scale", None) if self.scaler is not None else None
        return scale if isinstance(scale, Tensor | float) else None

    def _left_over(self, parameter: Tensor, incoming: Tensor) -> None:
        """A gradient is about to be added to another: the first time in a step, that one is of the step before."""
        if torch.compiler.is_compiling() or self._deaf or "gradients" in self._off or not self.measuring:
            return
        with self._guarded("gradients"):
            self._noise.arrives(parameter, incoming, self._reading)

    def _backward_ended(self) -> None:
        if self._deaf or os.getpid() != self._process:
            return
        if self._compiled_step:  # nothing else told of its end
            self._compiled_step = False
            self._end_step(skipped=False)
        self.begun, self._learning = True, False
        if "gradients" in self._off:
            return
        with self._guarded("gradients"):
            self._trained = self._trained or any(model.training for model in self.models)
            self._gradient_reading = Reading()
            norms = self._gradients.put(self._gradient_reading, self._scale(), full=self.measuring)
            if norms is not None:
                self._left = True
                if self.measuring:
                    self._noise.add(norms)
            self._gradient_reading.send()
        if self._counting and self._gradient_reading is not None and "histograms" not in self._off:
            with self._guarded("histograms"):
                gradients = [(name, p.grad) for name, p in chosen(self.parameters) if p.grad is not None]
                put_histograms("gradients", gradients, self._gradient_reading, self._scale())

    def leave_out(self, seconds: float) -> None:
        """Time that the medic took for steps of its own: it belongs neither to the run's step nor to watching it."""
        self._last += seconds
        self._started += seconds
        self.schedule.spent -= seconds

    def _nobody_told(self) -> None:
        """A step without any word of its backward pass: of a kind not seen before. Read late, and learn again."""
        if "gradients" not in self._off:
            with self._guarded("gradients"):
                self._gradient_reading = Reading()
                self._gradients.put(self._gradient_reading, None, full=False)
                if not self._frozen:
                    self._backward.learn()
                    self._learning, self._idle = True, False

    # -- the optimizer's step ------------------------------------------------------------------------------------

    def _before_step(self, index: int, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if torch.compiler.is_compiling():
            self._compiled_step |= index == 0
            return
        if self._deaf or os.getpid() != self._process:
            return
        if self._stepping[index] is not self._gradient_reading:
            self._depth[index] = 0  # gradients are new: the step before has raised
        self._stepping[index] = self._gradient_reading
        self._depth[index] += 1
        if self._depth[index] == 1:
            self._step_begins(index, optimizer)

    def _step_begins(self, index: int, optimizer: torch.optim.Optimizer) -> None:
        if self._gradient_reading is None and index == 0:
            self._nobody_told()
        if self._gradient_reading is not None:
            self._fixed[index] = self._stepping[index] = self._gradient_reading
        if self.guards and self._rejected(optimizer):
            self._values["optimizer/skipped"] = 1.0
        if not self.measuring or "updates" in self._off:
            return
        with self._guarded("updates"):
            if self._gradient_reading is not None:
                taken = self.scaler is not None and unscaled(self.scaler, optimizer)
                self._gradients.put_clipping(self._reading, self._scale() if taken else None)
            self._updates = [update for update in self._updates if update.given is not self._owned[index]]
            update = Updates(self._owned[index])
            update.before()
            self._updates.append(update)

    def _rejected(self, optimizer: torch.optim.Optimizer) -> bool:
        """Ask all guards; one that fails is dismissed, and the step is taken."""
        rejected = False
        for guard in list(self.guards):
            try:
                rejected |= guard(optimizer) is True
            except Exception as error:
                self.guards.remove(guard)
                self._on_error("a guard", error)
        return rejected

    def _release(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell all guards that the step is over."""
        if not self.guards:
            return
        for guard in [guard for guard in self.guards if hasattr(guard, "after")]:
            try:
                guard.after(optimizer)
            except Exception as error:
                self.guards.remove(guard)
                self._on_error("a guard", error)

    def _after_step(self, index: int, *_: Any) -> None:
        if torch.compiler.is_compiling() or self._deaf or os.getpid() != self._process:
            return
        if self._depth[index] > 1:
            self._depth[index] -= 1
            return
        try:
            self._step_over(index)
        finally:
            self._depth[index] = 0

    def _step_over(self, index: int) -> None:
        if self._gradient_reading is not None:  # a closure has run backward passes of its own
            self._fixed[index] = self._gradient_reading
        if self._updates:
            with self._guarded("updates"):
                for update in self._updates:
                    update.after(self._reading)
                self._updates = []
        if index == 0:
            self._end_step(skipped=False)
        else:
            self._release(self.optimizers[index])

    def _skipped(self) -> None:
        self._end_step(skipped=True)

    def _end_step(self, *, skipped: bool) -> None:
        step, now, measured = self.step, time.perf_counter(), self.measuring
        if self._counting and "histograms" not in self._off:
            with self._guarded("histograms"):
                put_histograms("weights", chosen(self.parameters), self._reading)
        if "the step" not in self._off:
            with self._guarded("the step"):
                self._values["time/step"] = now - self._last
                if self.data_time:
                    self._values["time/data"] = self.data_time
                self._run_level(skipped, measured)
                self._reading.send()
                if self._pending and (self._pending[-1].urgent or self._enough(now)):
                    self.hand_over()
                self._pending.append(
                    _Pending(step, now, measured, self._reading, self._gradients_of_step(), self._values)
                )
                if self._trained is not None:
                    self.observed["trains_in_eval_mode"] = not self._trained
                if measured:
                    self.schedule.account(step, now - self._started)
                self._gradients.step_ended()
        self._release(self.optimizers[0])  # the rates of this step have been read
        self._last, self.data_time = now, 0.0
        self._reading, self._values = Reading(), {}
        self.step += 1
        self._begin()
        self._on_step(step)

    def _gradients_of_step(self) -> list[tuple[Reading, set[str] | None]]:
        """Readings of gradients, each with the parameters that it counts for: those of the optimizer that used it."""
        fixed, self._fixed = self._fixed, {}
        if len(self.optimizers) == 1 or not fixed:
            return [(self._gradient_reading, None)] if self._gradient_reading is not None else []
        parts: list[tuple[Reading, set[str] | None]] = [
            (reading, {name for name, _ in self._owned[i]}) for i, reading in fixed.items()
        ]
        return parts

    def _run_level(self, skipped: bool, measured: bool) -> None:
        self._learning_rates()
        if self.guards:
            self._values.setdefault("optimizer/skipped", 0.0)
        if self.scaler is not None:
            self._scaling(skipped)
        if (held := self._memory.host()) is not None:
            self._values["memory/host"] = held
        if self.step % RARELY == 0 and (held := self._memory.device(p.device for _, p in self.parameters)) is not None:
            self._values["memory/device"] = held
        if not measured:
            return
        if len(self.optimizers) == 1:  # of several, passes may be of different losses
            self._noise.put(self._reading, self.observed)
        if "inputs and outputs" not in self._off:
            self.ends.step_ends(self._reading)
        if self._rarely():
            put_spreads(self.parameters, self._reading)

    def _rarely(self) -> bool:
        """Whether this step, if it is measured, is one of those on which what changes slowly is read."""
        return self.step == 0 or self.schedule.measured % RARELY == 0

    def _learning_rates(self) -> None:
        i = 0
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                rate = group.get("lr")
                if i == len(RATES) or not isinstance(rate, float | int | Tensor):
                    continue
                if isinstance(rate, Tensor):
                    self._reading.put(RATES[i], rate)
                else:
                    self._values[RATES[i]] = float(rate)
                i += 1

    def _scaling(self, skipped: bool) -> None:
        found = found_inf(self.scaler, self.optimizers[0])
        if found and not skipped:  # a fused optimizer is called, and does nothing
            self._reading.put("optimizer/skipped", found[0].detach().clone(), finish=lambda n: float(n > 0))
        else:
            self._values["optimizer/skipped"] = float(skipped)
        scale = self._scale()
        if scale is not None:
            self._reading.put("optimizer/loss_scale", scale.clone() if isinstance(scale, Tensor) else scale)

    @property
    def holds_back(self) -> bool:
        """Whether numbers of steps before the newest are waiting for others, to be handed over together."""
        return len(self._pending) > 1

    def _enough(self, now: float) -> bool:
        return len(self._pending) >= self._together or now - self._pending[0].ended > LATEST

    def hand_over(self, *, newest: bool = True) -> None:
        """Read the numbers of the steps before; those of the ``newest`` may still be on their way from the device."""
        kept = len(self._pending) - (not newest)
        pending, self._pending = self._pending[:kept], self._pending[kept:]
        for one in pending:
            self._hand_over(one)

    def _hand_over(self, pending: "_Pending") -> None:
        rows = pending.reading.read()
        if len(pending.gradients) == 1 and pending.gradients[0][1] is None:
            rows += pending.gradients[0][0].read()
        else:
            read = {id(reading): reading.read() for reading, _ in pending.gradients}
            rows += [row.only(names) for reading, names in pending.gradients for row in read[id(reading)] if names]
        snapshots = self._assembling.snapshots(pending.step, rows, pending.values, pending.measured)
        snapshots[-1].histograms = pending.histograms()
        for snapshot in snapshots:
            self._on_snapshot(snapshot)


def watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a probe is at work on an optimizer already: two would count each other's steps."""
    probes = (getattr(getattr(h, "func", None), "__self__", None) for h in optimizer._optimizer_step_pre_hooks.values())
    return any(isinstance(p, Probe) and not p._deaf and p._process == os.getpid() for p in probes)


class _Guarded:
    """What :meth:`Probe._guarded` returns; a class, because it is entered several times in every step."""

    __slots__ = ("_part", "_probe", "_start")

    def __init__(self, probe: Probe, part: str) -> None:
        self._probe, self._part = probe, part

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        self._probe.schedule.spent += time.perf_counter() - self._start
        if not isinstance(error, Exception):
            return False
        self._probe._failed(self._part, error)
        return True


class _Pending(NamedTuple):
    """A step whose numbers are on their way."""

    step: int
    ended: float
    measured: bool
    reading: Reading
    gradients: list[tuple[Reading, set[str] | None]]
    values: dict[str, float]

    @property
    def urgent(self) -> bool:
        """Whether its numbers are handed over as soon as may be."""
        return self.measured or not (self.reading.calm and all(reading.calm for reading, _ in self.gradients))

    def histograms(self) -> list[Counted]:
        """Those of its weights and of its gradients."""
        found = self.reading.histograms()
        for reading, names in self.gradients:
            found += [one if names is None else one.only(names) for one in reading.histograms()]
        return found
