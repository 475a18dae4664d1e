"""Gates for a recurrent layer that has none: the layer goes on as the candidate of a gated one."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import _VF, Tensor, nn

from trainmedic.remedies._graft import Graft

GATES = "medic_gates"
"""Name under which a layer holds the weights of its gates."""

OPEN = 1.0
"""Bias of reset and update gates: what was remembered is kept at first (Jozefowicz et al. 2015)."""


class GatedRNN(Graft):
    """``nn.RNN`` computed as a GRU: its own weights make the candidate, new ones of the same names make the gates."""

    parts: ClassVar[tuple[str, ...]] = (GATES,)
    medic_gates: nn.ParameterDict
    _flat_weights: list[Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._update_flat_weights()  # type: ignore[operator]
        own = self._flat_weights
        self._flat_weights = [
            weight if weight is None else torch.cat([self.medic_gates[name], weight])
            for name, weight in zip(self._flat_weights_names, own, strict=True)  # type: ignore[arg-type]
        ]
        try:
            forward: Any = nn.GRU.forward  # all that it needs of a GRU is in its weights
            return forward(self, *args, **kwargs)
        finally:
            self._flat_weights = own


class GatedCell(Graft):
    """``nn.RNNCell`` computed as a ``GRUCell``, likewise."""

    parts: ClassVar[tuple[str, ...]] = (GATES,)
    medic_gates: nn.ParameterDict

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        batched = input if input.ndim > 1 else input.unsqueeze(0)
        if hx is None:
            size: Any = self.hidden_size
            hx = batched.new_zeros(batched.shape[0], size)
        weights: list[Any] = [
            None if own is None else torch.cat([self.medic_gates[name], own])
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            for own in [self._parameters.get(name)]
        ]
        out: Tensor = _VF.gru_cell(batched, hx if hx.ndim > 1 else hx.unsqueeze(0), *weights)
        return out if input.ndim > 1 else out.squeeze(0)


def gates_for(layer: nn.Module, generator: torch.Generator) -> nn.ParameterDict:
    """New parameters for reset and update gates: twice the rows of each of the layer's own.

    Input weights Xavier, those from step to step orthogonal, biases of the input side ``OPEN``, others zero.
    """
    return nn.ParameterDict(dict(_drawn(layer, generator)))


def _drawn(layer: nn.Module, generator: torch.Generator) -> Iterator[tuple[str, nn.Parameter]]:
    for name, own in layer.named_parameters(recurse=False):
        if own.ndim < 2:
            fresh = torch.full((2 * len(own),), OPEN if name.startswith("bias_ih") else 0.0)
        else:
            halves = [torch.empty(own.shape) for _ in range(2)]
            draw: Any = nn.init.orthogonal_ if name.startswith("weight_hh") else nn.init.xavier_uniform_
            fresh = torch.cat([draw(half, generator=generator) for half in halves])
        yield name, nn.Parameter(fresh.to(own), requires_grad=own.requires_grad)
