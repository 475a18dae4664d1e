"""The states that treatments go back to: which are kept, which is of before an illness, what the present one is worth.

Kept are the state that the run began with, or that the last change left it in; the last healthy one, never replaced by
one that was not judged since; a newer one that waits for its judgement; and the best monitored one.
"""

import numpy as np

from trainmedic.controlled import FEW, NO_GAIN, Controlled
from trainmedic.diagnose import Finding
from trainmedic.diagnose.learnt import learnt
from trainmedic.diagnose.robust import rejected_steps
from trainmedic.remedies._state import State
from trainmedic.remedies.lower_learning_rate import BY_STEPS, torn_by
from trainmedic.remedies.run import Run
from trainmedic.remedies.schedule_learning_rate import driven_up
from trainmedic.remedies.skip_step import SkipStep, held_off

LEAST_WINDOW = 20
"""Steps that a change is watched for, at least."""
UNHARMED = ("noisy-gradient", "plateau")
"""Illnesses that spoil no weights: what they have learnt need not show in the loss yet."""
TORN = 0.1
"""|update| / |weight| of steps after few of which nothing is left of what weights were."""
EARLY = 0.25
"""Share of the run that may be given up for a state from before such steps."""
SETTLED = 10
"""Steps that must have passed without a finding before a state counts as healthy: illnesses show late."""


class States:
    """Keeps the states of a run, and chooses among them.

    ``run.healthy`` is the one to go back to from what was found last, ``run.best`` the best monitored one.
    """

    def __init__(self, run: Run, controlled: Controlled) -> None:
        self.run, self.controlled = run, controlled
        self.initial: State | None = None
        self._healthy: State | None = None
        self._candidate: State | None = None
        self._best_value: float | None = None

    def begin_anew(self) -> None:
        """Keep the present state as the one that training starts from: it has no history, so it is healthy.

        States from before a change hold what it has replaced.
        """
        self.start_from(State.capture(self.run))

    def start_from(self, fresh: State) -> None:
        """As :meth:`begin_anew`, from a state that was kept right after a change."""
        self.run.healthy = self._healthy = self.initial = fresh

    def restart(self) -> None:
        """The run was changed: what waits for its judgement would be judged by what comes now."""
        self._candidate = None

    def keep_healthy(self, step: int) -> None:
        """Two states take turns: the newer one becomes the healthy one when no finding has come up since."""
        candidate, spare = self._candidate, None
        if candidate is not None:
            if step - candidate.step < SETTLED:
                return
            spare, self._healthy = self._healthy, candidate
            self.run.healthy = candidate
        kept = any(spare is state for state in (self.initial, self.run.best))
        self._candidate = State.capture(self.run, into=None if kept else spare)

    def keep_best(self, value: float, mode: str, on_trial: bool) -> None:
        """Keep the state whose monitored value is the best so far."""
        if self.run.best is not None and not self.run.best.fits(self.run):
            if on_trial:
                return  # the model was changed, and may be changed back
            self.run.best = self._best_value = None
        if self._best_value is None or (value < self._best_value if mode == "min" else value > self._best_value):
            self._best_value = value
            needed = self.run.best is self.run.healthy  # a sick run fell back to it
            self.run.best = State.capture(self.run, into=None if needed else self.run.best)

    def fall_back(self, finding: Finding) -> None:
        """Take for healthy the newest state of before the onset; that of the start, where nothing was won since.

        Where none is of before it, the last one that was thought healthy is as far as one can go back.
        """
        newer = self._candidate
        if newer is not None and newer.step >= finding.step - SETTLED:
            newer = None  # illnesses show late
        known = [state for state in (self.initial, self._healthy, self.run.best, newer) if state is not None]
        sound = [state for state in known if self.sound(state, finding)]
        if not sound:
            self.run.healthy = self._healthy
            return
        initial, newest = self.initial, max(sound, key=lambda state: state.step)
        at_first = initial is not None and any(state is initial for state in sound)
        self.run.healthy = initial if at_first and self._no_better(sound[0], newest.step) else newest

    def sound(self, state: State, finding: Finding) -> bool:
        """Whether a state is of before the onset, and of after the last change that was kept, and can be put back."""
        changed = self.initial is not None and state.step < self.initial.step
        # a schedule is wrong from the first step on: the weights are well until it shows
        onset = finding.detected_at if finding.name == "scheduler-misuse" else finding.step
        return state.step <= onset and not changed and state.fits(self.run) and state.finite()

    def base(self, finding: Finding, now: State, since: int, window: int) -> State:
        """The state to treat from: the last healthy one, where the run has nothing to lose by it."""
        healthy = self.run.healthy
        if healthy is None or not self.sound(healthy, finding):
            return now
        worthless = self.spoilt(finding, now, since) or self._nothing_to_lose(finding, healthy, window)
        return healthy if worthless else now

    def _nothing_to_lose(self, finding: Finding, healthy: State, window: int) -> bool:
        """Whether what came after a state is worth nothing: little was learnt, or units were lost for good."""
        failing = self.controlled.failing(finding)
        if finding.name in SkipStep.treats or finding.name in UNHARMED:
            return False  # what was held off has left nothing behind
        if self.controlled.knows_nothing() or (failing and finding.name in BY_STEPS):
            return True
        if driven_up(finding, self.run) and self.run.step - healthy.step <= window:
            return True
        if self._torn(finding, healthy):
            return True
        return (failing or self.young) and self._no_better(healthy, self.run.step)

    def _torn(self, finding: Finding, healthy: State) -> bool:
        """Whether steps of a rate that is too high have left nothing of the weights, early, and won little for it.

        Little is a smaller share of the task than the share of the run that they took.
        """
        total = self.run.history.facts.get("total_steps") or 0
        if finding.name != "learning-rate-too-high" or not self.run.step - healthy.step < total * EARLY:
            return False
        return learnt(self.run.history) < self.run.step / total and torn_by(self.run, finding.step) > TORN

    @property
    def young(self) -> bool:
        """Whether the run has hardly begun: then there is nothing to lose."""
        total = self.run.history.facts.get("total_steps") or 0
        return self.run.step < max(LEAST_WINDOW, total // 20)

    def thrown_out(self, finding: Finding, since: int) -> bool:
        """Whether the run was well and is spoilt: the batches that did it are not among those kept."""
        if not self.spoilt(finding, State.capture(self.run), since):
            return False
        healthy = self.run.healthy
        return healthy is None or self.initial is None or not self._no_better(self.initial, healthy.step)

    def spoilt(self, finding: Finding, now: State, since: int) -> bool:
        """Whether the present state is worth nothing: not finite, or more than half of what was won is lost again."""
        if not now.finite():
            return True
        if "train/loss" not in self.run.history:
            return False
        steps, losses = self.run.history.series("train/loss")
        counts = (steps >= since) & ~np.isin(steps, rejected_steps(self.run.history))
        counts &= ~np.isin(steps, held_off(self.run))
        steps, losses = steps[counts], losses[counts]
        if not len(losses) or not np.isfinite(losses[-1]):
            return bool(len(losses))
        sane = losses[np.isfinite(losses)]
        healthy = sane[: max(1, int(np.searchsorted(steps, finding.step, side="right")))]
        start, lowest = self._loss_at(0), float(sane.min())
        if start is not None and losses[-1] - lowest < (start - lowest) / 2:
            return False  # a multiple of next to nothing
        if self.controlled.knows_nothing() and self.controlled.ever_knew():
            return True
        return bool(losses[-1] > 10 * max(float(np.median(healthy)), 1e-12) and losses[-1] > 10 * lowest)

    def learnt_until(self, base: State) -> tuple[float, float] | None:
        """The loss that the run began with, and the one of a state that it is put back to."""
        start, level = self._loss_at(0), self._loss_at(base.step)
        return None if start is None or level is None or start != start else (start, level)

    def _no_better(self, state: State, step: int) -> bool:
        """Whether the training loss has not come down from a state to a step."""
        then, now = self._loss_at(state.step), self._loss_at(step)
        return then is not None and now is not None and not now < then - NO_GAIN * abs(then)

    def _loss_at(self, step: int) -> float | None:
        """The training loss right after a step, as a median of few."""
        if "train/loss" not in self.run.history:
            return None
        steps, losses = self.run.history.series("train/loss")
        first = max(0, min(int(np.searchsorted(steps, step, side="right")), len(losses) - FEW))
        near = losses[first : first + FEW]
        return float(np.median(near)) if len(near) else None
