"""Changing a live model in place: the user's names stay the live objects, and no key of its state_dict changes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainmedic.remedies.remedy import Refused

if TYPE_CHECKING:
    from trainmedic.remedies.run import Run

NORM = "medic_norm"
"""Name under which a normed layer holds its norm: the only key that is new in its state_dict."""

WITHOUT_JOINING = ("LBFGS", "Muon")
"""Optimizers whose state runs over all their parameters at once, or that take matrices only: none can join later."""


class _Normed(nn.Module):
    """A layer whose output is normalised per unit before it is handed on.

    An instance's class is exchanged for a subclass of its own, so that names, keys, ``isinstance``, copies and pickles
    stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layer, then the norm; the last dimension of a sequence is its units."""
        output: Tensor = super().forward(x)  # type: ignore[misc]
        norm: nn.Module = getattr(self, NORM)
        if isinstance(norm, nn.BatchNorm1d) and isinstance(self, nn.Linear) and output.ndim > 2:
            normed: Tensor = norm(output.reshape(-1, output.shape[-1]))
            return normed.reshape(output.shape)
        result: Tensor = norm(output)
        return result


class NormedLinear(_Normed, nn.Linear):
    """A linear layer with a batch norm."""


class NormedConv1d(_Normed, nn.Conv1d):
    """A convolution with a batch norm."""


class NormedConv2d(_Normed, nn.Conv2d):
    """A convolution with a batch norm."""


class NormedConv3d(_Normed, nn.Conv3d):
    """A convolution with a batch norm."""


NORMED: dict[type[nn.Module], tuple[type[nn.Module], type[nn.Module]]] = {
    nn.Linear: (NormedLinear, nn.BatchNorm1d),
    nn.Conv1d: (NormedConv1d, nn.BatchNorm1d),
    nn.Conv2d: (NormedConv2d, nn.BatchNorm2d),
    nn.Conv3d: (NormedConv3d, nn.BatchNorm3d),
}


def check_surgery(run: "Run") -> None:
    """Raise ``Refused`` where modules cannot be changed in place safely."""
    for _, module in run.modules():
        kind = type(module).__name__
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise Refused(
                "the model is compiled: its code is fixed; build the norms into the model before torch.compile"
            )
        if kind in ("DistributedDataParallel", "FullyShardedDataParallel") or "FSDP" in kind:
            raise Refused(f"the model is wrapped in {kind}, which has taken stock of its parameters already")
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused("the model is scripted: its code is fixed")
    for optimizer in run.optimizers:
        kind = type(optimizer).__name__
        if kind in WITHOUT_JOINING or not type(optimizer).__module__.startswith("torch.optim"):
            raise Refused(f"new parameters cannot join {kind} while it runs")


def add_norm(layer: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Callable[[], None]:
    """Give a layer a batch norm, whose parameters join the group that holds the layer's weight; returns the inverse."""
    original = type(layer)
    normed, kind = NORMED[original]
    weight: Tensor = layer.weight  # type: ignore[assignment]
    units = weight.shape[0]
    norm: Any = kind(units, device=weight.device, dtype=weight.dtype)  # type: ignore[call-arg]
    norm.train(layer.training)
    home = next(((o, g) for o in optimizers for g in o.param_groups for p in g["params"] if p is weight), None)
    layer.add_module(NORM, norm)
    layer.__class__ = normed
    if home is not None:
        home[1]["params"].extend(norm.parameters())

    def undo() -> None:
        layer.__class__ = original
        del layer._modules[NORM]
        if home is not None:
            own = {id(parameter) for parameter in norm.parameters()}
            home[1]["params"][:] = [p for p in home[1]["params"] if id(p) not in own]
            for parameter in norm.parameters():
                home[0].state.pop(parameter, None)

    return undo
