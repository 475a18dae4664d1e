"""Lower the learning rate of every parameter group."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.diagnose.learnt import chance, learnt
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

SMALLEST = 1e-3
"""Factor below which a rate is not lowered in one go."""

BY_STEPS = ("collapsed-output", "dead-relu", "saturated-activation")
"""Illnesses that a rate brings about by its steps: those that were there before any step are not its doing."""

FEW = 10
"""Steps before an illness shows in which it may have begun."""
WON = 0.5
"""Share of the first loss, or of the task, that a run has won which learns at its rate."""
UNSETTLED = ("learning-rate-too-high", "noisy-gradient", "plateau", "loss-oscillation")


class LowerLearningRate(Remedy):
    """Multiply the learning rate of every parameter group, and all that its schedulers compute rates from, by a factor.

    The factor is `factor`, or what takes the steps of the ill run down to moving the weights by `pace` of their size,
    if that is less.

    The whole schedule that follows is the old one times that factor, under every scheduler that torch ships, handed
    over or not. Exceptions: a scheduler that is made later with a rate of its own (OneCycleLR, CyclicLR), and a rate
    that the training script or a scheduler of another library computes by itself, overrule the change; ASGD follows
    one step later, since it prepares each step's rate in the step before.

    Safety: safe. It touches no weight; undone at once, the rates are exactly what they were, undone later the factor
    is divided out of what the schedule has made of them.
    Works when: updates are too large for the weights or the curvature: the loss swings, spikes or climbs.
    Does not help: weights that are not finite any more (rewind first); a signal that blows up through depth at any
    rate; Rprop, whose steps follow signs and not the rate.
    Source: Bengio 2012, arXiv:1206.5533, section 3.1.1: if training diverges, try a rate about three times smaller;
    updates of about a thousandth of the weights are usual: Karpathy, CS231n notes, "Ratio of weights:updates".
    """

    treats: ClassVar[tuple[str, ...]] = (
        "exploding-gradient",
        "non-finite",
        "loss-spike",
        "divergence",
        "learning-rate-too-high",
        "collapsed-output",
        "dead-relu",
        "excessive-weight-decay",
        "bad-initialization",
        "loss-oscillation",
        "loss-scale-collapse",
        "noisy-gradient",
        "plateau",
        "saturated-activation",
    )
    safety: ClassVar[Safety] = Safety.SAFE
    scales_rates: ClassVar[bool] = True
    factor: float = Field(0.3, gt=0, lt=1, description="what every rate is multiplied by")
    pace: float = Field(0.01, gt=0, lt=1, description="update over weight that most matrices may have in large steps")
    least: float = Field(1e-8, ge=0, description="rates that would all fall below this are left alone")

    @classmethod
    def waits(cls, finding: Finding, run: Run) -> bool:
        from trainmedic.remedies.schedule_learning_rate import driven_up

        return settles_late(finding, run) or driven_up(finding, run)

    def stronger(self) -> "LowerLearningRate | None":
        factor = self.factor * 0.1
        return self.model_copy(update={"factor": factor}) if factor >= SMALLEST else None

    def propose(self, finding: Finding, run: Run) -> Change | None:
        refuse_rprop(run)
        if finding.name in BY_STEPS and not by_steps(finding, run):
            return None
        if finding.name == "bad-initialization" and not starts_wild(run):
            return None
        if finding.name in UNSETTLED and finding.severity != "error" and _falling(run):
            return None
        before = run.learning_rates()
        factor = self._factor(finding, run)
        after = [rate * factor for rate in before]
        if not any(rate >= self.least for rate in after):
            return None
        return Change(
            remedy=self.name,
            target=rate_names(run),
            before=before,
            after=after,
            summary=f"learning rate lowered from {largest(before):.3g} to {largest(after):.3g}",
            code=rate_code(run, factor),
        )

    def _factor(self, finding: Finding, run: Run) -> float:
        """By what to multiply: the less, the larger the steps since the illness began, or just before."""
        torn = torn_by(run, finding.step - FEW)
        return (
            self.factor * min(1.0, self.pace / torn / LowerLearningRate.model_fields["factor"].default)
            if torn
            else self.factor
        )

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._schedulers import scale_rates

        refuse_rprop(run)
        factor = next(new / old for old, new in zip(change.before, change.after, strict=True) if old)
        return scale_rates(run.optimizers, run.schedulers, float(factor))


def _falling(run: Run) -> bool:
    """Whether the medic has put the rate on a schedule already: it falls by itself, and settles at its end."""
    from trainmedic.remedies._rates import Program

    return any(isinstance(guard, Program) for guard in run.guards)


def by_steps(finding: Finding, run: Run) -> bool:
    """Whether steps may have brought an illness about: it was not there before any, nor were weights all zero."""
    return finding.name in BY_STEPS and finding.step > 1 and not starts_at_zero(run)


def starts_at_zero(run: Run) -> bool:
    """Whether several weight matrices were exactly zero when they were first measured: nothing gets through them."""
    if "weight_norm" not in run.history:
        return False
    table = run.history.layers("weight_norm")
    first = table.first()[1]
    zero = [name for name, size in zip(table.layers, first, strict=True) if size == 0 and len(shape_of(run, name)) != 1]
    return len(zero) > 1


def settles_late(finding: Finding, run: Run) -> bool:
    """Whether a run learns at its rate and only cannot settle: then the rate is to fall over the rest of the run."""
    if finding.name not in UNSETTLED or finding.severity == "error" or "train/loss" not in run.history:
        return False
    losses = run.history.series("train/loss").values
    losses = losses[np.isfinite(losses)]
    if len(losses) < 20:
        return False
    first, now = float(np.median(losses[:10])), float(np.median(losses[-10:]))
    known = learnt(run.history)
    return known > WON if np.isfinite(known) else first - now > WON * abs(first)


def starts_wild(run: Run) -> bool:
    """Whether the loss starts at more than twice that of knowing nothing: weights are too large, not too small."""
    if "train/loss" not in run.history:
        return False
    first = run.history.series("train/loss").values[:3]
    return bool(np.median(first) > 2 * chance(run.history))


def torn_by(run: Run, since: int) -> float:
    """|update| / |weight| that most weight matrices had in the larger steps since a step; 0 where not measured."""
    if "update_ratio" not in run.history:
        return 0.0
    steps, names, values = run.history.layers("update_ratio")
    matrices = [i for i, name in enumerate(names) if len(shape_of(run, name)) != 1]
    rows = values[steps >= since][:, matrices] if matrices else values[steps >= since]
    rows = rows[np.isfinite(rows).any(axis=1)] if rows.size else rows
    return float(np.percentile(np.nanmedian(rows, axis=1), 90)) if rows.size else 0.0


def shape_of(run: Run, name: str) -> tuple[int, ...]:
    """The shape of a parameter, by the name that the history uses."""
    layer = run.history.architecture.get(name)
    return layer.shape if layer is not None else ()


def rate_names(run: Run) -> tuple[str, ...]:
    """A name for every parameter group of every optimizer, in order."""
    groups = [(i, j) for i, optimizer in enumerate(run.optimizers) for j in range(len(optimizer.param_groups))]
    return tuple(f"group {j}" if len(run.optimizers) == 1 else f"optimizer {i} group {j}" for i, j in groups)


def rate_code(run: Run, factor: float) -> str:
    """What a user would write to scale every rate."""
    if len(run.optimizers) > 1:
        return (
            "for optimizer in optimizers:\n    for group in optimizer.param_groups:\n"
            f'        group["lr"] *= {factor:g}  # and the rates that its scheduler was given'
        )
    scheduled = "  # and the rates that its scheduler was given" if run.history.facts.get("scheduler") else ""
    if len(run.optimizers[0].param_groups) == 1:
        return f'optimizer.param_groups[0]["lr"] *= {factor:g}{scheduled}'
    return f'for group in optimizer.param_groups:\n    group["lr"] *= {factor:g}{scheduled}'


def largest(rates: list[float]) -> float:
    """The largest of some rates."""
    return max(rates, default=0.0)


def refuse_rprop(run: Run) -> None:
    """Raise ``Refused`` where a rate has no say."""
    if any(type(optimizer).__name__ == "Rprop" for optimizer in run.optimizers):
        raise Refused("Rprop sizes its steps by the signs of gradients: its learning rate only sets the first one")
