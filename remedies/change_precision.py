"""Compute in bfloat16 where that is enough."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class ChangePrecision(Advice):
    """Autocast to bfloat16: the range of single precision, half of its memory, and the fast units of the device.

    Safety: manual. What precision a result needs is for people to say.
    Works when: half precision overflows and steps are left out, or a device computes in full precision.
    Does not help: devices without bfloat16; values that need more than three digits.
    Source: Micikevicius et al. 2018, arXiv:1710.03740; Kalamkar et al. 2019, arXiv:1905.12322 (bfloat16 needs no
    loss scale).
    """

    treats: ClassVar[tuple[str, ...]] = ("loss-scale-collapse", "device-underused", "non-finite")
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        half = run.history.facts.get("precision") == "float16" or run.history.facts.get("loss_scaling")
        if finding.name == "non-finite" and not half:
            return None
        device = str((run.history.facts.get("devices") or ["cuda"])[0]).partition(":")[0]
        return "the step computed in bfloat16, which needs no loss scale", (
            f'with torch.autocast("{device}", dtype=torch.bfloat16):\n'
            "    loss = criterion(model(x), y)\n"
            "loss.backward()  # without a GradScaler"
        )
