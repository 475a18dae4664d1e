"""Let parameters train that were frozen."""

from typing import ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.adopt_parameters import adopt, check_joining
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class Unfreeze(Remedy):
    """Switch `requires_grad` on for frozen weights, and hand those to the optimizer that it does not hold.

    Of what a finding names only that; else all that is frozen, from the output backwards, where at least `share` of the
    elements are. Whole models that do not train at all (a teacher, a target network) are left alone.

    Safety: unsafe. Weights begin to move that were kept still on purpose, perhaps.
    Works when: too little of the model trains for the task at hand.
    Does not help: a way back that is cut by detach() or no_grad(), which only the code can mend; modules that the
    forward pass runs without gradients; a pretrained part that a high rate would spoil (lower-learning-rate).
    Source: Howard and Ruder 2018, arXiv:1801.06146, section 3.3 (gradual unfreezing); Yosinski et al. 2014,
    arXiv:1411.1792 (frozen features keep a net below what it reaches when they are tuned).
    """

    treats: ClassVar[tuple[str, ...]] = ("frozen-layer", "underfitting", "plateau")
    safety: ClassVar[Safety] = Safety.UNSAFE
    unless_worse: ClassVar[str] = "what should train and does not is wrong whatever the loss says"
    replayed: ClassVar[bool] = True
    share: float = Field(0.5, gt=0, le=1, description="share of the elements frozen, from which on all are freed")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        frozen = self._frozen(finding, run)
        if not frozen:
            return None
        check_joining(run)
        return Change(
            remedy=self.name,
            target=tuple(frozen),
            summary=f"{len(frozen)} frozen parameters train from now on, from {frozen[0]} on",
            code="# before the optimizer is made\n"
            + "\n".join(f'model.get_parameter("{name}").requires_grad_(True)' for name in frozen),
        )

    def _frozen(self, finding: Finding, run: Run) -> list[str]:
        named = [name for name, p in run.parameters() if not p.requires_grad and p.is_floating_point()]
        if finding.name == "frozen-layer":
            return [n for n in named if any(n == where or n.startswith(f"{where}.") for where in finding.where)]
        total = sum(p.numel() for _, p in run.parameters())
        still = sum(p.numel() for _, p in run.parameters() if not p.requires_grad)
        whole = {prefix for prefix, model in run.named_models() if not any(p.requires_grad for p in model.parameters())}
        free = [name for name in named if not any(prefix and name.startswith(prefix) for prefix in whole)]
        return free if still >= self.share * total else []

    def apply(self, change: Change, run: Run) -> Undo:
        check_joining(run)
        known = dict(run.parameters())
        if gone := [name for name in change.target if name not in known]:
            raise Refused(f"the model has no parameter {gone[0]!r}")
        freed = {name: known[name] for name in change.target if not known[name].requires_grad}
        held = {id(p) for optimizer in run.optimizers for group in optimizer.param_groups for p in group["params"]}

        def freeze() -> None:
            for parameter in freed.values():
                parameter.requires_grad_(False)
                parameter.grad = None

        for parameter in freed.values():
            parameter.requires_grad_(True)
        try:
            leave = adopt(run, {name: p for name, p in freed.items() if id(p) not in held})
        except BaseException:
            freeze()
            raise

        def undo() -> None:
            leave()
            freeze()

        return undo
