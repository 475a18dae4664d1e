"""Draw weights anew."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.history import History, Layer
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Remedy, Undo

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainmedic.remedies.run import Run

LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "NormedLinear", "NormedConv1d", "NormedConv2d", "NormedConv3d")


class Reinitialize(Remedy):
    """Draw the weights of whole layers anew, He-normal before rectifiers and Xavier-normal elsewhere, biases zero.

    Of layers with dead rectifiers those that feed them are drawn; where at most half of the units are dead, only the
    rows of these units, with their outgoing weights set to zero so that the output is what it was. For gradients that
    vanish or explode every layer of the model is drawn. The optimizer's state for what is drawn is cleared. The draw has
    a generator of its own, seeded by the step: the user's random numbers are not touched.

    Safety: unsafe. What the layer had learnt is lost.
    Works when: units are dead, or the weights were drawn too small or too large for the depth.
    Does not help: a learning rate that kills the units again (lower-learning-rate as well).
    Source: He et al. 2015, arXiv:1502.01852; Glorot and Bengio 2010; dead units as in Sokar et al. 2023, arXiv:2302.12902.
    """

    treats: ClassVar = ("dead-relu", "vanishing-gradient", "exploding-gradient", "bad-initialization")
    safety: ClassVar = Safety.UNSAFE

    whole_layer: float = Field(0.5, ge=0, le=1, description="share of dead units from which the whole layer is drawn")

    def propose(self, finding: Finding, run: "Run") -> Change | None:
        targets = self._targets(finding, run)
        if not targets:
            return None
        first = _identifier(next(iter(targets)))
        return Change(
            remedy=self.name,
            target=tuple(targets),
            after=targets,
            summary=f"weights drawn anew: {', '.join(list(targets)[:4])}"
            + (f" and {len(targets) - 4} more" if len(targets) > 4 else ""),
            code=f'nn.init.kaiming_normal_({first}.weight, nonlinearity="relu")\nnn.init.zeros_({first}.bias)',
        )

    def _targets(self, finding: Finding, run: "Run") -> dict[str, dict[str, Any]]:
        """Layers to draw: the gain to draw with, and the dead units, where not the whole layer is drawn."""
        chain = _chain(run.history)
        if finding.name != "dead-relu":
            return {
                layer.name: {"activation": _activation(chain, i)} for i, layer in enumerate(chain) if _draws(layer, run)
            }
        targets: dict[str, dict[str, Any]] = {}
        for rectifier in finding.where:
            feeding = _feeding(chain, rectifier, run.history)
            if feeding is None or not _draws(feeding, run):
                continue
            targets[feeding.name] = {"activation": "relu"}
            mask = run.dead_units(rectifier) if run.dead_units is not None else None
            if mask is not None and 0 < float(mask.float().mean()) <= self.whole_layer:
                targets[feeding.name] |= {"units": mask.nonzero().flatten().tolist(), "next": _after(chain, feeding)}
        return targets

    def apply(self, change: Change, run: "Run") -> Undo:
        import torch

        from trainmedic.remedies._state import State

        live = dict(run.modules())
        generator = torch.Generator().manual_seed(run.step)
        before = State.capture(run)
        try:
            for name, how in change.after.items():
                following = live.get(how["next"]) if how.get("next") else None
                _draw(live[name], how, following, run.optimizers, generator)
        except BaseException:
            before.restore(run)
            raise
        return lambda: before.restore(run, clocks=False)


def _chain(history: History) -> list[Layer]:
    """Modules and functions that ran, in the order of execution."""
    ran = [layer for layer in history.architecture.values() if layer.order >= 0 and layer.kind != "parameter"]
    return sorted(ran, key=lambda layer: (layer.order, layer.kind == "function"))


def _draws(layer: Layer, run: "Run") -> bool:
    return layer.kind in LAYERS and layer.trainable


def _activation(chain: list[Layer], i: int) -> str:
    return next((layer.activation for layer in chain[i + 1 : i + 4] if layer.activation), "linear")


def _feeding(chain: list[Layer], rectifier: str, history: History) -> Layer | None:
    """The last layer with weights that ran before a rectifier."""
    at = next((i for i, layer in enumerate(chain) if layer.name == rectifier), None)
    if at is None:
        return None
    return next((layer for layer in reversed(chain[:at]) if layer.kind in LAYERS), None)


def _after(chain: list[Layer], layer: Layer) -> str | None:
    at = chain.index(layer)
    return next((later.name for later in chain[at + 1 :] if later.kind in LAYERS), None)


def _draw(layer: Any, how: dict[str, Any], following: Any, optimizers: Any, generator: Any) -> None:
    import torch
    from torch import nn

    with torch.no_grad():
        fresh = torch.empty(layer.weight.shape, dtype=torch.float32)
        if how["activation"] in ("relu", "leaky_relu", "gelu", "silu", "elu"):
            nn.init.kaiming_normal_(fresh, nonlinearity="relu", generator=generator)
        else:
            nn.init.xavier_normal_(fresh, generator=generator)
        units = how.get("units")
        rows: Any = slice(None) if units is None else torch.tensor(units)
        layer.weight[rows] = fresh.to(layer.weight)[rows]
        if layer.bias is not None:
            layer.bias[rows] = 0
        for parameter in (layer.weight, layer.bias):
            _clear(parameter, rows, optimizers)
        for columns in _columns(layer, following, units):
            following.weight[:, columns] = 0


def _columns(layer: "nn.Module", following: Any, units: list[int] | None) -> Iterator["Tensor"]:
    """Input positions of the next layer that belong to the drawn units: set to zero, they change no output yet."""
    import torch

    if units is not None and following is not None and following.weight.shape[1] == layer.weight.shape[0]:  # type: ignore[union-attr,index]
        yield torch.tensor(units)


def _clear(parameter: Any, rows: Any, optimizers: Any) -> None:
    """Forget the optimizer's averages of what was drawn: all of them, or those of single rows."""
    for optimizer in optimizers:
        state = optimizer.state.get(parameter)
        if parameter is None or state is None:
            continue
        if isinstance(rows, slice):
            del optimizer.state[parameter]
            continue
        for value in state.values():
            if getattr(value, "shape", None) == parameter.shape:
                value[rows] = 0


def _identifier(name: str) -> str:
    return "model" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split("."))
