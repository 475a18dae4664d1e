"""Clear the gradients after each step, where the training loop does not."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class ZeroGradients(Remedy):
    """Set all gradients of an optimizer to zero when its step is over, and what has piled up until now at once.

    To zero and not to None: code that reads gradients after the step goes on working. Several backward passes before
    one step still add up, as accumulation wants it.

    Safety: safe. It touches gradients only; weights move by the run's own optimizer, with each batch's own gradient.
    Works when: a call of zero_grad is missing, or is made for another optimizer or model.
    Does not help: momentum and averages that the pile has filled, which take some steps to fade.
    Source: torch's documentation of Optimizer.zero_grad: gradients are added up until they are cleared.
    """

    treats: ClassVar[tuple[str, ...]] = ("missing-zero-grad",)
    safety: ClassVar[Safety] = Safety.SAFE
    unless_worse: ClassVar[str] = "gradients that pile up are wrong whatever the loss says"

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._clearing import Clear

        if any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
            raise Refused("LBFGS clears its gradients in the closure, which only the training script can change")
        if any(isinstance(guard, Clear) for guard in run.guards):
            return None
        return Change(
            remedy=self.name,
            summary="gradients cleared after each step from now on",
            code="optimizer.zero_grad()  # before each backward(), or after each step()",
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._clearing import Clear

        guard = Clear()
        kept = guard.clear(run.optimizers)
        run.guards.append(guard)

        def undo() -> None:
            if guard in run.guards:
                run.guards.remove(guard)
                guard.put_back(kept)

        return undo
