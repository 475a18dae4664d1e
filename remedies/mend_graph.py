"""Take out what cuts the way back."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class MendGraph(Advice):
    """Find detach(), .data, .numpy() and no_grad() between the layers that get no gradient and those that do.

    Safety: manual. What was meant to be cut is for people to say.
    Works when: layers never get a gradient, though those above them do.
    Does not help: layers that nothing uses; layers frozen on purpose, for which requires_grad_(False) says so.
    Source: torch's documentation of autograd mechanics.
    """

    treats: ClassVar[tuple[str, ...]] = ("frozen-layer",)
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        if not finding.where:
            return None
        return f"the cut after {finding.where[0]} taken out", (
            f'last = model.get_submodule("{finding.where[0]}")\n'
            "last.register_forward_hook(lambda module, args, output: print(output.grad_fn))  # None: cut before it\n"
            "# then, on the way: h = layer(x), not layer(x).detach(), layer(x).data or torch.tensor(layer(x))"
        )
