"""Pull weights towards zero by their absolute values."""

from typing import ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class L1(Remedy):
    """Add the gradient of strength x sum |weight| to that of the loss, right before each step, for matrices only.

    The logged loss stays what it was. The strength is `share` of what the gradients are on the mean, so that a weight
    that the data say little about is pulled to zero, and others hardly.

    Safety: unsafe. It changes the objective.
    Works when: many inputs or units say nothing, and the model learns their noise by heart.
    Does not help: Adam and its kin, where what is added is divided by the size of all gradients (weight-decay).
    Source: Tibshirani 1996, "Regression shrinkage and selection via the lasso".
    """

    treats: ClassVar[tuple[str, ...]] = ("overfitting",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    changes_loss: ClassVar[bool] = True
    share: float = Field(0.1, gt=0, lt=1, description="of the mean |gradient| of the newest measurements")
    strength: float = Field(1e-4, gt=0, description="where gradients were not measured")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._penalty import Lasso

        if any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
            raise Refused("LBFGS computes its gradients inside step(), where nothing can be added to them")
        if any(isinstance(guard, Lasso) for guard in run.guards):
            return None
        strength = self._strength(run)
        return Change(
            remedy=self.name,
            after={"strength": strength},
            summary=f"{strength:.3g} x sum |weight| added to the objective",
            code=f"loss = loss + {strength:.3g} * sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)",
        )

    def _strength(self, run: Run) -> float:
        import numpy as np

        if "gradient_mean_abs" not in run.history:
            return self.strength
        newest = run.history.layers("gradient_mean_abs").values[-20:]
        newest = newest[np.isfinite(newest) & (newest > 0)]
        return self.share * float(np.median(newest)) if newest.size else self.strength

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._penalty import Lasso
        from trainmedic.remedies._rates import install

        return install(run.guards, Lasso(float(change.after["strength"])))
