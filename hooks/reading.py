"""Numbers on their way from the device to the record, without stopping the device."""

import math
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainmedic.buckets import Counted
from trainmedic.hooks.sampling import ORDINARY

Finish = Callable[[float], float]
_Kind = tuple[torch.device, torch.dtype]
_Label = tuple[str, str, Finish | None]


class Row(NamedTuple):
    """One statistic of several layers; at run level ``layers`` is ``("",)`` and ``statistic`` the series' name."""

    statistic: str
    layers: Sequence[str]
    values: list[float]

    def only(self, names: Container[str]) -> "Row":
        """The part of it that is about some layers."""
        pairs = [(layer, value) for layer, value in zip(self.layers, self.values, strict=True) if layer in names]
        return Row(self.statistic, [layer for layer, _ in pairs], [value for _, value in pairs])


def at_once(tensor: Tensor) -> bool:
    """Whether a tensor's numbers can be read without waiting: an ordinary one, in the host's memory."""
    return type(tensor) in ORDINARY and tensor.device.type == "cpu"


class Sent:
    """A tensor on its way to the host's memory; the device is not stopped."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> Tensor:
        """The tensor; waits until it is there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor


class Reading:
    """Numbers of one step. They are joined on their device, leave it in one piece, and are read a step later.

    What lies in the host's memory is read at once: there is nothing to wait for.
    """

    def __init__(self) -> None:
        self._scalars: dict[_Kind, list[tuple[_Label, Tensor]]] = {}
        self._vectors: dict[_Kind, list[tuple[str, Sequence[str], Tensor]]] = {}
        self._sent: list[tuple[list[_Label], list[tuple[str, Sequence[str]]], Sent]] = []
        self._histograms: list[tuple[str, Sequence[str], Sequence[float], Sent]] = []
        self._plain: list[Row] = []

    def put(self, statistic: str, value: Tensor | float, layer: str = "", finish: Finish | None = None) -> None:
        """Add one number, of a layer or at run level; a tensor must hold one element and need no gradient.

        ``finish`` is applied to the number when it has left the device: what can be reckoned there is not done here.
        """
        if isinstance(value, Tensor):
            if not at_once(value):
                self._scalars.setdefault((value.device, value.dtype), []).append(((statistic, layer, finish), value))
                return
            value = value.item()
        self._plain.append(Row(statistic, (layer,), [float(value if finish is None else finish(value))]))

    def put_row(self, statistic: str, layers: Sequence[str], values: Tensor) -> None:
        """Add one number per layer: ``values`` is a vector."""
        if at_once(values):
            self._plain.append(Row(statistic, layers, values.tolist()))
        else:
            self._vectors.setdefault((values.device, values.dtype), []).append((statistic, layers, values))

    def put_histograms(self, kind: str, layers: Sequence[str], stands_for: Sequence[float], numbers: Tensor) -> None:
        """Add histograms of several layers, see :class:`trainmedic.buckets.Counted`, and start their transfer."""
        self._histograms.append((kind, layers, stands_for, Sent(numbers)))

    def histograms(self) -> list[Counted]:
        """All histograms; waits for those that are still on the way."""
        return [
            Counted(kind, layers, stands_for, numbers.read().cpu().numpy())
            for kind, layers, stands_for, numbers in self._histograms
        ]

    @property
    def calm(self) -> bool:
        """Whether all numbers are here already, and finite: nothing needs to be done about them soon."""
        return not (self._sent or self._scalars or self._vectors) and all(
            math.isfinite(sum(row.values)) for row in self._plain
        )

    def send(self) -> None:
        """Start the transfer of what was added since the last call."""
        if not self._scalars and not self._vectors:
            return
        for kind in {**self._scalars, **self._vectors}:
            scalars, vectors = self._scalars.get(kind, []), self._vectors.get(kind, [])
            pieces = [torch.stack([value.reshape(()) for _, value in scalars])] if scalars else []
            pieces += [values for _, _, values in vectors]
            joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            labels = [label for label, _ in scalars]
            self._sent.append((labels, [(statistic, layers) for statistic, layers, _ in vectors], Sent(joined)))
        self._scalars.clear()
        self._vectors.clear()

    def read(self) -> list[Row]:
        """All numbers; waits for those that are still on the way."""
        self.send()
        result, self._plain = self._plain, []
        for scalars, vectors, joined in self._sent:
            numbers, at = joined.read().tolist(), len(scalars)
            for (statistic, layer, finish), number in zip(scalars, numbers, strict=False):
                result.append(Row(statistic, (layer,), [number if finish is None else finish(number)]))
            for statistic, layers in vectors:
                result.append(Row(statistic, layers, numbers[at : at + len(layers)]))
                at += len(layers)
        self._sent = []
        return result
