"""Let the signal go around layers that keep its shape."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from torch import nn


class InsertResidual(Remedy):
    """In each nn.Sequential, however deep in the model, x becomes x + f(x) / sqrt(n) around layers that keep its shape.

    f is one linear layer or convolution with the norm and the activation after it; n counts them, so that the signal
    grows by no more than e over all. The containers change their class in place: nothing is renamed, nothing is added
    to the state_dict, and modules stay where they are.

    Safety: unsafe. It changes what the model computes, at once.
    Works when: a deep stack of equal layers lets hardly any gradient through to its first ones.
    Does not help: layers that change the shape; models that are not made of nn.Sequential, whose forward method only
    the code can change; stacks that are residual already.
    Source: He et al. 2016, arXiv:1512.03385; 1 / sqrt(n): Hayou et al. 2021, arXiv:2010.12859.
    """

    treats: ClassVar[tuple[str, ...]] = ("vanishing-gradient",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True
    least: int = Field(2, ge=1, description="layers that a way around must be found for")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._surgery import check_models

        check_models(run)
        found = {name: skips for name, module in run.modules() if (skips := _skips(module))}
        count = sum(map(len, found.values()))
        if count < self.least:
            deep = sum(1 for _, module in run.modules() if _weighs(module))
            if deep <= self.least:
                return None
            raise Refused(
                f"{count} layer(s) of an nn.Sequential keep the shape of their input: at least {self.least} needed"
            )
        return Change(
            remedy=self.name,
            target=tuple(found),
            after={"skips": {name: list(map(list, skips)) for name, skips in found.items()}, "scale": count**-0.5},
            summary=f"a way around each of {count} layers that keep the shape of their input",
            code="class Residual(nn.Sequential):\n"
            f"    def forward(self, x):\n        return x + super().forward(x) * {count**-0.5:.3g}\n\n\n"
            "block = Residual(nn.Linear(width, width), nn.ReLU())  # in place of the two layers by themselves",
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from torch import nn

        from trainmedic.remedies._layers import modules
        from trainmedic.remedies._skipping import Skipping
        from trainmedic.remedies._surgery import check_models, graft_all

        check_models(run)
        live = {name.rstrip("."): module for name, module in modules(run).items()} | dict(run.modules())
        skips, scale = change.after["skips"], float(change.after["scale"])
        for name in change.target:
            inner = {child for child, _ in live[name].named_children()} if name in live else set()
            if not isinstance(live.get(name), nn.Sequential) or not {n for pair in skips[name] for n in pair} <= inner:
                raise Refused(f"there is no nn.Sequential named {name!r} with these layers")
        undos: list[Undo] = []

        def undo() -> None:
            while undos:
                undos.pop()()

        try:
            for name in change.target:
                parts = {"medic_skips": tuple(map(tuple, skips[name])), "medic_scale": scale}
                undos.append(graft_all(run, [name], live, Skipping, lambda _, parts=parts: parts))  # type: ignore[misc]
        except BaseException:
            undo()
            raise
        return undo


def _skips(container: "nn.Module") -> list[tuple[str, str]]:
    """(first, last) of the layers of a plain ``nn.Sequential`` that a way can lead around."""
    from torch import nn

    from trainmedic.hooks.activations import ACTIVATIONS
    from trainmedic.remedies._layers import NORMS
    from trainmedic.remedies._skipping import keeps_shape

    if type(container) is not nn.Sequential or "forward" in vars(container):
        return []
    found: list[tuple[str, str]] = []
    start: str | None = None
    for name, module in container.named_children():
        if _weighs(module):
            start = name if keeps_shape(module) else None
        elif type(module) in ACTIVATIONS and start is not None:
            found.append((start, name))
            start = None
        elif not isinstance(module, NORMS):
            start = None
    return found


def _weighs(module: "nn.Module") -> bool:
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    return isinstance(module, nn.Linear | _ConvNd)
