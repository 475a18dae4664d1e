"""Measure which learning rate lowers the loss, and take that."""

from typing import ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import (
    BY_STEPS,
    FEW,
    by_steps,
    largest,
    rate_names,
    refuse_rprop,
    settles_late,
    torn_by,
)
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run
from trainmedic.remedies.schedule_learning_rate import brought_down, driven_up

TOO_LOW = ("learning-rate-too-low", "unnormalized-input", "slow-convergence")
TOO_HIGH = ("learning-rate-too-high", "loss-oscillation", *BY_STEPS)
"""Illnesses that a rate can only be too low for, or too high."""


class FindLearningRate(Remedy):
    """A range test: steps on kept batches, from the present state, with a rate that grows by the same share each step.

    It runs from `low` to `high` times the present rate, or until the smoothed loss is `blow_up` times its best. The
    rate taken is a tenth of the one at which that was lowest, and where steps are too large no more than moves most
    matrices by `pace` of their size. Everything is put back afterwards, bit for bit. Nothing is proposed where the rate
    would change by less than `least`, or not in the direction that was found wrong.

    Safety: safe. It touches no weight; undone at once, the rates are exactly what they were.
    Works when: the rate is orders away from a good one, whichever way.
    Does not help: where the medic cannot take steps by itself (pass loss_fn or step_fn, and use medic.batches); batches
    so few that they are learnt by heart at once; Rprop.
    Source: Smith 2017, arXiv:1506.01186, section 3.3; a tenth of the minimum, and stopping at four times the best loss:
    fastai's lr_find (Howard and Gugger 2020, arXiv:2002.04688).
    """

    treats: ClassVar[tuple[str, ...]] = (
        "learning-rate-too-low",
        "learning-rate-too-high",
        "slow-convergence",
        "not-learning",
        "plateau",
        "loss-oscillation",
        "unnormalized-input",
        "collapsed-output",
        "dead-relu",
        "saturated-activation",
    )
    safety: ClassVar[Safety] = Safety.SAFE
    scales_rates: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    steps: int = Field(80, ge=20, description="of the whole sweep")
    low: float = Field(1e-3, gt=0, lt=1, description="share of the present rate that it begins with")
    high: float = Field(1e4, gt=1, description="times the present rate that it ends with")
    smoothing: float = Field(0.9, ge=0, lt=1, description="decay per step of the average of losses")
    blow_up: float = Field(4.0, gt=1, description="smoothed loss over its best, at which the sweep ends")
    pace: float = Field(0.01, gt=0, lt=1, description="update over weight to stay below, where steps were too large")
    least: float = Field(2.0, gt=1, description="change of the rate that is worth it")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        refuse_rprop(run)
        if (run.rehearsal is None and not run.advising) or (finding.name in BY_STEPS and not by_steps(finding, run)):
            return None
        if finding.name == "unnormalized-input" and any(where.startswith("input/") for where in finding.where):
            return None
        before = run.learning_rates()
        if not any(rate > 0 for rate in before):
            raise Refused("the learning rate is zero: there is nothing to multiply")
        low, high = self.low * largest(before), self.high * largest(before)
        return Change(
            remedy=self.name,
            target=rate_names(run),
            before=before,
            after={"illness": finding.name, "most": self._bearable(finding, run)},
            summary="learning rate taken from a range test",
            code=f"# a range test: the rate grows from {low:.2g} to {high:.2g}, one batch a step\n"
            f"for i, (x, y) in zip(range({self.steps}), loader):\n"
            "    for group in optimizer.param_groups:\n"
            f'        group["lr"] = {low:.2g} * {self.high / self.low:.2g} ** (i / {self.steps})\n'
            "    loss = train_step(x, y)  # take a tenth of the rate at which it is lowest, and load the weights again",
        )

    def _bearable(self, finding: Finding, run: Run) -> float:
        """Factor of the rate at which the steps of a run that is too fast move weights by `pace` of their size."""
        torn = torn_by(run, finding.step - FEW) if finding.name in TOO_HIGH else 0.0
        return self.pace / torn if torn else self.high

    @classmethod
    def waits(cls, finding: Finding, run: Run) -> bool:
        return settles_late(finding, run) or brought_down(finding, run) or driven_up(finding, run)

    def measure(self, change: Change, run: Run) -> Change | None:
        rehearsal = run.rehearsal
        if rehearsal is None or not rehearsal.ready:
            raise Refused("the medic cannot take steps by itself: pass loss_fn or step_fn, and use medic.batches")
        factor = min(self._sweep(run, list(change.before)), float(change.after["most"]))
        wrong_way = factor < 1 if change.after["illness"] in TOO_LOW else factor > 1
        if max(factor, 1 / factor) < self.least or (wrong_way and change.after["illness"] in (*TOO_LOW, *TOO_HIGH)):
            return None
        after = [rate * factor for rate in change.before]
        told = f"learning rate set from {largest(change.before):.3g} to {largest(after):.3g} by a range test"
        return change.model_copy(
            update={
                "after": after,
                "summary": told,
                "code": f'optimizer.param_groups[0]["lr"] = {after[0]:.3g}  # from a range test',
            }
        )

    def _sweep(self, run: Run, rates: list[float]) -> float:
        """By what to multiply the rates; leaves no trace."""
        from trainmedic.remedies._rates import set_rate

        rehearsal = run.rehearsal
        assert rehearsal is not None
        groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
        best, at, average = float("inf"), 1.0, 0.0
        with rehearsal.quietly():
            for step in range(self.steps):
                factor = self.low * (self.high / self.low) ** (step / (self.steps - 1))
                for group, rate in zip(groups, rates, strict=True):
                    set_rate(group, rate * factor)
                average = self.smoothing * average + (1 - self.smoothing) * rehearsal.step(step)
                loss = average / (1 - self.smoothing ** (step + 1))
                if not loss < max(self.blow_up * best, best + abs(best)):  # also where it is not a number
                    break
                if loss < best:
                    best, at = loss, factor
        return at / 10

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._schedulers import scale_rates

        refuse_rprop(run)
        if not isinstance(change.after, list):
            raise Refused("the rate was not measured")
        factor = next(new / old for old, new in zip(change.before, change.after, strict=True) if old)
        return scale_rates(run.optimizers, run.schedulers, float(factor))
