"""Go back to the last healthy state, and go on from there more carefully."""

from typing import ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import largest, rate_code
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class Rewind(Remedy):
    """Put back weights and optimizer of the last healthy step, and lower the learning rate.

    Clocks go on: the position of the schedule, the step count, the order of the data and random numbers. So the batches
    between that step and now, among them those that broke the run, are skipped, and it goes on with the next ones.
    Rates and their schedule are those of now, times a factor.

    Safety: safe. The weights are those that this run had.
    Works when: the run was well for a while and then was thrown out: by a batch, by a spike, by a rate grown too high.
    Does not help: a run that was ill from the start; data that are not finite, which come again.
    Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.1: restart before the spike, skip its batches.
    """

    treats: ClassVar[tuple[str, ...]] = (
        "non-finite",
        "divergence",
        "loss-spike",
        "exploding-gradient",
        "hidden-non-finite",
        "learning-rate-too-high",
        "loss-scale-collapse",
    )
    safety: ClassVar[Safety] = Safety.SAFE
    rehearsed: ClassVar[bool] = False
    scales_rates: ClassVar[bool] = True
    factor: float = Field(0.3, gt=0, le=1, description="what every rate is multiplied by")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        healthy = run.healthy
        if healthy is None:
            if not run.advising:
                return None
            step = max(finding.step - 1, 0)
        else:
            if healthy.step > finding.step:
                raise Refused(f"the last healthy state is of step {healthy.step}, after {finding.name} began")
            if not healthy.fits(run):
                raise Refused(f"the last healthy state is of step {healthy.step}, before the model was changed")
            if not healthy.finite():
                raise Refused(f"the state kept after step {healthy.step} is not finite")
            step = healthy.step
        before = run.learning_rates()
        after = [rate * self.factor for rate in before]
        return Change(
            remedy=self.name,
            before={"step": run.step, "rates": before},
            after={"step": step, "rates": after},
            summary=f"weights and optimizer put back to step {step}, learning rate lowered from "
            f"{largest(before):.3g} to {largest(after):.3g}",
            code=f'checkpoint = torch.load("step_{step}.pt")\nmodel.load_state_dict(checkpoint["model"])\n'
            f'optimizer.load_state_dict(checkpoint["optimizer"])\n{rate_code(run, self.factor)}',
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._schedulers import scale_rates
        from trainmedic.remedies._state import State

        if run.healthy is None or not run.healthy.fits(run):
            raise Refused("there is no healthy state to go back to")
        before = State.capture(run)
        try:
            run.healthy.restore(run, clocks=False)
            undo_rates = scale_rates(run.optimizers, run.schedulers, self.factor)
        except BaseException:
            before.restore(run, clocks=False)
            raise

        def undo() -> None:
            undo_rates()
            before.restore(run, clocks=False)

        return undo
