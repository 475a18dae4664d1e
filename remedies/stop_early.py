"""Stop the run, with the best monitored state in the model."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class StopEarly(Remedy):
    """Put back the state with the best monitored value, and tell the training loop to stop.

    Safety: safe. The weights are those that this run had when its monitored value was best. Nothing happens before
    the loop asks whether to stop.
    Works when: validation has got worse for a while as training got better; what was learnt since is noise.
    Does not help: a run whose best is not good enough: that takes more data, regularisation or a smaller model. Nothing
    is proposed against overfitting where the monitored value was at its best less than `waits_for` looks ago.
    Source: Prechelt 1998, Early Stopping - But When?, doi:10.1007/3-540-49430-8_3.
    """

    treats: ClassVar[tuple[str, ...]] = ("overfitting", "divergence")
    safety: ClassVar[Safety] = Safety.SAFE
    rehearsed: ClassVar[bool] = False
    ends_the_run: ClassVar[bool] = True
    waits_for: int = Field(2, ge=1, description="looks at the monitored value since its best, before it is past it")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        step = run.best.step if run.best is not None else _best_step(run) if run.advising else None
        if step is None or (finding.name == "overfitting" and _looks_since(run, step) < self.waits_for):
            return None
        if run.best is not None and not run.best.fits(run):
            raise Refused(f"the best state is of step {step}, before the model was changed")
        monitor = run.history.facts.get("monitor", "validation/loss")
        return Change(
            remedy=self.name,
            before={"step": run.step},
            after={"step": step},
            summary=f"the run stopped with the state of step {step}, the best {monitor}",
            code='model.load_state_dict(torch.load("best.pt"))  # saved whenever validation was best so far\nbreak',
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._state import State

        best = run.best
        if best is None or not best.fits(run):
            raise Refused("there is no best state to go back to")
        before, asked = State.capture(run), run.stop_requested

        def undo() -> None:
            before.restore(run, clocks=False)
            run.stop_requested = asked

        try:
            best.restore(run, clocks=False)
            run.stop_requested = True
        except BaseException:
            undo()
            raise
        return undo


def _looks_since(run: Run, step: int) -> float:
    """Monitored values after a step; infinitely many where they are not recorded."""
    monitor = run.history.facts.get("monitor", "validation/loss")
    if monitor not in run.history:
        return float("inf")
    return int(np.sum(run.history.series(monitor).steps > step))


def _best_step(run: Run) -> int | None:
    """The step of the best monitored value on record, where no state was kept."""
    facts: dict[str, Any] = run.history.facts
    monitor = facts.get("monitor", "validation/loss")
    if monitor not in run.history:
        return None
    steps, values = run.history.series(monitor)
    finite = np.isfinite(values)
    if not finite.any():
        return None
    best = np.argmin if facts.get("mode", "min") == "min" else np.argmax
    return int(steps[finite][best(values[finite])])
