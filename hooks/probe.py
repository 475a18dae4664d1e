"""``Probe``: attached to live models and optimizers, it hands over one ``Snapshot`` per step, and leaves no trace."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.history import Layer, Snapshot
from trainmedic.hooks.activations import Activations
from trainmedic.hooks.facts import anatomy
from trainmedic.hooks.parameters import Updates, put_gradients
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.schedule import Schedule

Guard = Callable[[torch.optim.Optimizer], bool | None]


class Probe:
    """Measures the training of ``models`` by ``optimizers``.

    A step ends with each ``step()`` of the first optimizer, counted also when the loss scaler skips it. Gradients are
    read when a backward pass has ended, before the user clips them; the last backward pass before the step counts.
    Forward hooks are present only on steps that are measured, as one global hook: nothing is stored in the modules, so
    that copies of a watched model carry nothing of it.

    ``on_snapshot`` receives each step's numbers one step later, ``on_step`` is called at the end of each step with its
    number (from 0), ``on_error`` with any error inside the probe, which then is off.
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
    ) -> None:
        self.models = list(models)
        self.optimizers = list(optimizers)
        self.schedule = schedule
        self.scaler = scaler
        self.loss_fn = loss_fn
        self.dead_after = dead_after
        self.step = 0  # the step in progress, or the next one
        self.begun = False  # whether anything of it has been seen
        self.guards: list[Guard] = []
        self.not_measured: dict[str, str] = {}
        self.observed: dict[str, Any] = {}
        self.data_time = 0.0
        self._on_snapshot, self._on_step, self._on_error = on_snapshot, on_step, on_error
        self._handles: list[Any] = []
        self._forward_handle: Any = None
        self._parameter_handles: list[Any] = []
        self._queued = False
        self._off = False
        self._frames = 0  # pieces of code that were compiled before watching began
        self._reading = Reading()
        self._values: dict[str, float] = {}
        self._pending: tuple[int, Reading, dict[str, float]] | None = None
        self._gradients: Reading | None = None
        self._updates: list[Updates] = []
        self._started = self._last = time.perf_counter()
        self.refresh()

    # -- attaching and detaching ---------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look at the models again: their modules and parameters may have changed."""
        layers, leaves, self.parameters = anatomy(self.models)
        known: dict[str, Layer] = getattr(self, "architecture", {})
        for name, layer in known.items():
            if name not in layers and ":" not in name:
                continue
            layers[name] = layer
        self.architecture = layers
        if not hasattr(self, "activations"):
            self.activations = Activations(self.dead_after, leaves, layers)
        self.activations.names, self.activations.architecture = leaves, layers
        owner = {
            id(p): i for i, o in reversed(list(enumerate(self.optimizers))) for g in o.param_groups for p in g["params"]
        }
        self._owned = [
            [(n, p) for n, p in self.parameters if owner.get(id(p)) == i] for i in range(len(self.optimizers))
        ]
        if self._parameter_handles:
            self._detach_parameters()
            self._attach_parameters()

    def attach(self) -> None:
        """Start measuring."""
        for i, optimizer in enumerate(self.optimizers):
            self._handles.append(optimizer.register_step_pre_hook(functools.partial(self._before_step, i)))
            self._handles.append(optimizer.register_step_post_hook(functools.partial(self._after_step, i)))
        if self.scaler is not None:
            self._handles.append(_ScalerWatch(self.scaler, self.optimizers[0], self._skipped))
        self._attach_parameters()
        self._frames = _compiled_frames()
        if any(map(_compiled, self.models)):
            self.not_measured["activations"] = "the model is compiled: hooks on its modules would recompile it"
        self._begin()

    def detach(self) -> None:
        """Stop measuring: hand over what is still on the way, and remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._detach_parameters()
        self._forward_off()
        if not self._off:
            with self._guarded("the last reading"):
                self._hand_over()
        self._pending = None
        self._reading, self._gradients, self._updates = Reading(), None, []
        self.activations.forget_units()
        self.activations.begin()

    def _attach_parameters(self) -> None:
        register: Any = Tensor.register_post_accumulate_grad_hook
        for _, parameter in self.parameters:
            if parameter.requires_grad and parameter.is_leaf:
                self._parameter_handles.append(register(parameter, self._gradient_arrived))

    def _detach_parameters(self) -> None:
        for handle in self._parameter_handles:
            handle.remove()
        self._parameter_handles.clear()

    @contextlib.contextmanager
    def _guarded(self, part: str) -> Iterator[None]:
        """The training goes on whatever happens in here; the time it takes is counted as the cost of watching."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self._off = True
            self._forward_off()
            self._on_error(part, error)
        finally:
            self.schedule.spent += time.perf_counter() - start

    # -- forward -------------------------------------------------------------------------------------------------

    @property
    def measuring(self) -> bool:
        """Whether the step in progress is measured in full."""
        return not self._off and self.schedule.measures(self.step)

    @property
    def sees_forward(self) -> bool:
        """Whether a forward pass of the step in progress would be noticed."""
        return self._forward_handle is not None

    def _begin(self) -> None:
        """The next step: hooks on modules are present if it is measured."""
        self.begun = False
        self._gradients = None
        self.activations.begin()
        if _compiled_frames() > self._frames:
            self.not_measured["activations"] = "parts of the step are compiled: hooks on modules would recompile them"
        if self.measuring and "activations" not in self.not_measured:
            if self._forward_handle is None:
                hook = self._forward
                self._forward_handle = nn.modules.module.register_module_forward_hook(hook)
        else:
            self._forward_off()

    def _forward_off(self) -> None:
        if self._forward_handle is not None:
            self._forward_handle.remove()
            self._forward_handle = None

    def _forward(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch._C._get_tracing_state() is not None:
            return
        if id(module) not in self.activations.names:
            if module is self.loss_fn:
                with self._guarded("the loss function"):
                    self._loss_called(arguments)
            return
        if not self._in_training():
            return
        with self._guarded("activations"):
            self.begun = True
            self.activations.measure(module, arguments, output, self._reading)

    def _in_training(self) -> bool:
        """Whether a forward pass with gradients trains: evaluation without ``no_grad`` happens too."""
        return any(model.training for model in self.models) or self.observed.get("trains_in_eval_mode", False)

    def _loss_called(self, arguments: tuple[Any, ...]) -> None:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if len(tensors) == 2 and "batch_size" not in self.observed and tensors[0].ndim:
            output = tensors[0]
            self.observed["batch_size"] = output.shape[0]
            if isinstance(self.loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) and output.ndim > 1:
                self.observed["classes"] = output.shape[1]

    # -- backward ------------------------------------------------------------------------------------------------

    def _gradient_arrived(self, _: Tensor) -> None:
        if not self._queued and not self._off:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_ended)

    def _backward_ended(self) -> None:
        self._queued = False
        self.begun = True
        if self._off:
            return
        with self._guarded("gradients"):
            if not any(model.training for model in self.models):
                self.observed["trains_in_eval_mode"] = True
            self._gradients = Reading()
            scale = getattr(self.scaler, "_scale", None) if self.scaler is not None else None
            put_gradients(self.parameters, self._gradients, full=self.measuring, scale=scale)
            self._gradients.send()

    # -- the optimizer's step ------------------------------------------------------------------------------------

    def _before_step(self, index: int, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.guards and self._rejected(optimizer):
            self._values["optimizer/skipped"] = 1.0
        if self._off or not self.measuring:
            return
        with self._guarded("updates"):
            self._updates = [update for update in self._updates if update.named != self._owned[index]]
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

    def _after_step(self, index: int, *_: Any) -> None:
        if not self._off and self.measuring:
            with self._guarded("updates"):
                for update in self._updates:
                    update.after(self._reading)
                self._updates = []
        if index == 0:
            self._end_step(skipped=False)

    def _skipped(self) -> None:
        self._end_step(skipped=True)

    def _end_step(self, *, skipped: bool) -> None:
        step, now = self.step, time.perf_counter()
        if not self._off:
            with self._guarded("the step"):
                self._values["time/step"] = now - self._last
                if self.data_time:
                    self._values["time/data"] = self.data_time
                self._run_level(skipped)
                self._reading.send()
                self._hand_over()
                readings = [self._reading, *([self._gradients] if self._gradients else [])]
                self._pending = (step, _joined(readings), self._values)
                if self.measuring:
                    self.schedule.account(step, now - self._started)
        self._last, self.data_time = now, 0.0
        self._reading, self._values = Reading(), {}
        self.step += 1
        self._begin()
        self._on_step(step)

    def _run_level(self, skipped: bool) -> None:
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups if "lr" in group]
        for i, rate in enumerate(rates[:8]):
            self._reading.put(("optimizer/learning_rate" + (f"/{i}" if i else ""), ""), rate)
        if self.guards:
            self._values.setdefault("optimizer/skipped", 0.0)
        if self.scaler is not None:
            self._values["optimizer/skipped"] = float(skipped)
            scale = getattr(self.scaler, "_scale", None)
            if isinstance(scale, Tensor):
                self._reading.put(("optimizer/loss_scale", ""), scale.clone())

    def _hand_over(self) -> None:
        """Read the numbers of the step before, which have had a step's time to leave the device."""
        if self._pending is None:
            return
        step, reading, values = self._pending
        self._pending = None
        self._on_snapshot(_snapshot(step, reading.read(), values, self.schedule.measures(step), self.architecture))


def _joined(readings: Sequence[Reading]) -> Reading:
    joined = Reading()
    for reading in readings:
        joined._sent += reading._sent
        joined._plain += reading._plain
    return joined


def _snapshot(
    step: int,
    numbers: list[tuple[tuple[str, str], float]],
    values: dict[str, float],
    measured: bool,
    architecture: dict[str, Layer],
) -> Snapshot:
    """One step's numbers in their final form; what follows from others is derived here, off the device."""
    snapshot = Snapshot(step, dict(values))
    raw: dict[str, dict[str, float]] = {}
    for (name, layer), value in numbers:
        if layer:
            raw.setdefault(name, {})[layer] = value
        else:
            snapshot.values[name] = value
    norm = raw.get("gradient_norm", {})
    bad = {name: float(not math.isfinite(value)) for name, value in norm.items()}
    if norm:
        snapshot.values["gradient/norm"] = math.sqrt(sum(value * value for value in norm.values()))
        snapshot.values["gradient/nonfinite"] = sum(bad.values())
    if not measured and not any(bad.values()):
        return snapshot
    _drop_functions(raw, architecture)
    raw["update_ratio"] = {name: ratio for name, ratio in raw.get("update_ratio", {}).items() if math.isfinite(ratio)}
    raw["gradient_nonfinite"] = bad
    raw["weight_nonfinite"] = {name: float(not math.isfinite(v)) for name, v in raw.get("weight_norm", {}).items()}
    largest = raw.get("activation_max", {})
    raw["activation_nonfinite"] = {name: float(not math.isfinite(value)) for name, value in largest.items()}
    raw["activation_zeros"] = {name: 1 - share for name, share in raw.pop("activation_nonzeros", {}).items()}
    snapshot.layers = {statistic: row for statistic, row in raw.items() if row}
    return snapshot


def _drop_functions(raw: dict[str, dict[str, float]], architecture: dict[str, Layer]) -> None:
    """Of functions between two modules keep those that are rectifiers: nothing below zero, and many exact zeros."""
    for name, least in raw.pop("function_min", {}).items():
        if least == 0 and raw["activation_nonzeros"][name] < 1:
            if name not in architecture:
                before = architecture[name.removesuffix(":relu")]
                architecture[name] = Layer(name, "function", before.order, before.shape, False, "relu")
        else:
            for row in raw.values():
                row.pop(name, None)


def _compiled_frames() -> int:
    """How many pieces of code torch.compile has looked at in this process."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return int(getattr(frames, "FRAME_COUNTER", 0))


def _compiled(model: nn.Module) -> bool:
    """Whether any part of a model runs compiled."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


class _ScalerWatch:
    """Tells when a gradient scaler skips a step: no hook of the optimizer fires then.

    ``step`` is wrapped on the instance alone, until ``remove``.
    """

    def __init__(self, scaler: Any, optimizer: torch.optim.Optimizer, skipped: Callable[[], None]) -> None:
        self.scaler = scaler
        original = scaler.step
        stepped = [False]
        self._handle = optimizer.register_step_post_hook(lambda *_: stepped.__setitem__(0, True))

        @functools.wraps(original)
        def step(which: Any, *args: Any, **kwargs: Any) -> Any:
            stepped[0] = False
            result = original(which, *args, **kwargs)
            if which is optimizer and not stepped[0]:
                skipped()
            return result

        scaler.step = step

    def remove(self) -> None:
        self._handle.remove()
        self.scaler.__dict__.pop("step", None)
