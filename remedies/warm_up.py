"""Let the learning rate rise from nearly nothing, over the first steps from here."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import refuse_rprop, settles_late
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class WarmUp(Remedy):
    """Multiply every learning rate by 1/n, 2/n ... 1 in the next n steps.

    Only the optimizer sees the smaller rates, for the time of its step: the schedule there is, of whatever kind, goes
    on as it was, and the warm-up lies over it. n is 2 / (1 - beta2) for Adam and its kin and `steps` for others, but at
    most `share` of the run.

    Safety: safe. It touches no weight, and the rates in the groups are what they were between any two steps.
    Works when: the run is thrown out in its first steps, while averages of gradients are young and curvature is large.
    Does not help: a rate that is too high for the whole run (lower-learning-rate); Rprop.
    Source: Ma and Yarats 2021, arXiv:1910.04209, section 4 (linear, 2 / (1 - beta2) steps); Goyal et al. 2017,
    arXiv:1706.02677, section 2.2 (for SGD, over the first epochs).
    """

    treats: ClassVar[tuple[str, ...]] = ("learning-rate-too-high", "exploding-gradient", "divergence", "loss-spike")
    safety: ClassVar[Safety] = Safety.SAFE
    steps: int = Field(1000, ge=1, description="of an optimizer that keeps no average of squares")
    share: float = Field(0.1, gt=0, le=0.5, description="of the run that it may take, and in which it can be of use")
    least: int = Field(10, ge=2, description="steps, however short the run")

    @classmethod
    def waits(cls, finding: Finding, run: Run) -> bool:
        return settles_late(finding, run)

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._rates import Envelope

        refuse_rprop(run)
        if any(type(optimizer).__name__ == "ASGD" for optimizer in run.optimizers):
            raise Refused("ASGD computes each step's rate one step before")
        total = int(run.history.facts.get("total_steps", 0))
        early = max(self.share * total, 10 * self.least if not total else self.least)
        if finding.step > early or _rising(run, finding.step) or any(isinstance(g, Envelope) for g in run.guards):
            return None
        length = self._length(run, total or max(10 * self.steps, run.step))
        return Change(
            remedy=self.name,
            after={"steps": length},
            summary=f"learning rate warmed up over {length} steps",
            code=f"warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / {length}, total_iters={length})\n"
            "warm_up.step()  # after each optimizer.step()",
        )

    def _length(self, run: Run, total: int) -> int:
        betas = [g["betas"][1] for o in run.optimizers for g in o.param_groups if isinstance(g.get("betas"), tuple)]
        wanted = round(2 / max(1 - float(max(betas)), 1e-6)) if betas else self.steps
        return int(np.clip(wanted, self.least, max(self.least, self.share * total)))

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._rates import Envelope, install, warm_up

        length = int(change.after["steps"])
        guard = Envelope(warm_up(length), length)
        return install(run.guards, guard)


def _rising(run: Run, step: int) -> bool:
    """Whether the schedule was warming up by itself when it happened."""
    if "optimizer/learning_rate" not in run.history:
        return False
    steps, rates = run.history.series("optimizer/learning_rate")
    rates = rates[steps <= step]
    return len(rates) > 2 and bool(rates[-1] > rates[0])
