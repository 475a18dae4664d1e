"""The layers of a run in the order in which they execute, joined with the live modules."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from trainmedic.history import Layer
from trainmedic.hooks.facts import clean
from trainmedic.remedies.run import Run

NORM = "medic_norm"
"""Name under which a layer holds the norm that the medic gave it."""

RECTIFIERS = ("relu", "leaky_relu", "elu", "gelu", "silu", "mish", "softplus")
"""Activations that pass about half of their input on: He's draw keeps the variance through them."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Role(StrEnum):
    """What a layer does in the chain."""

    WEIGHTS = "weights"  # linear layers and convolutions
    RECURRENT = "recurrent"
    NORM = "norm"
    ACTIVATION = "activation"
    OPAQUE = "opaque"  # has parameters of another kind: attention, embeddings, the user's own
    PASSING = "passing"  # dropout, pooling, reshaping


@dataclass(frozen=True)
class Link:
    """One layer in its place. A rectifier called as a function has no module."""

    name: str
    role: Role
    module: nn.Module | None = None
    activation: str | None = None


def modules(run: Run) -> dict[str, nn.Module]:
    """All modules by the names that the history uses."""
    by_name: dict[str, nn.Module] = {}
    for prefix, model in run.named_models():
        for name, module in model.named_modules():
            full = (prefix + clean(name, model)).rstrip(".")
            by_name[full or type(module).__name__] = module
    return by_name


def chains(run: Run) -> list[list[Link]]:
    """Of each model the layers that ran, in the order of execution."""
    architecture, live = run.history.architecture, modules(run)
    placed: list[tuple[int, int, str, Link]] = []
    for name, module in live.items():
        link = _link(name, module, architecture.get(name))
        order = _order(name, module, architecture)
        if link is not None and order >= 0:
            placed.append((order, 1 if name.endswith(f".{NORM}") else 0, name, link))
    for layer in architecture.values():
        if layer.kind == "function" and (owner := layer.name.rpartition(":")[0]) in live:
            order = _order(owner, live[owner], architecture)
            placed.append((order, 2, layer.name, Link(layer.name, Role.ACTIVATION, None, layer.activation)))
    placed.sort(key=lambda place: place[:2])
    several = len(run.models) > 1
    by_model: dict[str, list[Link]] = {}
    for _, _, name, link in placed:
        by_model.setdefault(name.split(".")[0] if several else "", []).append(link)
    return list(by_model.values())


def _order(name: str, module: nn.Module, architecture: dict[str, Layer]) -> int:
    """When a module first ran. One that was given a norm since, and that norm, stand where its weight always stood."""
    owner = name.removesuffix(f".{NORM}")
    weight = architecture.get(f"{owner}.weight")
    if (owner != name or NORM in module._modules) and weight is not None:
        return weight.order
    layer = architecture.get(name)
    return layer.order if layer is not None else -1


def _link(name: str, module: nn.Module, layer: Layer | None) -> Link | None:
    """A module's place in the chain; ``None`` for containers."""
    if isinstance(module, nn.Linear | _ConvNd):
        return Link(name, Role.WEIGHTS, module)
    if layer is None and not name.endswith(f".{NORM}"):
        return None
    if isinstance(module, RECURRENT):
        return Link(name, Role.RECURRENT, module)
    if isinstance(module, NORMS):
        return Link(name, Role.NORM, module)
    if layer is not None and layer.activation is not None:
        return Link(name, Role.ACTIVATION, module, layer.activation)
    has_weights = next(module.parameters(), None) is not None
    return Link(name, Role.OPAQUE if has_weights else Role.PASSING, module)


def until_weights(chain: list[Link], at: int) -> Iterator[Link]:
    """What runs after the layer at position ``at``, up to the next one with weights of any kind."""
    for link in chain[at + 1 :]:
        if link.role in (Role.WEIGHTS, Role.RECURRENT, Role.OPAQUE):
            return
        yield link


def activation_after(chain: list[Link], at: int) -> str | None:
    """The activation that the layer at position ``at`` feeds, where one is known."""
    return next((link.activation for link in until_weights(chain, at) if link.role is Role.ACTIVATION), None)


def transposed(layer: nn.Module) -> bool:
    """Whether a layer's weight has its inputs along the first dimension."""
    return isinstance(layer, _ConvTransposeNd)


def units_of(layer: nn.Module) -> int:
    """How many units a linear layer or convolution has."""
    return int(getattr(layer, "out_features", 0) or getattr(layer, "out_channels", 0))


def as_code(name: str, several: bool) -> str:
    """A layer's name as a user would write it: ``model.fc1``, ``model[0]``, ``models[1].head``."""
    parts = name.split(".")
    root = f"models[{parts.pop(0)}]" if several else "model"
    return root + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
