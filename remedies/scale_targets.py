"""Train on targets of mean 0 and deviation 1, and scale predictions back."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class ScaleTargets(Advice):
    """Targets are brought to unit scale before the loss, predictions back after the model.

    Safety: manual. What is predicted changes its unit, everywhere that it is used.
    Works when: a regression has to walk to targets far from its first outputs.
    Does not help: classes; losses that are relative already.
    Source: LeCun et al. 1998, "Efficient BackProp", section 4.5 (targets within the range of the output).
    """

    treats: ClassVar[tuple[str, ...]] = ("unnormalized-input",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        if not any(where.startswith("target/") for where in finding.where):
            return None
        return "targets scaled to mean 0 and deviation 1", (
            f"mean, std = {_newest(run, 'mean')}, {_newest(run, 'std')}\n"
            "loss = criterion(model(x), (y - mean) / std)\n"
            "prediction = model(x) * std + mean"
        )


def _newest(run: Run, statistic: str) -> str:
    """A measured number as code, or what computes it."""
    if f"target/{statistic}" in run.history:
        return f"{run.history.series(f'target/{statistic}').values[-1]:.4g}"
    return f"y_train.{statistic}()"
