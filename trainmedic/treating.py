"""How the Medic treats: one change at a time, at a safe point, watched, and undone if it does not help.

A treatment goes: a finding -> candidates -> (safe point) state kept, change applied -> trial -> kept, or undone at the
next safe point. The states kept are the last healthy one (never replaced by one that was not judged since), a newer
one that waits for its judgement, the best monitored one, and the one that the trial began from.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainmedic.diagnose import Finding
from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies.change import Change, Treatment
from trainmedic.remedies.choose import Choice, Fix, choose
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run
from trainmedic.remedies.trial import SequentialTrial, Trial, Verdict
from trainmedic.settings import Settings

HEALTHY_FILE = "healthy.pt"
SETTLED = 10
"""Steps that must have passed without a finding before a state counts as healthy: illnesses show late."""


@dataclass
class OnTrial:
    """A change that is applied and watched."""

    treatment: Treatment
    undo: Undo
    base: State
    trial: Trial


class Treating:
    """The treating half of the Medic. It acts at safe points only; everything else is looking and keeping states."""

    def __init__(
        self,
        run: Run,
        settings: Settings,
        fix: Fix,
        *,
        changed: Callable[[], None],
        decided: Callable[[Treatment], None],
        logdir: Path | None,
    ) -> None:
        self.run, self.settings, self.fix = run, settings, fix
        self.treatments: list[Treatment] = []
        self.refused: dict[str, str] = {}
        self.since_before = 0  # and the first one before the last change
        self.since = 0  # first step that the detectors look at: they restart after a change
        self._changed, self._decided, self._logdir = changed, decided, logdir
        self._pending: list[tuple[Finding, Remedy, Change]] = []
        self._on_trial: OnTrial | None = None
        self._undo_next: tuple[OnTrial, Verdict] | None = None
        self._candidate: State | None = None
        self._tried: dict[str, set[str]] = {}
        self._rest_until = 0
        self._best_value: float | None = None

    def begin(self) -> None:
        """Keep the state that training starts from: it has no history, so it is healthy."""
        if self.fix != "off":
            self.run.healthy = State.capture(self.run)

    # -- looking -------------------------------------------------------------------------------------------------

    @property
    def wants_a_safe_point(self) -> bool:
        """Whether a change waits to be made."""
        return bool(self._pending or self._undo_next)

    def record(self) -> tuple[Treatment, ...]:
        """All treatments so far, with the one that is on trial, if any."""
        waiting = [on_trial for on_trial in (self._on_trial, self._undo_next and self._undo_next[0]) if on_trial]
        return (*self.treatments, *(on_trial.treatment for on_trial in waiting))

    def advise(self, findings: tuple[Finding, ...]) -> list[tuple[str, Change]]:
        """What would be done about roots that are not treated, if everything were allowed: (id, change) each."""
        treated = {treatment.finding for treatment in self.treatments if treatment.outcome == "kept"}
        roots = [f for f in findings if f.explained_by is None and f.severity.rank > 0 and f.id not in treated]
        looking = dataclasses.replace(self.run, advising=True)
        return [(f.id, change) for f in roots for _, change in choose(f, looking, fix="unsafe").candidates]

    def consider(self, findings: Sequence[Finding], step: int) -> None:
        """Look at what the rules find now: keep a healthy state, or choose a treatment."""
        self.run.step = step
        ill = [f for f in findings if f.explained_by is None and f.severity.rank > 0]
        if self.fix == "off" or self.run.stop_requested:
            return
        if not ill and self._on_trial is None and not self.wants_a_safe_point:
            self._keep_healthy(step)
        if self._on_trial or self.wants_a_safe_point or step < self._rest_until:
            return
        if len(self.treatments) >= self.settings.max_treatments:
            return
        for finding in ill:
            choice = self._choose(finding)
            if choice.candidates:
                remedy, change = choice.candidates[0]
                self._pending = [(finding, remedy, change)]
                return

    def _choose(self, finding: Finding) -> Choice:
        tried = self._tried.get(finding.name, set())
        if (
            self.run.healthy is not None
            and self._candidate is not None
            and self._candidate.step < finding.step - SETTLED
        ):
            self.run.healthy, self._candidate = self._candidate, None
        choice = choose(finding, self.run, fix=self.fix, ignore=self.settings.ignore_remedies, tried=tried)
        self.refused.update(choice.refused)
        return choice

    def _keep_healthy(self, step: int) -> None:
        """Two states take turns: the newer one becomes the healthy one when no finding has come up since."""
        candidate, spare = self._candidate, None
        if candidate is not None:
            if step - candidate.step < SETTLED:
                return
            spare, self.run.healthy = self.run.healthy, candidate
        self._candidate = State.capture(self.run, into=spare)

    def keep_best(self, value: float, mode: str) -> None:
        """Keep the state whose monitored value is the best so far; called when a value is logged."""
        if self.fix == "off" or value != value or self.run.stop_requested:
            return
        if self.run.best is not None and not self.run.best.fits(self.run):
            if self._on_trial or self._undo_next:
                return  # the model was changed, and may be changed back
            self.run.best = self._best_value = None
        if self._best_value is None or (value < self._best_value if mode == "min" else value > self._best_value):
            self._best_value = value
            self.run.best = State.capture(self.run, into=self.run.best)

    def watch_trial(self, history: History, step: int) -> None:
        """After each step: let the trial decide, if it can."""
        self.run.step = step
        if self._on_trial is None:
            return
        verdict = self._on_trial.trial.verdict(history, step)
        if verdict is None:
            return
        on_trial, self._on_trial = self._on_trial, None
        if verdict.kept:
            self._finish(on_trial, verdict, step)
        else:
            self._undo_next = (on_trial, verdict)

    # -- acting, at a safe point ---------------------------------------------------------------------------------

    def at_stopping_point(self) -> None:
        """The user asks whether to stop: the one place where a change that ends the run is made."""
        if self._pending and self._pending[0][1].ends_the_run:
            self._apply(*self._pending.pop(0))

    def at_safe_point(self) -> None:
        """No graph of a watched model is needed any more: undo what did not help, apply what was chosen."""
        if self._undo_next is not None:
            on_trial, verdict = self._undo_next
            self._undo_next = None
            on_trial.undo()
            on_trial.base.restore(self.run, clocks=False)
            self._finish(on_trial, verdict, self.run.step)
        while self._pending and not self._pending[0][1].ends_the_run:
            self._apply(*self._pending.pop(0))

    def _apply(self, finding: Finding, remedy: Remedy, change: Change) -> None:
        self._tried.setdefault(finding.name, set()).add(remedy.name)
        start = self.run.step + 1
        treatment = Treatment(finding=finding.id, code=finding.code, illness=finding.name, change=change, step=start)
        now = State.capture(self.run)
        spoilt = self._spoilt(finding, now)
        healthy = self.run.healthy
        base = healthy if spoilt and healthy is not None and healthy.fits(self.run) else now
        try:
            if base is not now:
                base.restore(self.run, clocks=False)
            undo = remedy.apply(change, self.run)
        except Exception as error:
            now.restore(self.run)
            reason = str(error) if isinstance(error, Refused) else f"it failed: {type(error).__name__}: {error}"
            self.refused[remedy.name] = reason
            self._tell(treatment.model_copy(update={"outcome": "refused", "reason": reason, "decided_at": start}))
            return
        if base is not now:
            treatment = treatment.model_copy(update={"reason": f"from the healthy state of step {base.step}"})
        self._restart(start)
        if self.run.stop_requested:
            done = {"outcome": "kept", "decided_at": start, "reason": "the best monitored state is restored"}
            self._tell(treatment.model_copy(update=done))
            return
        if self._logdir is not None and self.run.healthy is not None:
            self.run.healthy.save(self._logdir / HEALTHY_FILE)
        window = self.settings.trial_steps
        trial = SequentialTrial(start=start, window=window, since=self.since_before, spoilt=spoilt)
        self._on_trial = OnTrial(treatment, undo, base, trial)

    def _spoilt(self, finding: Finding, now: State) -> bool:
        """Whether the present state is worth nothing: weights or loss not finite, or the loss far above its start."""
        if not now.finite():
            return True
        if "train/loss" not in self.run.history:
            return False
        steps, losses = self.run.history.series("train/loss")
        losses = losses[steps >= self.since]
        if not len(losses) or not np.isfinite(losses[-1]):
            return bool(len(losses))
        sane = losses[np.isfinite(losses)]
        healthy = sane[: max(1, int(np.searchsorted(steps[steps >= self.since], finding.step, side="right")))]
        return bool(losses[-1] > 10 * max(float(np.median(healthy)), 1e-12) and losses[-1] > sane.min() * 10)

    def _restart(self, start: int) -> None:
        """Detectors look only at what comes after a change.

        With several optimizers, what is logged after the last one's step belongs to the next step of the first.
        """
        self.since_before, self.since = self.since, start + (len(self.run.optimizers) > 1)
        self._candidate = None
        self._changed()

    def _finish(self, on_trial: OnTrial, verdict: Verdict, step: int) -> None:
        reason = "; ".join(part for part in (on_trial.treatment.reason, verdict.reason) if part)
        self._tell(
            on_trial.treatment.model_copy(
                update={
                    "decided_at": step,
                    "outcome": "kept" if verdict.kept else "undone",
                    "reason": reason,
                    "control": verdict.control,
                    "treated": verdict.treated,
                }
            )
        )
        if verdict.kept:
            self._tried.pop(on_trial.treatment.illness, None)
        else:
            self._restart(step + 1)
        self._rest_until = step + self.settings.cooldown

    def _tell(self, treatment: Treatment) -> None:
        self.treatments.append(treatment)
        self._decided(treatment)
