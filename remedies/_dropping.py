"""Units dropped at random on their way into a layer."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from trainmedic.remedies._graft import Graft
from trainmedic.remedies.remedy import Undo


class Dropping(Graft):
    """A layer that in training takes its input with a share of it set to zero, and the rest scaled up."""

    parts: ClassVar[tuple[str, ...]] = ("medic_dropped",)
    medic_dropped: float

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(F.dropout(input, self.medic_dropped, self.training), *args, **kwargs)


def raise_all(layers: Sequence[nn.Module], share: float) -> Undo:
    """Set what dropout layers drop; the inverse sets it back."""
    kept = [(layer, vars(layer)["p"]) for layer in layers]

    def undo() -> None:
        for layer, before in kept:
            vars(layer)["p"] = before

    for layer in layers:
        vars(layer)["p"] = share
    return undo
