"""Let go of graphs and tensors that the loop holds on to."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class FreeMemory(Advice):
    """Keep numbers of losses and outputs, not the tensors, which hold their whole graph.

    Safety: manual. What is still needed is for people to say.
    Works when: memory grows by the same amount with each step.
    Does not help: caches that grow to their size and stay there.
    Source: torch's FAQ, on history that is accumulated across the training loop.
    """

    treats: ClassVar[tuple[str, ...]] = ("memory-growth",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        return "numbers kept in place of tensors with their graphs", (
            "total += loss.item()  # not: total += loss\n"
            "outputs.append(output.detach().cpu())  # not: outputs.append(output)"
        )
