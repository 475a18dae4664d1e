"""Clip the norm of the gradients to what this run had while it was well."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    import torch


class ClipGradients(Remedy):
    """Scale all gradients of an optimizer down to a limit, right before its step, whenever their norm exceeds it.

    The limit is a high percentile of the gradient norms of this very run before the illness began; a fixed number
    where there were too few. Gradients that are not finite are left as they are: scaling one NaN makes all of them NaN.

    Safety: safe. It touches gradients only, in the steps that follow; no weight, no state of the optimizer.
    Works when: single batches, or a stretch of steep curvature, give gradients far above the usual ones.
    Does not help: gradients that are not finite (skip-step); a rate that is too high for the usual gradients as well;
    Adam and its kin, as far as they divide by the gradient's own size: there it mainly protects the running averages.
    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1; a limit from the run's own norms: Seetharaman et al.
    2020 (AutoClip), arXiv:2007.14469.
    """

    treats: ClassVar[tuple[str, ...]] = ("exploding-gradient", "loss-spike")
    safety: ClassVar[Safety] = Safety.SAFE
    percentile: float = Field(90, gt=0, le=100, description="of the norms before the onset, which gives the limit")
    window: int = Field(200, ge=1, description="so many of the last norms before the onset are looked at")
    few: int = Field(10, ge=1, description="with fewer norms than this, the limit is `fallback`")
    fallback: float = Field(1.0, gt=0, description="limit where the run has no healthy past")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        if any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
            raise Refused("LBFGS computes its gradients inside step(), where they cannot be clipped before it")
        if any(isinstance(guard, Clip) for guard in run.guards):
            return None
        limit = self._limit(finding, run)
        return Change(
            remedy=self.name,
            before=None,
            after={"limit": limit},
            summary=f"gradients clipped to a norm of {limit:.3g}",
            code=f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:.3g})  # between backward() and step()",
        )

    def _limit(self, finding: Finding, run: Run) -> float:
        if "gradient/norm" not in run.history:
            return self.fallback
        steps, norms = run.history.series("gradient/norm")
        norms = norms[steps < finding.step]
        norms = norms[np.isfinite(norms) & (norms > 0)][-self.window :]
        return float(np.percentile(norms, self.percentile)) if len(norms) >= self.few else self.fallback

    def apply(self, change: Change, run: Run) -> Undo:
        guard = Clip(float(change.after["limit"]))
        run.guards.append(guard)

        def undo() -> None:
            if guard in run.guards:
                run.guards.remove(guard)

        return undo


@dataclass(eq=False)
class Clip:
    """Called right before an optimizer's step: scales its gradients to ``limit`` without waiting for the device."""

    limit: float

    def __call__(self, optimizer: "torch.optim.Optimizer") -> None:
        import torch

        from trainmedic.hooks.parameters import norms
        from trainmedic.remedies._gradients import live_gradients

        with torch.no_grad():
            gradients = live_gradients(optimizer)
            if not gradients:
                return
            home, wide = gradients[0].device, torch.float32
            if any(gradient.dtype == torch.float64 for gradient in gradients):
                wide = torch.float64
            norm = torch.linalg.vector_norm(torch.stack([each.to(home, wide) for each in norms(gradients)]))
            # squares of finite gradients can overflow: then largest times root of count, which is never below the norm
            largest = torch.stack([each.to(home, wide) for each in norms(gradients, float("inf"))]).amax()
            bound = largest * sum(gradient.numel() for gradient in gradients) ** 0.5
            # a fused optimizer under a loss scaler divides by the scale itself, later: its gradients still carry it
            scale = getattr(optimizer, "grad_scale", None)
            limit = self.limit if scale is None else self.limit * scale.to(home)
            over = torch.isfinite(largest) & (norm > limit)
            factor = torch.where(torch.isfinite(norm), limit / norm, limit / bound)
            factor = torch.where(over, factor, torch.ones_like(norm))
            for gradient in gradients:
                gradient.mul_(factor.to(gradient.device, gradient.dtype))
