"""Use larger batches, or add up the gradients of several."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice, evidence
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class EnlargeBatch(Advice):
    """Four times as many samples for each step of the optimizer.

    Safety: manual. What fits into memory is for people to say.
    Works when: noise of small batches keeps the loss up, a batch norm has too few values, or a device idles.
    Does not help: a rate that is too high for batches of any size.
    Source: McCandlish et al. 2018, arXiv:1812.06162 (gradient noise scale); Goyal et al. 2017, arXiv:1706.02677
    (rate in proportion to batch size, for SGD).
    """

    treats: ClassVar[tuple[str, ...]] = ("noisy-gradient", "device-underused", "batchnorm-misuse")
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        size = run.history.facts.get("batch_size")
        if finding.name == "batchnorm-misuse" and evidence(finding, "values per channel") is None:
            return None
        larger = 4 * int(size) if size else "4 * batch_size"
        return f"batches of {larger} samples used", (
            f"loader = DataLoader(train_set, batch_size={larger}, shuffle=True)\n"
            "# or, where memory is short (not for batch norms): (loss / 4).backward() four times before each step()"
        )
