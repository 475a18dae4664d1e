"""Evaluate an average of the weights of many steps."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class AverageWeights(Remedy):
    """Keep an exponential average of the weights, which the model holds in evaluation mode.

    model.eval() puts the average in, model.train() puts back what training has reached, bit for bit: training does not
    notice. What is saved in evaluation mode are the averaged weights. The average looks back over `share` of the run.
    Statistics of batch norms stay those of training.

    Safety: unsafe. What is evaluated is another point than training has reached.
    Works when: noise of small batches keeps weights moving around a better point.
    Does not help: the training loss itself; a run that still goes somewhere, whose average lags behind; models that are
    trained in evaluation mode.
    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; Izmailov et al. 2018,
    arXiv:1803.05407; the growing decay is that of TensorFlow's ExponentialMovingAverage.
    """

    treats: ClassVar[tuple[str, ...]] = ("noisy-gradient", "loss-oscillation", "overfitting")
    safety: ClassVar[Safety] = Safety.UNSAFE
    share: float = Field(0.05, gt=0, lt=1, description="of the run that the average looks back over")
    most: float = Field(0.9999, gt=0, lt=1, description="decay per step, at most")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._averaging import ShowsAverage
        from trainmedic.remedies._graft import has_graft
        from trainmedic.remedies._surgery import check_models

        if any(has_graft(model, ShowsAverage) for model in run.models):
            return None
        check_models(run)
        self._check(run)
        total = int(run.history.facts.get("total_steps", 0)) or 2 * (run.step + 1)
        decay = float(np.clip(1 - 1 / max(self.share * total, 1), 0.9, self.most))
        return Change(
            remedy=self.name,
            target=("model",),
            after={"decay": decay},
            summary=f"the weights evaluated are an average with a decay of {decay:.4g} per step",
            code="from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn\n"
            f"average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn({decay:.6g}))\n"
            "average.update_parameters(model)  # after each step; evaluate and save average.module",
        )

    def _check(self, run: Run) -> None:
        if run.history.facts.get("trains_in_eval_mode"):
            raise Refused("the model is trained in evaluation mode, in which it would hold the average")
        if any("forward" in vars(model) or "train" in vars(model) for model in run.models):
            raise Refused("forward or train of the model was replaced on the instance")

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._averaging import Average, ShowsAverage
        from trainmedic.remedies._graft import graft, ungraft
        from trainmedic.remedies._surgery import check_models

        check_models(run)
        self._check(run)
        made = [(model, Average(model, float(change.after["decay"]))) for model in run.models]

        def undo() -> None:
            for model, average in made:
                average.show(False)
                ungraft(model, ShowsAverage)
                if average in run.guards:
                    run.guards.remove(average)

        try:
            for model, average in made:
                graft(model, ShowsAverage, {"medic_average": average})
                run.guards.append(average)
        except BaseException:
            undo()
            raise
        return undo
