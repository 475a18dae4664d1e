"""Look at the samples that the model finds hardest, and mend their labels."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class FixLabels(Advice):
    """List the training samples with the largest loss, and look at them: wrong labels gather there.

    Safety: manual. What is true is for people to say.
    Works when: some labels are wrong, shuffled against their inputs, or of another set.
    Does not help: samples that are hard and right.
    Source: Northcutt et al. 2021, arXiv:1911.00068 (confident learning); Arpit et al. 2017, arXiv:1706.05394 (clean
    samples are learnt first).
    """

    treats: ClassVar[tuple[str, ...]] = ("validation-mismatch", "overfitting", "not-learning")
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        return "the samples with the largest loss looked at, and their labels mended", (
            "losses = []\n"
            "with torch.no_grad():\n"
            "    for x, y in DataLoader(train_set, batch_size=256):\n"
            "        losses.append(F.cross_entropy(model(x), y, reduction='none'))\n"
            "worst = torch.cat(losses).topk(50).indices  # train_set[i] for i in worst: do inputs and labels fit?"
        )
