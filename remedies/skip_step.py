"""Skip steps whose gradients are not finite."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    import torch


class SkipStep(Remedy):
    """Before each step, drop all gradients of an optimizer if any of them is not finite: the step then does nothing.

    Gradients are set to None, not to zero: zeroed ones still decay the weights and move Adam's averages. After
    `patience` skips in a row it looks at the weights: as long as they are finite there is something to protect, and it
    goes on, since one such step would spoil them for good; else it lets go.

    Safety: safe. It touches gradients only, right before the optimizer's step; it waits for one flag per step.
    Works when: single batches give NaN or infinity while the weights are sound, or were in a state that was kept.
    Does not help: weights that are not finite, where no healthy state was kept; a loss that is never finite; under a
    loss scaler, which skips such steps itself.
    Source: torch.amp.GradScaler skips alike (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
    """

    treats: ClassVar[tuple[str, ...]] = ("non-finite", "hidden-non-finite", "loss-scale-collapse")
    safety: ClassVar[Safety] = Safety.SAFE
    rehearsed: ClassVar[bool] = False
    unless_worse: ClassVar[str] = "a step that is not finite spoils the weights whatever the loss says"
    patience: int = Field(3, ge=1, description="skips in a row after which it looks at the weights")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        if any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
            raise Refused("LBFGS computes its gradients inside step(), where they cannot be seen before it")
        if (
            any(isinstance(guard, Skip) and not guard.standing_by for guard in run.guards)
            or _scaled(run)
            or self._too_late(run)
        ):
            return None
        return Change(
            remedy=self.name,
            after={"patience": self.patience},
            summary="steps with gradients that are not finite are skipped from now on",
            code="if all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None):\n"
            "    optimizer.step()",
        )

    def _too_late(self, run: Run) -> bool:
        """Whether there is nothing left to protect: the state, or the last few losses, are not finite.

        With a healthy state to start from there is: a spoilt run is put back to it before a remedy is applied.
        """
        if run.healthy is not None:
            return False
        if not _sound(run):
            return True
        if "train/loss" not in run.history:
            return False
        latest = run.history.series("train/loss").values[-self.patience :]
        return len(latest) == self.patience and not bool(np.isfinite(latest).any())

    def apply(self, change: Change, run: Run) -> Undo:
        guard = Skip(run, int(change.after["patience"]))
        others = [other for other in run.guards if isinstance(other, Skip) and other.standing_by]
        run.guards[:] = [other for other in run.guards if other not in others] + [guard]

        def undo() -> None:
            if guard in run.guards:
                run.guards.remove(guard)
                run.guards[:0] = others

        return undo


def stand_by(run: Run) -> None:
    """Hold off the first steps that are not finite, before a finding has told of them and the remedy is applied.

    What the weights have taken in nobody takes out again. In a run whose gradients are finite nothing changes.
    """
    if not _scaled(run) and not any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
        run.guards.append(Skip(run, SkipStep().patience, standing_by=True))


def held_off(run: Run) -> list[int]:
    """Steps that did nothing, since their gradients were dropped."""
    return [step + 1 for guard in run.guards if isinstance(guard, Skip) for step in guard.skipped]


class Skip:
    """Called right before an optimizer's step: it drops gradients that are not finite, with all others of that step.

    It answers whether it did; ``skipped`` holds the steps before which it did, each by the last step known. One that
    stands by does not answer so: what rules have not told of is not kept from them.
    """

    def __init__(self, run: Run, patience: int, *, standing_by: bool = False) -> None:
        self.run, self.patience, self.standing_by = run, patience, standing_by
        self.skipped: list[int] = []
        self._in_a_row: dict[int, int] = {}  # by optimizer

    def __call__(self, optimizer: "torch.optim.Optimizer") -> bool:
        if getattr(optimizer, "found_inf", None) is not None:
            return False  # a loss scaler had a look, and a fused optimizer skips by itself
        in_a_row = 0 if _finite_gradients(optimizer) else self._in_a_row.get(id(optimizer), 0) + 1
        self._in_a_row[id(optimizer)] = in_a_row  # also after it let go: a rewound run can have good steps again
        if not in_a_row or (in_a_row > self.patience and not _finite_weights(optimizer)):
            return False
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.skipped.append(self.run.step)
        return not self.standing_by


def _finite_weights(optimizer: "torch.optim.Optimizer") -> bool:
    """Whether all parameters that are stepped are finite; waited for once."""
    import torch

    from trainmedic.hooks.parameters import norms

    with torch.no_grad():
        weights = [p.detach() for group in optimizer.param_groups for p in group["params"] if p.numel()]
        plain = [torch.view_as_real(p) if p.is_complex() else p for p in weights]
        largest = [each.to(plain[0].device, torch.float32) for each in norms(plain, float("inf"))]
        return bool(torch.isfinite(torch.stack(largest)).all())


def _finite_gradients(optimizer: "torch.optim.Optimizer") -> bool:
    """One flag, waited for once. The largest element is looked at, since a 2-norm of finite ones can overflow."""
    import torch

    from trainmedic.hooks.parameters import norms
    from trainmedic.remedies._gradients import live_gradients

    with torch.no_grad():
        gradients = live_gradients(optimizer)
        if not gradients:
            return True
        largest = [each.to(gradients[0].device, torch.float32) for each in norms(gradients, float("inf"))]
        return bool(torch.isfinite(torch.stack(largest)).all())


def _scaled(run: Run) -> bool:
    """Whether a loss scaler is at work."""
    return run.scaler is not None and bool(getattr(run.scaler, "is_enabled", lambda: True)())


def _sound(run: Run) -> bool:
    """Whether all weights and averages of the optimizers are finite, and no buffer is NaN: masks hold infinities."""
    import torch

    if any(bool(buffer.isnan().any()) for model in run.models for buffer in model.buffers() if not buffer.is_sparse):
        return False
    tensors: list[torch.Tensor] = [parameter for model in run.models for parameter in model.parameters()]
    tensors += [
        value
        for optimizer in run.optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if not tensor.is_sparse)
