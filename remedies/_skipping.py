"""Ways around layers of an ``nn.Sequential``."""

from typing import Any, ClassVar

from torch import nn

from trainmedic.remedies._graft import Graft


class Skipping(Graft):
    """An ``nn.Sequential`` that adds what goes into some of its parts to what comes out of them.

    ``medic_skips``: (name of the first layer, name of the last one) of each; what comes out counts ``medic_scale``.
    """

    parts: ClassVar[tuple[str, ...]] = ("medic_skips", "medic_scale")
    medic_skips: tuple[tuple[str, str], ...]
    medic_scale: float

    def forward(self, input: Any) -> Any:
        first, taken = dict(self.medic_skips), input
        before, until = None, None
        for name, module in self._modules.items():
            if name in first:
                before, until = taken, first[name]
            assert module is not None
            taken = module(taken)
            if name == until:
                taken, until = before + self.medic_scale * taken, None
        return taken


def keeps_shape(layer: nn.Module | None) -> bool:
    """Whether a linear layer or convolution puts out as many units and places as it takes in."""
    if isinstance(layer, nn.Linear):
        return layer.in_features == layer.out_features
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) or layer.in_channels != layer.out_channels:
        return False
    if layer.padding == "same":
        return True
    if isinstance(layer.padding, str):
        return False
    sizes = zip(layer.kernel_size, layer.stride, layer.dilation, layer.padding, strict=False)
    return all(s == 1 and 2 * p == d * (k - 1) for k, s, d, p in sizes)
