"""Set the weight decay of every parameter group."""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import rate_names
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class WeightDecay(Remedy):
    """More of it against overfitting, none where it pulls the weights to nothing.

    Against overfitting each group gets 1 / (rate x steps of the run), with which weights forget what they were over one
    run, within `least` and `most`, unless it has more. Where the decay is divided by the size of gradients (Adam and
    its kin without decoupling) it gets `coupled`. Where decay is what is found, each group is set to a tenth of what it
    has. The option of the group is changed in place; schedulers do not touch it.

    Safety: unsafe. It changes the objective.
    Works when: a model that is large for its data grows large weights; or decay outweighs the gradient.
    Does not help: optimizers without the option (LBFGS, Rprop, SparseAdam); weights before a norm, whose size is of no
    consequence.
    Source: Loshchilov and Hutter 2019, arXiv:1711.05101 (decoupled); Wang and Aitchison 2024, arXiv:2405.13698 (weights
    average over 1 / (rate x decay) steps, and the best span is of the order of the run); 5e-4: Zagoruyko and Komodakis
    2016, arXiv:1605.07146, section 3.
    """

    treats: ClassVar[tuple[str, ...]] = ("overfitting", "excessive-weight-decay", "underfitting")
    safety: ClassVar[Safety] = Safety.UNSAFE
    least: float = Field(1e-4, gt=0, description="weight decay against overfitting, at least")
    most: float = Field(1.0, gt=0, description="and at most")
    coupled: float = Field(5e-4, ge=0, description="where an optimizer divides the decay by the size of gradients")
    less: float = Field(0.1, ge=0, lt=1, description="share that is left where there is too much")
    much: float = Field(0.1, gt=0, description="decay over update of a step, from which on less of it is worth a try")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        groups = [(optimizer, group) for optimizer in run.optimizers for group in optimizer.param_groups]
        before = [float(group["weight_decay"]) if "weight_decay" in group else None for _, group in groups]
        if all(decay is None for decay in before):
            raise Refused(f"{type(run.optimizers[0]).__name__} has no weight decay")
        if finding.name == "underfitting" and not self._weighs(run):
            return None
        steps = int(run.history.facts.get("total_steps", 0)) or 2 * (run.step + 1)
        after = [
            None if d is None else self._less(d) if finding.name != "overfitting" else self._more(d, o, g, steps)
            for d, (o, g) in zip(before, groups, strict=True)
        ]
        if after == before:
            return None
        return Change(
            remedy=self.name,
            target=rate_names(run),
            before=before,
            after=after,
            summary=f"weight decay {_largest(before):.3g} set to {_largest(after):.3g}",
            code=f'for group in optimizer.param_groups:\n    group["weight_decay"] = {_largest(after):.3g}',
        )

    def _less(self, decay: float) -> float:
        return decay * self.less

    def _more(self, decay: float, optimizer: Any, group: dict[str, Any], steps: int) -> float:
        direct = group.get("decoupled_weight_decay") or type(optimizer).__name__ in DIRECT
        span = float(group["lr"]) * steps
        wanted = float(np.clip(1 / span if span else self.most, self.least, self.most)) if direct else self.coupled
        return max(decay, wanted)

    def _weighs(self, run: Run) -> bool:
        """Whether decay is a good part of what a step does: rate x decay against |update| / |weight|."""
        if "update_ratio" not in run.history:
            return False
        table = run.history.layers("update_ratio")
        newest = table.values[-10:]
        pace = float(np.median(newest[np.isfinite(newest)])) if np.isfinite(newest).any() else 0.0
        shares = [
            float(group["lr"]) * float(group["weight_decay"])
            for optimizer in run.optimizers
            for group in optimizer.param_groups
            if "weight_decay" in group
        ]
        return pace > 0 and max(shares) > self.much * pace

    def apply(self, change: Change, run: Run) -> Undo:
        groups = [(optimizer, i) for optimizer in run.optimizers for i in range(len(optimizer.param_groups))]
        if len(groups) != len(change.after):
            raise Refused(f"the optimizer has {len(groups)} parameter groups, not {len(change.after)}")
        kept = [optimizer.param_groups[i].get("weight_decay") for optimizer, i in groups]

        def put(decays: list[Any]) -> None:
            for (optimizer, i), decay in zip(groups, decays, strict=True):
                if decay is not None:
                    optimizer.param_groups[i]["weight_decay"] = decay

        put(change.after)
        return lambda: put(kept)


DIRECT = ("AdamW", "Adafactor", "Muon", "SGD", "ASGD")
"""Optimizers that shrink a weight by rate x decay in each step, also where they call it a part of the gradient."""


def _largest(decays: list[float | None]) -> float:
    return max((decay for decay in decays if decay is not None), default=0.0)
