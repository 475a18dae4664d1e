"""Give validation the same data path as training."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class MatchValidation(Advice):
    """Compare what the model is fed in training and in validation, sample by sample.

    Safety: manual. Which of the two is right is for people to say.
    Works when: validation stays far from training, though training has learnt the task.
    Does not help: overfitting, which comes later and slowly.
    Source: Kaufman et al. 2012, "Leakage in data mining"; Northcutt et al. 2021, arXiv:2103.14749.
    """

    treats: ClassVar[tuple[str, ...]] = ("validation-mismatch",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        return "what training and validation are fed compared", (
            "for name, loader in (('train', train_loader), ('validation', val_loader)):\n"
            "    x, y = next(iter(loader))\n"
            "    print(name, x.shape, x.float().mean(), x.float().std(), torch.bincount(y.flatten())[:20])\n"
            "# and the training set through the validation loop: validate(model, train_loader) must be near training"
        )
