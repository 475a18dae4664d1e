"""Give a run without a schedule one."""

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.lower_learning_rate import refuse_rprop
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run

if TYPE_CHECKING:
    from trainmedic.remedies._rates import Course

Kind = Literal["plateau", "step", "exponential", "cosine", "cyclical", "one-cycle"]

CODE: dict[str, str] = {
    "plateau": "ReduceLROnPlateau(optimizer, factor=0.1, patience={patience})",
    "step": "MultiStepLR(optimizer, [{half}, {late}], gamma=0.1)",
    "exponential": "ExponentialLR(optimizer, gamma={gamma:.6g})",
    "cosine": "CosineAnnealingLR(optimizer, T_max={steps}, eta_min={least:g} * lr)",
    "cyclical": 'CyclicLR(optimizer, base_lr={least:g} * lr, max_lr=lr, step_size_up={eighth}, mode="triangular2")',
    "one-cycle": "OneCycleLR(optimizer, max_lr={peak:g} * lr, total_steps={steps})",
}


BROUGHT_DOWN = ("scheduler-misuse", "learning-rate-too-low", "slow-convergence", "plateau", "not-learning")
"""Illnesses that a rate brings about which has come down too early."""
DRIVEN_UP = ("divergence", "learning-rate-too-high", "scheduler-misuse")
"""Illnesses that a rate brings about which goes up and up."""
SAFER = 0.3
"""Share that is taken of the rate at which the loss was lowest, where the schedule went beyond (as lowering takes)."""
SPAN = 10
"""Losses whose median is compared, to find where that was."""


class ScheduleLearningRate(Remedy):
    """From here on the rates follow a schedule, stepped by the medic after each step of the optimizer.

    Which one goes by what was found: steps too large or too noisy to settle get a cosine down to `least` of the rate
    over the rest of the run; steps too small get one cycle, up to `peak` times the rate and down. Where the length of
    the run is not known, it is cut to a tenth whenever the loss has stopped falling. `kind` asks for one by name. The
    rates stand in the optimizer's groups as with a scheduler of torch; when watching ends they stay where they are.
    A schedule of the run's own that has brought the rate to nothing before half of the run is over gives way to
    the peak that it had, with a cosine at the end; one that has driven it up beyond what the run bore, to a third of
    the rate at which the loss was lowest. The rates in the groups stay that schedule's, but for the time of each step.

    Safety: safe. It touches no weight; undone, the rates are what they would be without it.
    Works when: the rate is never lowered, and the noise or size of its steps keeps the loss up.
    Does not help: a run that has another schedule of its own, which is left alone; a rate that is wrong from the start.
    Source: Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine); Smith 2017, arXiv:1506.01186 (cyclical); Smith and
    Topin 2018, arXiv:1708.07120 (one cycle); He et al. 2016, arXiv:1512.03385 (steps); Haegele et al. 2024,
    arXiv:2405.18392 (constant, then down); torch's ReduceLROnPlateau.
    """

    treats: ClassVar[tuple[str, ...]] = (
        "plateau",
        "noisy-gradient",
        "loss-oscillation",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "divergence",
        "scheduler-misuse",
        "slow-convergence",
        "not-learning",
    )
    safety: ClassVar[Safety] = Safety.SAFE
    rehearsed: ClassVar[bool] = False
    unless_worse: ClassVar[str] = "what a falling rate is good for shows at the end of a run"
    kind: Kind | None = Field(None, description="the schedule; chosen by what was found unless given")
    least: float = Field(0.01, gt=0, lt=1, description="share of the rate that schedules end at")
    peak: float = Field(10.0, gt=1, description="what one cycle raises the rate to, in rates of now")
    cycle: int = Field(100, ge=10, description="steps that must be left of the run for one cycle up and down")
    patience: int = Field(10, ge=1, description="looks at the loss without progress before a rate is cut")
    window: int = Field(50, ge=1, description="steps from one look at the loss to the next")

    def propose(self, finding: Finding, run: Run) -> Change | None:
        refuse_rprop(run)
        if brought_down(finding, run):
            return self._instead(run, _highest(run), "its peak")
        if driven_up(finding, run):
            return self._instead(run, SAFER * _at_its_best(run), "a third of what it was when the loss was lowest")
        if _scheduled(run):
            raise Refused("the run has a schedule of its own: give that one the right length")
        kind = self.kind or self._fitting(finding, run)
        if kind is None:
            return None
        left = _left(run)
        words = {
            "steps": left, "half": left // 2, "late": 3 * left // 4, "eighth": max(left // 8, 1), "least": self.least,
            "peak": self.peak, "patience": self.patience, "gamma": self.least ** (1 / left),
        }  # fmt: skip
        return Change(
            remedy=self.name,
            before=run.learning_rates(),
            after={"kind": kind, "steps": left},
            summary=f"learning rate put on a schedule ({kind}) for the next {left} steps"
            if kind != "plateau"
            else "learning rate put on a schedule: a tenth whenever the loss stops falling",
            code=f"scheduler = torch.optim.lr_scheduler.{CODE[kind].format(**words)}\n"
            + ("scheduler.step(val_loss)  # once per epoch" if kind == "plateau" else "scheduler.step()  # each step"),
        )

    def _instead(self, run: Run, rate: float, what: str) -> Change:
        """A rate and a cosine at the end, in place of the run's own schedule for the rest of the run."""
        left, peaks = _left(run), _peaks(run, rate)
        return Change(
            remedy=self.name,
            before=run.learning_rates(),
            after={"kind": "cooling", "steps": left, "peaks": peaks},
            summary=f"in place of the run's own schedule another one for the next {left} steps: {what}, "
            f"{max(peaks):.3g}, and a cosine at the end",
            code="# in place of the schedule that there is:\n"
            "constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)\n"
            f"down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max={left - int(0.6 * left)})\n"
            f"scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [constant, down], [{int(0.6 * left)}])\n"
            "scheduler.step()  # each step",
        )

    def _fitting(self, finding: Finding, run: Run) -> Kind | None:
        """The schedule for what was found; ``None`` where no length is known and none fits."""
        known = "total_steps" in run.history.facts
        if finding.name == "not-learning":
            return None
        if finding.name in ("learning-rate-too-low", "slow-convergence"):
            return "one-cycle" if known and _left(run) >= self.cycle else None
        return "cosine" if known else "plateau"

    def apply(self, change: Change, run: Run) -> Undo:
        from trainmedic.remedies._rates import Instead, Program, cooling, install

        refuse_rprop(run)
        optimizers = list(run.optimizers)
        if peaks := change.after.get("peaks"):
            length = int(change.after["steps"])
            return install(run.guards, Instead(optimizers, list(peaks), cooling(length, self.least)))
        program = Program(optimizers, self._course(change.after["kind"], int(change.after["steps"]), run))
        remove = install(run.guards, program)

        def undo() -> None:
            remove()
            program.release(optimizers)

        return undo

    def _course(self, kind: Kind, length: int, run: Run) -> "Course":
        from trainmedic.remedies import _rates

        if kind == "cosine":
            return _rates.cosine(length, self.least)
        if kind == "exponential":
            return _rates.exponential(length, self.least)
        if kind == "step":
            return _rates.steps(length)
        if kind == "cyclical":
            return _rates.cyclical(length, self.least)
        if kind == "one-cycle":
            return _rates.one_cycle(length, self.peak, self.least)
        return _rates.Plateau(lambda: _loss(run, self.window), self.window, self.patience)


def _scheduled(run: Run) -> bool:
    """Whether rates are scheduled already: by a scheduler, by the medic, or by the training loop itself."""
    from trainmedic.remedies._rates import Program
    from trainmedic.remedies._schedulers import schedulers_of

    if schedulers_of(run.optimizers, run.schedulers) or any(isinstance(guard, Program) for guard in run.guards):
        return True
    if "optimizer/learning_rate" not in run.history:
        return False
    rates = run.history.series("optimizer/learning_rate").values
    rates = rates[np.isfinite(rates)]
    return len(np.unique(rates)) > max(3, len(rates) // 10)  # a few values: treatments, or a cut by hand


def brought_down(finding: Finding, run: Run) -> bool:
    """Whether the run's own schedule has brought the rate to nothing, long before the run ends.

    A rate that is raised then is brought down again.
    """
    from trainmedic.remedies._rates import Instead

    if finding.name not in BROUGHT_DOWN or any(isinstance(guard, Instead) for guard in run.guards):
        return False
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    if "optimizer/learning_rate" not in run.history or not all("initial_lr" in group for group in groups):
        return False
    total = run.history.facts.get("total_steps") or 0
    rates = run.history.series("optimizer/learning_rate").values
    rates = rates[np.isfinite(rates)]
    return len(rates) > 0 and run.step < total / 2 and bool(rates[-1] <= rates.max() / 10)


def driven_up(finding: Finding, run: Run) -> bool:
    """Whether the run's own schedule has raised the rate far above the one at which the loss was lowest.

    A rate that is lowered then is raised again.
    """
    from trainmedic.remedies._rates import Instead

    if finding.name not in DRIVEN_UP or any(isinstance(guard, Instead) for guard in run.guards):
        return False
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    if "optimizer/learning_rate" not in run.history or not all("initial_lr" in group for group in groups):
        return False
    return float(run.history.series("optimizer/learning_rate").values[-1]) * SAFER > _at_its_best(run)


def _at_its_best(run: Run) -> float:
    """The rate of the first group when the training loss was lowest; infinite where there are too few losses."""
    if "train/loss" not in run.history:
        return math.inf
    steps, losses = run.history.series("train/loss")
    if len(losses) < 2 * SPAN:
        return math.inf
    levels = np.median(sliding_window_view(losses, SPAN), axis=1)
    if not np.isfinite(levels).any():
        return math.inf
    best = steps[int(np.nanargmin(np.where(np.isfinite(levels), levels, np.nan))) + SPAN // 2]
    at, rates = run.history.series("optimizer/learning_rate")
    return float(rates[max(int(np.searchsorted(at, best, side="right")) - 1, 0)])


def _highest(run: Run) -> float:
    """The highest rate of the first group so far."""
    rates = run.history.series("optimizer/learning_rate").values
    return float(rates[np.isfinite(rates)].max())


def _peaks(run: Run, rate: float) -> list[float]:
    """A rate of the first group, and of the others in proportion."""
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    share = rate / max(float(groups[0]["initial_lr"]), 1e-30)
    return [float(group["initial_lr"]) * share for group in groups]


def _left(run: Run) -> int:
    """Steps of the rest of the run; as many as there were so far where its length is not known."""
    total = int(run.history.facts.get("total_steps", 0))
    return max(total - run.step - 1, 1) if total else max(run.step, 100)


def _loss(run: Run, window: int) -> float | None:
    """The validation loss, or the median of the newest training losses."""
    for name, newest in (("validation/loss", 1), ("train/loss", window)):
        if name in run.history and len(values := run.history.series(name).values):
            value = float(np.median(values[-newest:]))
            return value if np.isfinite(value) else None
    return None
