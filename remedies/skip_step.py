"""Skip steps whose gradients are not finite."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo

if TYPE_CHECKING:
    from trainmedic.remedies.run import Run


class SkipStep(Remedy):
    """Before each step, drop all gradients of an optimizer if any of them is not finite: the step then does nothing.

    Gradients are set to None, not to zero: zeroed ones still decay the weights and move Adam's averages. After
    `patience` skips in a row it lets go: a run that makes nothing else is not saved by skipping.

    Safety: safe. Touches gradients only, right before the optimizer's step; waits for one flag per step.
    Works when: single batches give NaN or infinity while the weights are sound.
    Does not help: weights that are not finite already, or a loss that stays so (rewind).
    Source: three skips, then other means, is the escalation seen to work in large runs; torch.amp.GradScaler skips alike.
    """

    treats: ClassVar = ("non-finite",)
    safety: ClassVar = Safety.SAFE

    patience: int = Field(3, ge=1, description="skips in a row after which it lets go")

    def propose(self, finding: Finding, run: "Run") -> Change | None:
        if any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
            raise Refused("skip-step: LBFGS makes its gradients inside step()")
        if _spoilt(run, self.patience):
            return None
        return Change(
            remedy=self.name,
            target=("gradient/norm",),
            after=self.patience,
            summary="steps with gradients that are not finite are skipped",
            code="if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):\n"
            "    optimizer.step()",
        )

    def apply(self, change: Change, run: "Run") -> Undo:
        guard = SkipGuard(run, int(change.after))
        run.guards.append(guard)
        return lambda: run.guards.remove(guard)


class SkipGuard:
    """Skips; remembers at which steps in ``skipped``."""

    def __init__(self, run: "Run", patience: int) -> None:
        self.run, self.patience = run, patience
        self.skipped: list[int] = []
        self._in_a_row = 0

    def __call__(self, optimizer: Any) -> None:
        import torch

        from trainmedic.hooks.parameters import dense, norms

        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters or self._in_a_row >= self.patience:
            return
        sizes = norms([dense(parameter.grad) for parameter in parameters], float("inf"))
        if bool(torch.isfinite(torch.stack([size.float().to(sizes[0].device) for size in sizes])).all()):
            self._in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None
        self._in_a_row += 1
        self.skipped.append(self.run.step + 1)


def _spoilt(run: "Run", patience: int) -> bool:
    """Whether weights, or the last few losses, are not finite: then there is nothing left to protect."""
    import torch

    if not all(bool(torch.isfinite(parameter).all()) for _, parameter in run.parameters()):
        return True
    if "train/loss" not in run.history:
        return False
    latest = run.history.series("train/loss").values[-patience:]
    return len(latest) == patience and not bool(np.isfinite(latest).any())
