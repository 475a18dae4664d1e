"""Raise the learning rate of every parameter group."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import largest, rate_code, rate_names, refuse_rprop, shape_of
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run
from trainmedic.remedies.schedule_learning_rate import brought_down


class RaiseLearningRate(Remedy):
    """Multiply the learning rate of every parameter group, and all that its schedulers compute rates from, by a factor.

    The factor takes what a step moves the weights by, measured on this run, to a thousandth of their size: at least
    `least_factor`, at most `most_factor`. Where that was not measured it is the least one. Nothing is proposed where a
    step moves them by more already, or where the gradients leave their own past. All that lower-learning-rate says of
    schedulers holds here too.

    Safety: safe. It touches no weight; undone at once, the rates are exactly what they were.
    Works when: steps are so small that the run would not get anywhere in its time.
    Does not help: a rate of zero, which a scheduler sets anew at each step; gradients that vanish; Rprop.
    Source: Bengio 2012, arXiv:1206.5533, section 3.1.1 (the best rate is within a factor of two of the largest that
    does not diverge); updates of about a thousandth of the weights: Karpathy, CS231n notes, "Ratio of weights:updates".
    """

    treats: ClassVar[tuple[str, ...]] = (
        "learning-rate-too-low",
        "slow-convergence",
        "scheduler-misuse",
        "plateau",
        "not-learning",
        "unnormalized-input",
    )
    safety: ClassVar[Safety] = Safety.SAFE
    scales_rates: ClassVar[bool] = True
    target: float = Field(1e-3, gt=0, lt=1, description="update over weight, median of the layers, to be reached")
    least_factor: float = Field(3.0, gt=1, description="what every rate is multiplied by at least")
    most_factor: float = Field(100.0, gt=1, description="and at most, whatever was measured")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        refuse_rprop(run)
        if finding.name == "unnormalized-input" and any(where.startswith("input/") for where in finding.where):
            return None
        before = run.learning_rates()
        factor = self._factor(finding, run)
        if factor is None:
            return None
        if not any(rate > 0 for rate in before):
            raise Refused("the learning rate is zero: there is nothing to multiply")
        after = [rate * factor for rate in before]
        return Change(
            remedy=self.name,
            target=rate_names(run),
            before=before,
            after=after,
            summary=f"learning rate raised from {largest(before):.3g} to {largest(after):.3g}",
            code=rate_code(run, factor),
        )

    @classmethod
    def waits(cls, finding: Finding, run: Run) -> bool:
        return brought_down(finding, run)

    def _factor(self, finding: Finding, run: Run) -> float | None:
        """By what to multiply; ``None`` where steps are large enough already."""
        pace = _pace(run)
        if pace is None:
            return self.least_factor if finding.name in self.treats[:3] else None
        if pace * self.least_factor > self.target:
            return None
        return float(np.clip(self.target / max(pace, 1e-30), self.least_factor, self.most_factor))

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._schedulers import scale_rates

        refuse_rprop(run)
        factor = next(new / old for old, new in zip(change.before, change.after, strict=True) if old)
        return scale_rates(run.optimizers, run.schedulers, float(factor))


def _pace(run: Run) -> float | None:
    """|update| / |weight| of the newest ten measurements: median over the weight matrices; ``None`` if not measured."""
    if "update_ratio" not in run.history:
        return None
    table = run.history.layers("update_ratio")
    matrices = [i for i, name in enumerate(table.layers) if len(shape_of(run, name)) != 1]
    newest = table.values[-10:, matrices] if matrices else table.values[-10:]
    measured = newest[np.isfinite(newest)]
    return float(np.median(measured)) if measured.size else None
