"""Let rare classes weigh more in the loss."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.label_smoothing import live_criterion
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class ReweightClasses(Remedy):
    """The live criterion hands back gradients in which classes weigh the inverse of their share of the labels seen.

    nn.CrossEntropyLoss and nn.NLLLoss get a weight for each class, nn.BCEWithLogitsLoss one for a yes. Shares are the
    means of those measured in the run; weights have a mean of one over the classes and are at most `most` times the
    smallest. The value of the loss stays the one without them.

    Safety: unsafe. It changes the objective: what is optimised is the mean over classes, not over samples.
    Works when: nearly all samples are of one class, and predictions have collapsed to it.
    Does not help: probabilities, which are those of a world with equal classes then; criteria that are functions; more
    than a hundred classes, whose shares are not measured.
    Source: King and Zeng 2001, "Logistic regression in rare events data"; Cui et al. 2019, arXiv:1901.05555, on the
    bound: what is seen often adds less and less.
    """

    treats: ClassVar[tuple[str, ...]] = ("class-imbalance",)
    safety: ClassVar[Safety] = Safety.UNSAFE
    changes_loss: ClassVar[bool] = True
    raises_loss: ClassVar[bool] = True
    unless_worse: ClassVar[str] = "what it weighs anew cannot be compared with the loss before"
    rehearsed: ClassVar[bool] = False
    most: float = Field(100.0, gt=1, description="largest weight over the smallest")
    uneven: float = Field(2.0, gt=1, description="largest share over the smallest, below which nothing is done")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._criterion import weighable

        weights = self._weights(run)
        if weights is None:
            return None
        criterion = live_criterion(run, "weight=weights")
        if not weighable(criterion) or "medic_weights" in vars(criterion):
            return None
        values = ", ".join(f"{w:.3g}" for w in weights)
        yes = len(weights) == 1
        return Change(
            remedy=self.name,
            target=("loss_fn",),
            after=weights,
            summary=f"a yes weighs {weights[0]:.3g} in the loss" if yes else f"classes weigh {values} in the loss",
            code=f"criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([{values}]))"
            if yes
            else f"criterion = nn.{type(criterion).__name__}(weight=torch.tensor([{values}]))",
        )

    def _weights(self, run: Run) -> list[float] | None:
        """A weight for each class, or one for a yes; ``None`` where shares are not known, or even."""
        history = run.history
        if "label_share" in history:
            table = history.layers("label_share")
            order = np.argsort([int(name) for name in table.layers])
            shares = np.nanmean(table.values, 0)[order].astype(float)
        elif "target/mean" in history and "target/binary" in history:
            if float(history.series("target/binary").values.min()) < 1:
                return None
            yes = float(np.mean(history.series("target/mean").values))
            shares = np.array([1 - yes, yes])
        else:
            return None
        if not np.isfinite(shares).all() or shares.max() <= 0 or shares.max() < self.uneven * shares.min():
            return None
        raw = 1 / np.maximum(shares, shares.max() / self.most)
        if "label_share" not in history:
            return [float(raw[1] / raw[0])]
        return [float(weight) for weight in raw / raw.mean()]

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._criterion import Weighted, weighable
        from trainmedic.remedies._graft import grafted

        criterion = live_criterion(run, "weight")
        if not weighable(criterion):
            raise Refused(f"{type(criterion).__name__} weighs no classes")
        return grafted(criterion, Weighted, {"medic_weights": tuple(map(float, change.after))})
