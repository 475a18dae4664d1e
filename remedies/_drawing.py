"""Drawing weights anew, and a ledger of what was overwritten."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainmedic.remedies._layers import transposed, units_of
from trainmedic.remedies.remedy import Undo

Index = Any
"""What stands in the brackets of ``tensor[...]``."""


class Ledger:
    """Writes into tensors and forgets optimizer state, and can put everything back exactly."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self._undos: list[Undo] = []

    @torch.no_grad()
    def undo(self) -> None:
        """Put back, last change first."""
        while self._undos:
            self._undos.pop()()

    @torch.no_grad()
    def write(self, tensor: Tensor, index: Index, values: Tensor | float) -> None:
        """``tensor[index] = values``."""
        target = tensor.detach()
        before = target[index].clone()
        self._undos.append(lambda: target.__setitem__(index, before))
        target[index] = values.to(target) if isinstance(values, Tensor) else values

    def forget(self, parameter: Tensor, index: Index = ...) -> None:
        """Clear the optimizer's state for a parameter, or for a part of it."""
        for optimizer in self.optimizers:
            if type(optimizer).__name__ == "LBFGS":
                self._drop(optimizer, list(optimizer.state))  # its history is one for all parameters
            elif index is ... or parameter not in optimizer.state:
                self._drop(optimizer, [parameter])
            else:
                self._clear(optimizer, parameter, index)

    def _drop(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        dropped = {parameter: optimizer.state.pop(parameter, None) for parameter in parameters}

        def put_back() -> None:
            for parameter, state in dropped.items():
                optimizer.state.pop(parameter, None)
                if state is not None:
                    optimizer.state[parameter] = state

        self._undos.append(put_back)

    def _clear(self, optimizer: torch.optim.Optimizer, parameter: Tensor, index: Index) -> None:
        rate = next((g["lr"] for g in optimizer.param_groups for p in g["params"] if p is parameter), 0.0)
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # averages of gradients start at zero, Rprop's step at the rate, ASGD's average at the weight itself
                fresh: Tensor | float = parameter.detach()[index] if name == "ax" else 0.0
                self.write(value, index, float(rate) if name == "step_size" else fresh)


def draw(scheme: str, layer: nn.Module, weight: Tensor, generator: torch.Generator) -> Tensor:
    """New values for a weight: ``he`` or ``xavier``, normal; ``orthonormal``; ``orthogonal`` for each gate.

    On the CPU, in float32.
    """
    fresh = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    if scheme == "he":
        mode: Literal["fan_in", "fan_out"] = "fan_out" if transposed(layer) else "fan_in"
        return nn.init.kaiming_normal_(fresh, mode=mode, nonlinearity="relu", generator=generator)
    if scheme == "xavier":
        return nn.init.xavier_normal_(fresh, generator=generator)
    if scheme == "orthonormal":
        return nn.init.orthogonal_(fresh, generator=generator)
    size = weight.shape[1]
    for start in range(0, weight.shape[0], size):
        nn.init.orthogonal_(fresh[start : start + size], generator=generator)
    return fresh


def redraw_layer(
    ledger: Ledger,
    layer: nn.Module,
    scheme: str,
    generator: torch.Generator,
    units: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """Draw the weights of a linear layer or convolution anew, and set its bias to zero; or only those of some units."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    fresh = scale * draw(scheme, layer, weight, generator)
    at = ... if units is None else (slice(None), units) if transposed(layer) else units
    ledger.write(weight, at, fresh[at])
    ledger.forget(weight, at)
    if bias is not None:
        at = ... if units is None else units
        ledger.write(bias, at, 0.0)
        ledger.forget(bias, at)


def redraw_recurrent(ledger: Ledger, layer: nn.Module, generator: torch.Generator) -> None:
    """Input weights Xavier, those from step to step orthogonal, biases zero."""
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.ndim == 2:
            scheme = "orthogonal" if name.startswith("weight_hh") else "xavier"
            ledger.write(parameter, ..., draw(scheme, layer, parameter, generator))
        else:
            ledger.write(parameter, ..., 0.0)
        ledger.forget(parameter)


def redraw_attention(ledger: Ledger, layer: nn.Module, generator: torch.Generator) -> None:
    """Xavier for each of query, key and value, and for what puts the heads together; biases zero."""
    for name, parameter in layer.named_parameters():
        if parameter.ndim != 2:
            ledger.write(parameter, ..., 0.0)
        elif name == "in_proj_weight":
            parts = [draw("xavier", layer, part, generator) for part in parameter.detach().chunk(3)]
            ledger.write(parameter, ..., torch.cat(parts))
        else:
            ledger.write(parameter, ..., draw("xavier", layer, parameter, generator))
        ledger.forget(parameter)


def reset_norm(ledger: Ledger, norm: nn.Module, units: Tensor | None) -> None:
    """Scale one and shift zero for the units whose weights were drawn anew."""
    at = ... if units is None else units
    for name, value in (("weight", 1.0), ("bias", 0.0)):
        parameter = norm._parameters.get(name)
        if parameter is not None:
            ledger.write(parameter, at, value)
            ledger.forget(parameter, at)


def silence_inputs(ledger: Ledger, layer: nn.Module, units: Tensor) -> None:
    """Set what a layer takes from some units to zero, so that new ones change nothing until they are trained."""
    weight = layer._parameters["weight"]
    assert weight is not None
    at = units if transposed(layer) else (slice(None), units)
    ledger.write(weight, at, 0.0)
    ledger.forget(weight, at)


def inputs_of(layer: nn.Module) -> int:
    """How many units a linear layer or convolution takes in."""
    if getattr(layer, "groups", 1) != 1:
        return 0  # each unit sees a part of them only
    return int(getattr(layer, "in_features", 0) or getattr(layer, "in_channels", 0))


def drawable(layer: nn.Module) -> bool:
    """Whether a layer's weight is a trained, real parameter of its own."""
    weight = layer._parameters.get("weight")
    return weight is not None and weight.requires_grad and weight.is_floating_point() and units_of(layer) > 0
