"""Get more samples, or show rare ones more often."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class AddData(Advice):
    """More samples of what is rare or learnt by heart; until there are some, draw rare classes more often.

    Safety: manual. Where data come from is for people to say.
    Works when: a model learns its few samples by heart, or hardly ever sees a class.
    Does not help: labels that are wrong; a model that is too small for what it has.
    Source: Hestness et al. 2017, arXiv:1712.00409 (loss falls with a power of the number of samples); Buda et al.
    2018, arXiv:1710.05381 (oversampling).
    """

    treats: ClassVar[tuple[str, ...]] = ("class-imbalance", "overfitting")
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        if finding.name == "class-imbalance":
            return "rare classes drawn as often as common ones", (
                "counts = torch.bincount(labels)\n"
                "sampler = torch.utils.data.WeightedRandomSampler((1.0 / counts)[labels], num_samples=len(labels))\n"
                "loader = DataLoader(train_set, batch_size=64, sampler=sampler)"
            )
        return "more samples added, if training on half of them is shown to do worse", (
            "half = torch.utils.data.Subset(train_set, range(0, len(train_set), 2))\n"
            "# train on half: if validation is much worse, more data will help as much again"
        )
