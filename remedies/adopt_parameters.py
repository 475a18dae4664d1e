"""Hand the model's parameters that no optimizer holds to one."""

import functools
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

    Neighbours are the parameters of the same module, or else of the nearest one around it that has some in a group; of
    several that which comes next in order. Groups are extended in place, so that schedulers go on as they are.

    Safety: unsafe. Weights begin to move that did not.
    Works when: the optimizer was made before a layer was added or replaced.
    Does not help: parameters that are meant to stay as they are; optimizers that nothing can join (LBFGS, Muon).
    Source: torch's documentation of optimizers: what is trained is what they were given.
    """

    treats: ClassVar[tuple[str, ...]] = ("stale-optimizer",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    unless_worse: ClassVar[str] = "parameters that no optimizer holds are wrong whatever the loss says"
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
    from trainmedic.remedies._graft import join, leave

    undos: list[Undo] = []

    def undo() -> None:
        while undos:
            undos.pop()()

    try:
        for name, parameter in (named if run.optimizers else {}).items():
            optimizer, group = _neighbours(name, run)
            undos.append(functools.partial(leave, optimizer, [parameter]))
            join(group, {name: parameter})
    except BaseException:
        undo()
        raise
    return undo


def _neighbours(name: str, run: Run) -> "tuple[torch.optim.Optimizer, dict[str, Any]]":
    """The group of the nearest parameter in the innermost module around this one that has any in a group."""
    optimizer, known = run.optimizers[0], dict(run.parameters())
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = list(known)
    at = names.index(name)
    nearest = sorted((abs(i - at), other) for i, other in enumerate(names) if id(known[other]) in group_of)
    around = name
    while around:
        around = around.rpartition(".")[0]
        for _, other in nearest:
            if not around or other.startswith(f"{around}."):
                return optimizer, group_of[id(known[other])]
    return optimizer, optimizer.param_groups[0]
