"""What modules put out: statistics of activations, and units that stay silent or sit on the flat part."""

import math
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.history import Layer
from trainmedic.hooks.functions import function_between
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import rows, unreadable

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardtanh: "hardtanh",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
    nn.Softplus: "softplus",
}
OPAQUE = (nn.RNNBase, nn.MultiheadAttention)  # modules with children or several outputs that are measured as one
CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)  # modules whose units lie along dimension 1, whatever the number of dimensions

FLAT = 0.05
"""A unit is on the flat part where its activation's derivative is below this share of the largest one it can have."""
STUCK = 0.95
"""A unit is saturated if it is on the flat part for this share of the samples."""


def is_leaf(module: nn.Module) -> bool:
    """Whether a module's output is measured: it has no children, or they are its own affair."""
    return isinstance(module, OPAQUE) or next(module.children(), None) is None


def first_tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor in an output: a tensor, a tuple, a mapping or a dataclass of them."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.numel() else None
    if isinstance(output, dict):
        parts: Any = output.values()
    elif isinstance(output, list | tuple):
        parts = output
    elif hasattr(output, "__dataclass_fields__"):
        parts = [getattr(output, name, None) for name in output.__dataclass_fields__]
    else:
        return None
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


@dataclass
class _Silence:
    """Per unit, for how many samples in a row it has been zero; kept on the device."""

    samples: Tensor
    watched: int = 0


@dataclass
class _Produced:
    """The output that a leaf put out last: to tell whether a function changed it before the next one took it."""

    name: str
    tensor: "weakref.ref[Tensor]"
    version: int
    dimensions: int
    units: int
    axis: int


@dataclass
class Activations:
    """Measures outputs of the leaves of the watched models as they run forward.

    A function between two leaves (``F.relu(self.fc1(x))``) has no module. It is seen at the input of the next leaf
    and recorded as ``fc1:relu``, provided it keeps the dimensions and units of what ``fc1`` put out.

    Of the calls of one module within a step the first, second, fourth, eighth ... are measured: a cell that runs for
    each of a thousand time steps costs ten measurements.
    """

    dead_after: int
    sample: int
    names: dict[int, str]
    architecture: dict[str, Layer]
    not_measured: dict[str, str] = field(default_factory=dict)  # what, and why
    step: int = 0
    _silence: dict[tuple[str, int], _Silence] = field(default_factory=dict)  # by name and call within the step
    _running: dict[str, Tensor] = field(default_factory=dict)
    _produced: _Produced | None = None
    repeated: set[str] = field(default_factory=set)  # leaves that ran several times in one forward pass
    _within: set[str] = field(default_factory=set)  # leaves that ran in the one that is going on
    _calls: Counter[str] = field(default_factory=Counter)
    _order: int = 0

    def begin(self, step: int) -> None:
        """A new step starts."""
        self.step = step
        self._calls.clear()
        self._within.clear()
        self._produced = None

    def pass_ended(self) -> None:
        """A forward pass of a watched model is over: what runs again from here on runs in another one."""
        self._within.clear()

    def measure(self, module: nn.Module, arguments: Any, output: Any, reading: Reading) -> None:
        """Reduce one module's output at once: an in-place function may overwrite it right after."""
        name = self.names.get(id(module))
        tensor = first_tensor(output)
        if name is None or self._cannot_see(output, tensor) or tensor is None or self._skips(name):
            return
        with torch.no_grad():
            self._measure_function(arguments, tensor, reading)
            axis = 1 if isinstance(module, CHANNELS_FIRST) else self._axis_after(module, tensor)
            self._register(module, name, tensor)
            kind = self.architecture[name].activation
            self._statistics(name, tensor.detach(), axis, kind, reading)
            flat = flat_part(kind, module, tensor.detach(), self.sample, self.step)
            self._put_flat(name, flat, reading)
            if isinstance(module, nn.modules.batchnorm._NormBase) and not isinstance(module, INSTANCE_NORMS):
                self._normalization(module, name, tensor, reading)
        units = tensor.shape[axis] if tensor.ndim > abs(axis) else 0
        version = 0 if tensor.is_inference() else tensor._version
        self._produced = _Produced(name, weakref.ref(tensor), version, tensor.ndim, units, axis)

    def _cannot_see(self, output: Any, tensor: Tensor | None) -> bool:
        """Whether an output is of a kind that is not measured; the first time, the reason is noted."""
        if tensor is not None and not unreadable(tensor):
            return False
        if tensor is None and isinstance(output, Tensor) and output.is_complex():
            self.not_measured["activations that are complex"] = "their statistics are defined for real numbers"
        elif tensor is not None and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            self.not_measured["activations inside vmap or grad"] = "single values are not to be had there"
        elif tensor is not None:
            kind = "on the meta device" if tensor.is_meta else f"of type {type(tensor).__name__}, {tensor.layout}"
            self.not_measured[f"activations {kind}"] = "values of that kind are not looked at"
        return True

    def seen(self, module: nn.Module, output: Any) -> None:
        """A leaf ran without a graph in training, as in the first run of a reentrant checkpoint: note the order."""
        name, tensor = self.names.get(id(module)), first_tensor(output)
        if name is not None and tensor is not None:
            self._register(module, name, tensor)

    def _skips(self, name: str) -> bool:
        """Whether to leave this call out: a recomputation during backward, or one of many calls."""
        calls = self._calls[name]
        if calls and torch._C._current_graph_task_id() != -1:
            return True  # activation checkpointing runs the forward pass again
        self._calls[name] += 1
        if name in self._within:
            self.repeated.add(name)
        self._within.add(name)
        if calls & (calls + 1):
            self._produced = None
            return True
        return False

    def _axis_after(self, module: nn.Module, tensor: Tensor) -> int:
        """The axis of units: an element-wise module keeps that of the leaf before it, others use the last one."""
        before = self._produced
        keeps = next(module.parameters(recurse=False), None) is None
        if keeps and before is not None and before.dimensions == tensor.ndim:
            return before.axis
        return 1 if keeps and tensor.ndim > 3 else -1  # images, and volumes, have their channels first

    def _measure_function(self, arguments: Any, output: Tensor, reading: Reading) -> None:
        """A function between two leaves, seen where the second one takes its input (unless that one overwrote it)."""
        before, taken = self._produced, first_tensor(arguments)
        if before is None or taken is None or taken is output or taken.grad_fn is None or unreadable(taken):
            return
        same = before.tensor() is taken and before.version == taken._version
        if same or taken.ndim != before.dimensions or taken.shape[before.axis] != before.units:
            return
        known = self.architecture[before.name]
        kind = None if known.activation else function_between(taken)
        if kind is None:
            return  # an activation that has a module was measured there
        name = f"{before.name}:{kind}"
        if self._skips(name):
            return
        if name not in self.architecture:
            self.architecture[name] = Layer(name, "function", known.order, known.shape, False, kind)
        self._statistics(name, taken.detach(), before.axis, kind, reading)
        self._put_flat(name, flat_part(kind, None, taken.detach(), self.sample, self.step), reading)

    def _register(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """The first time a module runs, it takes its place in the order of execution."""
        known = self.architecture.get(name)
        if known is None or known.order >= 0:
            return
        if torch._C._current_graph_task_id() != -1:
            return  # recomputed on the way back: that order is no order
        order, self._order = self._order, self._order + 1
        shape = tuple(tensor.shape[1:])
        self.architecture[name] = Layer(name, known.kind, order, shape, known.trainable, known.activation)
        for parameter, _ in module.named_parameters(recurse=True):
            own = self.architecture.get(f"{name}.{parameter}" if name else parameter)
            if own is not None and own.order < 0:
                self.architecture[own.name] = Layer(own.name, own.kind, order, own.shape, own.trainable)

    def _statistics(self, name: str, values: Tensor, axis: int, kind: str | None, reading: Reading) -> None:
        if kind == "relu":  # nothing below zero
            reading.put("activation_max", self._watch_units(name, values, axis, reading), name)
        else:
            for bound in values.aminmax():
                reading.put("activation_max", bound, name, abs)
        part = rows(values, self.sample, self.step)
        size = part.numel()
        centre = part.mean(0)  # per unit; the variance is that within units and that between them
        within = (part - centre).square().mean()
        between, mean = torch.var_mean(centre, correction=0)
        reading.put("activation_mean", mean, name)
        reading.put("activation_std", within + between, name, math.sqrt)
        reading.put("activation_zeros", part.count_nonzero(), name, lambda nonzero: 1 - nonzero / size)
        if part.shape[0] > 1:
            reading.put("activation_batch_std", within, name, math.sqrt)

    @staticmethod
    def _put_flat(name: str, flat: Tensor | None, reading: Reading) -> None:
        if flat is not None and flat.numel():
            reading.put("saturated_units", (flat.mean(0) >= STUCK).float().mean(), name)
            reading.put("saturated_outputs", flat.mean(), name)

    def _watch_units(self, name: str, values: Tensor, axis: int, reading: Reading) -> Tensor:
        """Count, per unit, the samples in a row for which it was zero everywhere; the largest value of all."""
        axis %= max(values.ndim, 1)
        others = [d for d in range(values.ndim) if d != axis]
        top = values.amax(others) if others else values
        key = name, self._calls[name]
        silence = self._silence.get(key)
        if silence is None or silence.samples.shape != top.shape or silence.samples.device != top.device:
            silence = self._silence[key] = _Silence(torch.zeros(top.shape, dtype=torch.int64, device=top.device))
        samples = values.shape[0] if values.ndim > 1 else 1
        silence.watched += samples
        silence.samples = torch.where(top != 0, 0, silence.samples + samples)  # a NaN is not silent
        units = top.numel()
        dead = (silence.samples >= self.dead_after).count_nonzero()
        reading.put("dead_units_lasting", dead, name, lambda count: count / units)
        reading.put("dead_samples", silence.watched, name)
        return top.amax()

    def _normalization(self, module: Any, name: str, output: Tensor, reading: Reading) -> None:
        """A batch norm: its mode, how many values each mean was taken of, and whether its running mean moves."""
        reading.put("batchnorm_training", float(module.training), name)
        reading.put("batchnorm_values", output.numel() / max(output.shape[1], 1), name)
        if module.running_mean is None or module.running_var is None:
            return
        mean = module.running_mean.detach().float()
        before = self._running.get(name)
        if before is not None and before.shape == mean.shape and before.device == mean.device:
            spread = module.running_var.detach().float().clamp_min(module.eps).sqrt()
            reading.put("batchnorm_movement", ((mean - before) / spread).square().mean(), name, math.sqrt)
        self._running[name] = mean.clone()

    def dead_units(self, name: str) -> Tensor | None:
        """Per unit of a rectifier, whether it has been silent for ``dead_after`` samples; ``None`` if not watched."""
        calls = [silence for (known, _), silence in self._silence.items() if known == name]
        silence = calls[0] if len(calls) == 1 else None  # one that runs several times has no units of its own
        return None if silence is None else silence.samples >= self.dead_after

    def forget_units(self) -> None:
        """Start counting anew, after a change."""
        self._silence.clear()
        self._running.clear()


INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def flat_part(kind: str | None, module: nn.Module | None, values: Tensor, sample: int, step: int) -> Tensor | None:
    """Per sampled row and unit, 1 where the activation's own derivative is below ``FLAT`` of its largest.

    Sigmoid: y (1 - y), at most 1/4. Tanh: 1 - y^2, at most 1. Softmax, per row of k: 1 - sum of y^2, the trace of its
    Jacobian, at most 1 - 1/k. Their hard forms are flat at their ends. ``None`` for other kinds.
    """
    if kind == "softmax":
        return _flat_softmax(values, getattr(module, "dim", -1), sample)
    if kind not in ("sigmoid", "tanh", "hardsigmoid", "hardtanh"):
        return None
    part = rows(values, sample, step)
    if kind == "sigmoid":
        return (4 * part * (1 - part) < FLAT).float()
    if kind == "tanh":
        return (1 - part.square() < FLAT).float()
    low, high = getattr(module, "min_val", 0.0), getattr(module, "max_val", 1.0)
    return ((part <= low) | (part >= high)).float()


def _flat_softmax(values: Tensor, dimension: int | None, sample: int) -> Tensor | None:
    dimension = -1 if dimension is None else dimension
    if values.ndim < 2 or values.shape[dimension] < 2:
        return None
    classes = values.shape[dimension]
    outputs = values.movedim(dimension, -1)
    outputs = outputs[:: max(1, outputs.shape[0] // 64)].reshape(-1, classes)
    outputs = outputs[:: -(-outputs.numel() // sample)].float()
    return (1 - outputs.square().sum(-1, keepdim=True) < FLAT * (1 - 1 / classes)).float()
