"""Let parameters train that were frozen."""

from typing import ClassVar

from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.adopt_parameters import adopt, check_joining
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import rate_names
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class Unfreeze(Remedy):
    """Switch `requires_grad` on for frozen weights, and hand those to the optimizer that it does not hold.

    A parameter group that rests at a rate of zero gets the largest rate of its optimizer's other groups.

    Of what a finding names only that; else all that is frozen, from the output backwards, where at least `share` of the
    elements are. Whole models that do not train at all (a teacher, a target network) are left alone.

    Safety: unsafe. Weights begin to move that were kept still on purpose, perhaps.
    Works when: too little of the model trains for the task at hand.
    Does not help: a way back that is cut by detach() or no_grad(), which only the code can mend; modules that the
    forward pass runs without gradients; a pretrained part that a high rate would spoil (lower-learning-rate); a group
    at a rate of zero under a scheduler, which multiplies the zero, and is refused.
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
            return self._woken(finding, run)
        check_joining(run)
        return Change(
            remedy=self.name,
            target=tuple(frozen),
            summary=f"{len(frozen)} frozen parameters train from now on, from {frozen[0]} on",
            code="# before the optimizer is made\n"
            + "\n".join(f'model.get_parameter("{name}").requires_grad_(True)' for name in frozen),
        )

    def _woken(self, finding: Finding, run: Run) -> Change | None:
        """Rates for groups that hold what a finding names and rest at zero."""
        if finding.name != "frozen-layer":
            return None
        named = {id(p) for name, p in run.parameters() if any(name.startswith(f"{where}.") for where in finding.where)}
        rates: dict[str, float] = {}
        for i, optimizer in enumerate(run.optimizers):
            most = max((float(group["lr"]) for group in optimizer.param_groups), default=0.0)
            for j, group in enumerate(optimizer.param_groups):
                if most > 0 and not float(group["lr"]) and any(id(p) in named for p in group["params"]):
                    rates[f"{i}.{j}"] = most
        if not rates:
            return None
        _check_unscheduled(run)
        return Change(
            remedy=self.name,
            target=rate_names(run),
            before=dict.fromkeys(rates, 0.0),
            after=rates,
            summary=f"{len(rates)} parameter group(s) at a learning rate of zero set to {max(rates.values()):.3g}",
            code="\n".join(
                f'optimizer.param_groups[{place.split(".")[1]}]["lr"] = {rate:.3g}' for place, rate in rates.items()
            ),
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
        return self._wake(change, run) if change.after else self._free(change, run)

    def _wake(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._rates import set_rate

        _check_unscheduled(run)
        places = {place: tuple(map(int, place.split("."))) for place in change.after}
        if any(i >= len(run.optimizers) or j >= len(run.optimizers[i].param_groups) for i, j in places.values()):
            raise Refused("the optimizer has other parameter groups")
        groups = {place: run.optimizers[i].param_groups[j] for place, (i, j) in places.items()}
        kept = {place: float(group["lr"]) for place, group in groups.items()}

        def put(rates: dict[str, float]) -> None:
            for place, group in groups.items():
                set_rate(group, rates[place])

        put(change.after)
        return lambda: put(kept)

    def _free(self, change: Change, run: Run) -> Undo:
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


def _check_unscheduled(run: Run) -> None:
    """Raise ``Refused`` where a scheduler would set the rate to zero again."""
    from trainmedic.remedies._schedulers import schedulers_of

    if schedulers_of(run.optimizers, run.schedulers):
        raise Refused("a scheduler multiplies the group's rate of zero: give the group a rate where it is made")
