"""Clip gradients to what this run had while it was well."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import shape_of, starts_wild
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from trainmedic.remedies._clipping import Clip, UnitClip, ZClip

Kind = Literal["norm", "z-score", "unit"]

LASTING = 0.5
"""Share of the steps since the onset that an excess is in which is no spike."""


class _Past(NamedTuple):
    """Gradient norms of the run: before the onset, and from there on; ``None`` where they were not measured."""

    well: NDArray[np.float64]
    ill: NDArray[np.float64]


class ClipGradients(Remedy):
    """Scale gradients down right before the optimizer's step, whenever they exceed a limit.

    By norm: all gradients together, down to a high percentile of the norms of this very run before the illness began,
    or to a fixed number where there were too few. By z-score, for spikes in a run with a past: the limit moves along
    with running mean and deviation of the norms. Per unit, where an excess that lasts is that of a few layers: each
    unit's gradient down to `share` of its weights, or to what layers of this run had before, if that is more. `kind`
    asks for one by name. Nothing is proposed where the gradients since the onset are those of before. Gradients that
    are not finite are left as they are: scaling one NaN makes all NaN.

    Safety: safe. It touches gradients only, in the steps that follow; no weight, no state of the optimizer.
    Works when: single batches, or a stretch of steep curvature, give gradients far above the usual ones.
    Does not help: gradients that are not finite (skip-step); a rate that is too high for the usual gradients as well;
    Adam and its kin, as far as they divide by the gradient's own size: there it mainly protects the running averages.
    Source: Pascanu et al. 2013, arXiv:1211.5063, algorithm 1; a limit from the run's own norms: Seetharaman et al.
    2020 (AutoClip), arXiv:2007.14469; z-score: Kumar et al. 2025 (ZClip), arXiv:2504.02507; per unit: Brock et al.
    2021 (AGC), arXiv:2102.06171, section 4.1.
    """

    treats: ClassVar[tuple[str, ...]] = ("exploding-gradient", "loss-spike", "divergence", "bad-initialization")
    safety: ClassVar[Safety] = Safety.SAFE
    unless_worse: ClassVar[str] = "the steps that it is against are rare, and need not lie in the time watched"
    kind: Kind | None = Field(None, description="the way of clipping; chosen by what was measured unless given")
    percentile: float = Field(90, gt=0, le=100, description="of the norms before the onset, which gives the limit")
    window: int = Field(200, ge=1, description="so many of the last norms before the onset are looked at")
    few: int = Field(10, ge=1, description="with fewer norms than this, the limit is `fallback`")
    fallback: float = Field(1.0, gt=0, description="limit where the run has no healthy past")
    excess: float = Field(2.0, ge=1, description="norms since the onset over the limit, below which they are normal")
    z: float = Field(2.5, gt=0, description="deviations above the running mean from which on it clips by z-score")
    z_few: int = Field(25, ge=2, description="norms that a running mean needs to begin with")
    share: float = Field(0.01, gt=0, lt=1, description="gradient over weights of a unit, above which it clips per unit")
    local: float = Field(0.25, gt=0, le=1, description="share of the layers that an excess may be in, to clip per unit")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        from trainmedic.remedies._clipping import Clip, UnitClip, ZClip

        if any(type(optimizer).__name__ == "LBFGS" for optimizer in run.optimizers):
            raise Refused("LBFGS computes its gradients inside step(), where they cannot be clipped before it")
        if any(isinstance(guard, Clip | ZClip | UnitClip) for guard in run.guards):
            return None
        if finding.name == "bad-initialization" and not starts_wild(run):
            return None
        past = self._past(finding, run)
        if len(past.well) >= self.few and len(past.ill) and not self._leaves(past):
            return None
        kind = self.kind or self._fitting(finding, run, past)
        after: dict[str, Any] = {"kind": kind}
        if kind == "z-score":
            after |= {"mean": float(past.well.mean()), "deviation": float(past.well.std()), "z": self.z}
        elif kind == "unit":
            after |= {"share": max(self.share, self._usual_share(finding, run))}
        else:
            after |= {"limit": self._limit(past)}
        return Change(remedy=self.name, before=None, after=after, summary=_summary(after), code=_code(after))

    def _past(self, finding: Finding, run: Run) -> _Past:
        if "gradient/norm" not in run.history:
            return _Past(np.empty(0), np.empty(0))
        steps, norms = run.history.series("gradient/norm")
        well = norms[steps < finding.step]
        return _Past(well[np.isfinite(well) & (well > 0)][-self.window :], norms[steps >= finding.step])

    def _leaves(self, past: _Past) -> bool:
        """Whether gradients since the onset leave those of before; ones that are not finite do."""
        usual = max(self.excess * self._limit(past), float(past.well.max()))
        return not bool((past.ill <= usual).all())

    def _limit(self, past: _Past) -> float:
        return float(np.percentile(past.well, self.percentile)) if len(past.well) >= self.few else self.fallback

    def _fitting(self, finding: Finding, run: Run, past: _Past) -> Kind:
        if self._is_local(finding, run):
            return "unit"
        return "z-score" if finding.name == "loss-spike" and len(past.well) >= self.z_few else "norm"

    def _is_local(self, finding: Finding, run: Run) -> bool:
        """Whether the excess is that of a few layers, and lasts: the others' gradients are what they were before.

        A spike is clipped by the norm of all: that the others stand still for one step does no harm.
        """
        if "gradient_norm" not in run.history:
            return False
        steps, layers, values = run.history.layers("gradient_norm")
        well, ill = values[steps < finding.step][-self.window :], values[steps >= finding.step]
        if len(well) < self.few or not len(ill) or len(layers) < 4:
            return False
        with np.errstate(over="ignore"):
            over = np.nan_to_num(ill, nan=0.0) > self.excess * np.nan_to_num(well, nan=0.0).max(0)
        return 0 < int(over.any(axis=0).sum()) <= self.local * len(layers) and over.any(axis=1).mean() > LASTING

    def _usual_share(self, finding: Finding, run: Run) -> float:
        """Gradient over weights that a layer had before the onset, by the same percentile as norms: of the largest."""
        if "gradient_norm" not in run.history or "weight_norm" not in run.history:
            return 0.0
        gradients, weights = run.history.layers("gradient_norm"), run.history.layers("weight_norm")
        matrices = [n for n in gradients.layers if n in weights.layers and len(shape_of(run, n)) != 1]
        both, at, of = np.intersect1d(gradients.steps, weights.steps, return_indices=True)
        at, of = at[both < finding.step][-self.window :], of[both < finding.step][-self.window :]
        usual = [0.0]
        for name in matrices:
            over = gradients.values[at, gradients.layers.index(name)]
            under = weights.values[of, weights.layers.index(name)]
            known = np.isfinite(over) & np.isfinite(under) & (under > 0)
            if known.sum() >= self.few:
                usual.append(float(np.percentile(over[known] / under[known], self.percentile)))
        return max(usual)

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._rates import install

        return install(run.guards, _guard(change.after))


def _guard(after: dict[str, Any]) -> "Clip | ZClip | UnitClip":
    from trainmedic.remedies._clipping import Clip, UnitClip, ZClip

    if after["kind"] == "z-score":
        return ZClip(float(after["mean"]), float(after["deviation"]), float(after["z"]))
    if after["kind"] == "unit":
        return UnitClip(float(after["share"]))
    return Clip(float(after["limit"]))


def _summary(after: dict[str, Any]) -> str:
    if after["kind"] == "z-score":
        return f"gradients clipped where their norm is {after['z']:g} deviations above its running mean"
    if after["kind"] == "unit":
        return f"gradients of each unit clipped to {after['share']:g} of its weights"
    return f"gradients clipped to a norm of {after['limit']:.3g}"


def _code(after: dict[str, Any]) -> str:
    """What a user would write between ``backward()`` and ``step()``."""
    if after["kind"] == "norm":
        return (
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), {after['limit']:.3g})  # between backward() and step()"
        )
    if after["kind"] == "z-score":
        limit = after["mean"] + after["z"] * after["deviation"]
        return (
            f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:.3g})  # between backward() and step(); "
            f"mean + {after['z']:g} deviations"
        )
    return (
        "for p in model.parameters():  # between backward() and step()\n"
        "    if p.ndim > 1 and p.grad is not None:\n"
        "        size, weights = (t.flatten(1).norm(dim=1) for t in (p.grad, p.detach()))\n"
        f"        factor = ({after['share']:g} * weights.clamp_min(1e-3) / size).clamp_max(1)\n"
        "        p.grad *= factor.view(-1, *[1] * (p.ndim - 1))"
    )
