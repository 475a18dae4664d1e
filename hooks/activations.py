"""What modules put out: statistics of activations, and units that stay silent."""

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainmedic.history import Layer
from trainmedic.hooks.reading import Reading

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
    nn.Hardsigmoid: "sigmoid",
    nn.Hardtanh: "tanh",
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

LARGE = 1 << 20
"""Outputs with more elements than this give mean and standard deviation from a strided sample of their rows."""


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
        parts = vars(output).values()
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

    A rectifier called as a function (``F.relu(self.fc1(x))``) has no module. It is seen at the input of the next leaf
    and recorded as ``fc1:relu``, provided it keeps the dimensions and units of what ``fc1`` put out.
    """

    dead_after: int
    names: dict[int, str]
    architecture: dict[str, Layer]
    _silence: dict[str, _Silence] = field(default_factory=dict)
    _produced: _Produced | None = None
    _done: set[str] = field(default_factory=set)
    _kinds: dict[str, type[nn.Module]] = field(default_factory=dict)

    def begin(self) -> None:
        """A new step starts."""
        self._done.clear()
        self._produced = None

    def measure(self, module: nn.Module, arguments: tuple[Any, ...], output: Any, reading: Reading) -> None:
        """Reduce one module's output at once: an in-place function may overwrite it right after."""
        name = self.names.get(id(module))
        tensor = first_tensor(output)
        if name is None or tensor is None or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return
        if name in self._done and torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing runs the forward pass again during backward
        with torch.no_grad():
            self._measure_function(arguments, tensor, reading)
            axis = 1 if isinstance(module, CHANNELS_FIRST) else self._axis_after(module, tensor)
            self._register(module, name, tensor)
            self._statistics(name, tensor.detach(), reading)
            if ACTIVATIONS.get(type(module)) == "relu":
                self._watch_units(name, tensor.detach(), axis, reading)
        self._done.add(name)
        units = tensor.shape[axis] if tensor.ndim > abs(axis) else 0
        self._produced = _Produced(name, weakref.ref(tensor), tensor._version, tensor.ndim, units, axis)

    def _axis_after(self, module: nn.Module, tensor: Tensor) -> int:
        """The axis of units: an element-wise module keeps that of the leaf before it, others use the last one."""
        before = self._produced
        keeps = next(module.parameters(recurse=False), None) is None and before is not None
        return before.axis if keeps and before is not None and before.dimensions == tensor.ndim else -1

    def _measure_function(self, arguments: tuple[Any, ...], output: Tensor, reading: Reading) -> None:
        """A function between two leaves, seen where the second one takes its input (unless that one overwrote it)."""
        before, taken = self._produced, first_tensor(arguments)
        if before is None or taken is None or taken is output or taken.grad_fn is None:
            return
        same = before.tensor() is taken and before.version == taken._version
        if same or taken.ndim != before.dimensions or taken.shape[before.axis] != before.units:
            return
        if ACTIVATIONS.get(self._kinds.get(before.name, nn.Identity)):
            return  # an activation that has a module was measured there
        name = f"{before.name}:relu"
        if name in self._done:
            return
        self._done.add(name)
        values = taken.detach()
        reading.put(("function_min", name), values.amin())
        self._statistics(name, values, reading)
        self._watch_units(name, values, before.axis, reading)

    def _register(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """The first time a module runs, it takes its place in the order of execution."""
        known = self.architecture.get(name)
        if known is None or known.order >= 0:
            return
        order = 1 + max((layer.order for layer in self.architecture.values()), default=-1)
        self._kinds[name] = type(module)
        shape = tuple(tensor.shape[1:])
        self.architecture[name] = Layer(name, known.kind, order, shape, known.trainable, known.activation)
        for parameter, _ in module.named_parameters(recurse=True):
            own = self.architecture.get(f"{name}.{parameter}" if name else parameter)
            if own is not None and own.order < 0:
                self.architecture[own.name] = Layer(own.name, own.kind, order, own.shape, own.trainable)

    def _statistics(self, name: str, values: Tensor, reading: Reading) -> None:
        reading.put(("activation_max", name), torch.maximum(*(bound.abs() for bound in values.aminmax())).float())
        reading.put(("activation_nonzeros", name), values.count_nonzero().float() / values.numel())
        rows = values
        if values.numel() > LARGE and values.shape[0] > 1:
            rows = values[:: -(-values.numel() // LARGE)]
        spread, mean = torch.var_mean(rows.float(), correction=0)
        reading.put(("activation_mean", name), mean)
        reading.put(("activation_std", name), spread.sqrt())

    def _watch_units(self, name: str, values: Tensor, axis: int, reading: Reading) -> None:
        """Count, per unit, the samples in a row for which it was zero everywhere."""
        axis %= values.ndim
        others = [d for d in range(values.ndim) if d != axis]
        active = (values != 0).any(dim=others) if others else values != 0
        silence = self._silence.get(name)
        if silence is None or silence.samples.shape != active.shape or silence.samples.device != active.device:
            silence = self._silence[name] = _Silence(torch.zeros_like(active, dtype=torch.int64))
        samples = values.shape[0] if values.ndim > 1 else 1
        silence.watched += samples
        silence.samples = torch.where(active, 0, silence.samples + samples)
        reading.put(("dead_units_lasting", name), (silence.samples >= self.dead_after).float().mean())
        reading.put(("dead_samples", name), silence.watched)

    def dead_units(self, name: str) -> Tensor | None:
        """Per unit of a rectifier, whether it has been silent for ``dead_after`` samples; ``None`` if not watched."""
        silence = self._silence.get(name)
        return None if silence is None else silence.samples >= self.dead_after

    def forget_units(self) -> None:
        """Start counting anew, after a change."""
        self._silence.clear()
