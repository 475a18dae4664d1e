"""Bring gradients to the size that the optimizer was made for, as if the loss had been scaled."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adadelta")
"""Optimizers that divide by the size of gradients plus eps."""


class RescaleLoss(Remedy):
    """Multiply all gradients right before the step: a sum over the batch becomes a mean; what eps swallows grows.

    Where the criterion sums over the batch, gradients are divided by the batch size. Where an optimizer that divides by
    the size of gradients gets gradients smaller than its eps, they are raised above it. The logged loss stays the same.
    Gradients that fit are left alone.

    Safety: safe. It touches gradients only; no weight, no state of the optimizer.
    Works when: the reduction of the loss, or its unit, makes gradients far too large or far too small.
    Does not help: gradients that underflow in half precision, which are zero before anything can scale them
    (torch.amp.GradScaler).
    Source: Kingma and Ba 2015, arXiv:1412.6980, section 2: steps do not depend on the scale of gradients, but for eps.
    """

    treats: ClassVar[tuple[str, ...]] = (
        "exploding-gradient",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "slow-convergence",
    )
    safety: ClassVar[Safety] = Safety.SAFE
    above: float = Field(1e3, gt=1, description="mean |gradient| over eps that it is raised to")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._penalty import Rescale

        if any(isinstance(guard, Rescale) for guard in run.guards):
            return None
        kinds = {type(optimizer).__name__ for optimizer in run.optimizers}
        small = finding.name in ("learning-rate-too-low", "slow-convergence")
        factor = self._raise(run, kinds) if small else self._mean(run, kinds)
        if factor is None:
            return None
        if "LBFGS" in kinds:
            raise Refused("LBFGS computes its gradients inside step(), where they cannot be scaled before it")
        return Change(
            remedy=self.name,
            after={"factor": factor},
            summary=f"gradients multiplied by {factor:.3g}, as if the loss had been",
            code=f"(loss * {factor:.3g}).backward()",
        )

    def _mean(self, run: Run, kinds: set[str]) -> float | None:
        """What makes a sum over the batch a mean, where that changes anything."""
        size = int(run.history.facts.get("batch_size", 0))
        summed = getattr(run.loss_fn, "reduction", run.history.facts.get("reduction")) == "sum"
        return 1 / size if summed and size > 1 and not kinds & {*ADAPTIVE, "Rprop"} else None

    def _raise(self, run: Run, kinds: set[str]) -> float | None:
        """What takes gradients well above eps, where they lie below it."""
        if not kinds <= {*ADAPTIVE} or "gradient_mean_abs" not in run.history:
            return None
        eps = max(float(g.get("eps", 0.0)) for o in run.optimizers for g in o.param_groups)
        newest = run.history.layers("gradient_mean_abs").values[-20:]
        newest = newest[np.isfinite(newest) & (newest > 0)]
        usual = float(np.median(newest)) if newest.size else 0.0
        return self.above * eps / usual if 0 < usual < eps else None

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._penalty import Rescale
        from trainmedic.remedies._rates import install

        return install(run.guards, Rescale(float(change.after["factor"])))
