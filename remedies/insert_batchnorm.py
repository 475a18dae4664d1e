"""Insert a batch norm before each activation."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.history import History, Layer
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo

if TYPE_CHECKING:
    from trainmedic.remedies.run import Run

LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d")
NORMS = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")


class InsertBatchnorm(Remedy):
    """Give each linear layer and convolution that feeds an activation a batch norm between the two.

    The model changes in place: the norm becomes the child `medic_norm` of the layer, all names and keys stay, new ones
    are added, and the norm's parameters join the optimizer's group that holds the layer's weight.

    Safety: unsafe. Changes the architecture and what the model computes, at once.
    Works when: signals or gradients shrink or grow from layer to layer.
    Does not help: batches of one or two samples; recurrent layers; a model that is normalised already.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    """

    treats: ClassVar = ("vanishing-gradient", "exploding-gradient", "bad-initialization")
    safety: ClassVar = Safety.UNSAFE

    least_layers: int = Field(2, ge=1, description="layers to norm below which there is nothing to do")
    least_batch: int = Field(4, ge=2, description="samples in a batch below which its statistics are noise")

    def propose(self, finding: Finding, run: "Run") -> Change | None:
        from trainmedic.remedies._surgery import check_surgery

        if int(run.history.facts.get("batch_size", self.least_batch)) < self.least_batch:
            return None
        targets = self._targets(run)
        if len(targets) < self.least_layers:
            return None
        check_surgery(run)
        first = targets[0]
        return Change(
            remedy=self.name,
            target=tuple(targets),
            after="batch norm before the activation",
            summary=f"a batch norm inserted after {first} and {len(targets) - 1} more layers, before their activations",
            code=f"# in the model's __init__, and in forward between the layer and its activation, for {_listed(targets)}:\n"
            f"{_identifier(first)}_norm = nn.BatchNorm1d({_identifier(first)}.out_features)  # BatchNorm2d after Conv2d",
        )

    def _targets(self, run: "Run") -> list[str]:
        """Layers that feed an activation or another layer without a norm in between: not the last one of a model."""
        live = dict(run.modules())
        times = Counter(id(module) for _, model in run.named_models() for module in _all_places(model))
        targets = []
        for chain in _chains(run.history):
            for layer, following in zip(chain, chain[1:], strict=False):
                module = live.get(layer.name)
                if layer.kind in LAYERS and type(module).__name__ == layer.kind and not _is_norm(following):
                    if times[id(module)] > 1:
                        raise Refused(f"insert-batchnorm: {layer.name} stands in several places of the model")
                    targets.append(layer.name)
        return targets

    def apply(self, change: Change, run: "Run") -> Undo:
        from trainmedic.remedies._surgery import add_norm, check_surgery

        check_surgery(run)
        live = dict(run.modules())
        missing = [name for name in change.target if type(live.get(name)).__name__ not in LAYERS]
        if missing:
            raise Refused(f"insert-batchnorm: no plain layer named {missing[0]}")
        undos: list[Undo] = []

        def undo() -> None:
            while undos:
                undos.pop()()

        try:
            for name in change.target:
                undos.append(add_norm(live[name], run.optimizers))
        except BaseException:
            undo()
            raise
        return undo


def _chains(history: History) -> list[list[Layer]]:
    """Modules that ran, in the order of execution, one list per model, each without its output layer and what follows."""
    several = int(history.facts.get("models", 1)) > 1
    chains: dict[str, list[Layer]] = {}
    for layer in sorted(history.architecture.values(), key=lambda layer: layer.order):
        if layer.order >= 0 and layer.kind not in ("parameter", "function"):
            chains.setdefault(layer.name.split(".")[0] if several else "", []).append(layer)
    for chain in chains.values():
        last = max((i for i, layer in enumerate(chain) if layer.kind in LAYERS), default=0)
        del chain[last + 1 :]  # the output layer stays as the end of the chain, and is never a target itself
    return list(chains.values())


def _is_norm(layer: Layer) -> bool:
    return layer.kind.startswith(NORMS)


def _all_places(model: object) -> Iterable[object]:
    """Every place in a model that holds a module; a shared module comes up several times."""
    from torch import nn

    assert isinstance(model, nn.Module)
    return [child for module in model.modules() for child in module._modules.values() if child is not None]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _identifier(name: str) -> str:
    """A layer's name as code: ``model.fc1``, ``model[0]``."""
    parts = name.split(".")
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts)
