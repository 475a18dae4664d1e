"""Hand the model's parameters that no optimizer holds to one."""

from typing import TYPE_CHECKING, Any, ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    import torch
    from torch import nn


class AdoptParameters(Remedy):
    """Add trainable parameters that no optimizer holds to the group that holds their neighbours.

    Neighbours are the parameters of the same module, or else of the nearest one around it that has some in a group; the
    first group where there are none. Groups are extended in place, so that schedulers go on as they are.

    Safety: unsafe. Weights begin to move that did not.
    Works when: the optimizer was made before a layer was added or replaced.
    Does not help: parameters that are meant to stay as they are; optimizers that nothing can join (LBFGS, Muon).
    Source: torch's documentation of optimizers: what is trained is what they were given.
    """

    treats: ClassVar[tuple[str, ...]] = ("stale-optimizer",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    replayed: ClassVar[bool] = True

    def propose(self, finding: Finding, run: Run) -> Change | None:
        names = orphans(run)
        if not names:
            return None
        check_joining(run)
        return Change(
            remedy=self.name,
            target=tuple(names),
            summary=f"{len(names)} parameters handed to the optimizer, from {next(iter(names))} on",
            code="held = {id(p) for group in optimizer.param_groups for p in group['params']}\n"
            "optimizer.add_param_group({'params': [p for p in model.parameters() if id(p) not in held]})",
        )

    def apply(self, change: Change, run: Run) -> Undo:
        check_joining(run)
        missing = orphans(run)
        known = dict(run.parameters())
        if gone := [name for name in change.target if name not in known]:
            raise Refused(f"the model has no parameter {gone[0]!r}")
        return adopt(run, {name: missing[name] for name in change.target if name in missing})


def orphans(run: Run) -> "dict[str, nn.Parameter]":
    """Trainable parameters of the models that are in no watched optimizer."""
    held = {id(p) for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in run.parameters() if p.requires_grad and id(p) not in held}


def check_joining(run: Run) -> None:
    """Raise ``Refused`` where parameters cannot begin to train in place."""
    from trainmedic.remedies._surgery import check_models, check_optimizers

    check_models(run)
    check_optimizers(run)
    if len(run.optimizers) > 1:
        raise Refused("there are several optimizers: which one should train it is not known")


def adopt(run: Run, named: "dict[str, nn.Parameter]") -> Undo:
    """Add parameters to the groups of their neighbours, all of them or none."""
    from trainmedic.remedies._graft import join

    undos: list[Undo] = []

    def undo() -> None:
        while undos:
            undos.pop()()

    try:
        for name, parameter in named.items():
            undos.append(join(*_neighbours(name, run), {name: parameter}))
    except BaseException:
        undo()
        raise
    return undo


def _neighbours(name: str, run: Run) -> "tuple[torch.optim.Optimizer, dict[str, Any]]":
    """The group in which most parameters are of the innermost module around this one that has any in a group."""
    optimizer, known = run.optimizers[0], dict(run.parameters())
    around = name.rpartition(".")[0]
    while True:
        near = {id(p) for other, p in known.items() if other != name and (not around or other.startswith(f"{around}."))}
        counts = [sum(id(p) in near for p in group["params"]) for group in optimizer.param_groups]
        if max(counts) or not around:
            return optimizer, optimizer.param_groups[counts.index(max(counts))]
        around = around.rpartition(".")[0]
