"""Switch between training and evaluation where the loop does."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice, evidence
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class SetTrainMode(Advice):
    """model.train() before each epoch of training, model.eval() and no_grad around validation.

    Safety: manual. Where the loop trains and where it evaluates is for people to say.
    Works when: batch norms normalise by running statistics in training, or by batches in validation.
    Does not help: batches too small for their statistics, unless a norm that needs no batch takes their place.
    Source: torch's documentation of nn.Module.train and nn.BatchNorm2d; Wu and He 2018, arXiv:1803.08494 (group
    norm).
    """

    treats: ClassVar[tuple[str, ...]] = ("batchnorm-misuse",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        if evidence(finding, "values per channel") is not None:
            return "batch norms replaced by group norms, which need no batch", (
                "norm = nn.GroupNorm(num_groups=8, num_channels=channels)  # in place of nn.BatchNorm2d(channels)"
            )
        return "modes set where the loop changes between training and validation", (
            "model.train()  # before each epoch\n...\n"
            "model.eval()  # before validation\nwith torch.no_grad():\n    validate(model)"
        )
