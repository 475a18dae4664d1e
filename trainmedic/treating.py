"""How the Medic treats: one change at a time, at a safe point, tried, and undone if it does not help.

A treatment goes: a finding -> candidates -> (safe point) a controlled trial of all that kept batches can show, and the
winner, if there is one, is applied; or, where no controlled trial can be made, state kept, first candidate applied,
watched -> kept, or undone at the next safe point, where the next candidate has its turn. Which states are kept, and
gone back to, is that of :mod:`trainmedic.states`.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainmedic.controlled import Controlled, Plan, Result
from trainmedic.diagnose import Finding
from trainmedic.diagnose.robust import equal_level
from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies.change import Change, Rival, Safety, Treatment
from trainmedic.remedies.choose import Choice, Fix, choose
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run
from trainmedic.remedies.skip_step import SkipStep, stand_by
from trainmedic.remedies.trial import LEAST_EFFECT, SequentialTrial, Trial, Verdict
from trainmedic.settings import Settings
from trainmedic.states import LEAST_WINDOW, States

HEALTHY_FILE = "healthy.pt"
IN_VAIN = 2
"""Changes that are tried without a control, and undone, in a run that is getting somewhere."""
MEASURED = "what measuring it took leaves too little of the budget for a controlled trial"
DOSES = 10
"""More than any act has: one whose first dose trails has no other turn."""


@dataclass
class OnTrial:
    """A change that is applied and watched."""

    treatment: Treatment
    undo: Undo
    before: State
    """What is put back when it is undone: the state before it, or the healthy one if that was spoilt."""
    fresh: State
    """Right after the change: what training begins anew from if it is kept."""
    trial: Trial
    finding: Finding
    back: bool
    """Whether that is put back even if nothing got worse."""


@dataclass(frozen=True)
class Pending:
    """A finding that is to be treated at the next safe point, and what could be done, the preferred first."""

    finding: Finding
    candidates: list[tuple[Remedy, Change]]

    @property
    def ends_the_run(self) -> bool:
        return self.candidates[0][0].ends_the_run


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
        controlled: Controlled,
        logdir: Path | None,
    ) -> None:
        self.run, self.settings, self.fix = run, settings, fix
        self.controlled, self.states = controlled, States(run, controlled)
        self.treatments: list[Treatment] = []
        self.refused: dict[str, str] = {}
        self.since_before = 0  # and the first one before the last change
        self.since = 0  # first step that the detectors look at: they restart after a change
        self._changed, self._decided, self._logdir = changed, decided, logdir
        self._pending: Pending | None = None
        self._on_trial: OnTrial | None = None
        self._undo_next: tuple[OnTrial, Verdict] | None = None
        self._tried: dict[str, Counter[str]] = {}
        self._looks: dict[str, int] = {}  # controlled trials that were too short to tell, by illness
        self._rest_until = 0
        self._before: tuple[int, int] | None = None
        self.lost = ""  # that nothing more can be done
        self._put_back_next = self._stop_next = False
        self.seconds = 0.0  # spent in controlled trials

    def begin(self) -> None:
        """Keep the state that training starts from: it has no history, so it is healthy."""
        if self.fix != "off":
            self.states.begin_anew()
            judged = {rule.name for rule in self.settings.configured_rules()}
            if SkipStep.name not in self.settings.ignore_remedies and not judged.isdisjoint(SkipStep.treats):
                stand_by(self.run)

    # -- looking -------------------------------------------------------------------------------------------------

    @property
    def wants_a_safe_point(self) -> bool:
        """Whether a change waits to be made."""
        return self._pending is not None or self._undo_next is not None or self._put_back_next

    @property
    def watches_a_step(self) -> bool:
        """Whether the step in progress is to be replayed: its loss is needed at the next safe point."""
        return self.controlled.watching

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
            self.states.keep_healthy(step)
        if self._on_trial or self.wants_a_safe_point or step < self._rest_until:
            return
        if len(self.treatments) >= self.settings.max_treatments:
            return
        for finding in ill:
            choice = self._choose(finding)
            if choice.candidates:
                self._pending = Pending(finding, choice.candidates)
                return
        self._give_up([finding for finding in ill if self._tried.get(finding.name) and finding.severity == "error"])

    def _choose(self, finding: Finding) -> Choice:
        tried = self._tried.get(finding.name, Counter())
        self.states.fall_back(finding)  # acts that go back look at that state
        choice = choose(finding, self.run, fix=self.fix, ignore=self.settings.ignore_remedies, tried=tried)
        self.refused.update(choice.refused)
        return choice

    def keep_best(self, value: float, mode: str) -> None:
        """Keep the state whose monitored value is the best so far; called when a value is logged."""
        if self.fix != "off" and value == value and not self.run.stop_requested:
            self.states.keep_best(value, mode, on_trial=bool(self._on_trial or self._undo_next))

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
        if self._pending is not None and self._pending.ends_the_run:
            pending, self._pending = self._pending, None
            now = State.capture(self.run)
            self._try_in_sequence(pending, "the run ends with it", now, now)
        if self._stop_next:
            self._stop_next = False
            self._put_back()
            self.run.stop_requested = True

    def at_safe_point(self) -> None:
        """No graph of a watched model is needed any more: undo what did not help, try what was chosen."""
        if self._undo_next is not None:
            on_trial, verdict = self._undo_next
            self._undo_next = None
            on_trial.undo()
            if verdict.worse or on_trial.back:
                on_trial.before.restore(self.run, clocks=False)
            else:  # weights moved by the run's own optimizer, which are no worse: the steps are not thrown away
                verdict = verdict._replace(reason=f"{verdict.reason}; what was learnt meanwhile stays")
            self._finish(on_trial, verdict, self.run.step)
            self._next_candidate(on_trial.finding)
        if self.controlled.watching:
            self.controlled.replay_the_step(self._logged(self.run.step))
        if self._put_back_next:
            self._put_back_next = False
            self._put_back()
        if self._pending is not None and not self._pending.ends_the_run:
            self._treat(self._pending)

    def _next_candidate(self, finding: Finding) -> None:
        """After an undo the state is that in which the finding was made: what else could treat it?"""
        if len(self.treatments) < self.settings.max_treatments:
            choice = self._choose(finding)
            if choice.candidates:
                self._pending = Pending(finding, choice.candidates)

    def _treat(self, pending: Pending) -> None:
        """Try the candidates, in a controlled trial if one can be made; may wait for another safe point."""
        remedy, _ = pending.candidates[0]
        plan: Plan | str | None = "batches that were kept cannot show what it does"
        if remedy.rehearsed:
            thrown_out = self.states.thrown_out(pending.finding, self.since)
            plan = "the run was thrown out" if thrown_out else self._plan(pending)
        if plan is None or (self._needs_steps(plan, remedy) and self._watches_first()):
            return
        if isinstance(plan, Plan) and not self.controlled.rehearsal.ready:
            plan = self.controlled.impossible()
        self._pending = None
        self.states.fall_back(pending.finding)
        now = State.capture(self.run)
        base = self.states.base(pending.finding, now, self.since, self._window())
        if isinstance(plan, str):
            self._try_in_sequence(pending, plan, base, now)
        elif plan.short:
            self._screened(pending, plan, base, now)
        else:
            self._try_with_control(pending, plan, base, now)

    def _plan(self, pending: Pending) -> Plan | str | None:
        look = self._looks.get(pending.finding.name, 0)
        plan = self.controlled.plan(pending.finding, pending.candidates, look)
        if look and isinstance(plan, str):
            return f"a first trial was too short to tell; of a longer one: {plan}"
        return plan

    def _needs_steps(self, plan: Plan | str, remedy: Remedy) -> bool:
        return isinstance(plan, Plan) or remedy.measures

    def _watches_first(self) -> bool:
        """Whether a step has to be watched, to know how to take one."""
        if self.controlled.rehearsal.ready or self.controlled.impossible():
            return False
        self.controlled.watch_a_step()
        return True

    def _logged(self, step: int) -> float | None:
        """The training loss that was logged for a step."""
        if "train/loss" not in self.run.history:
            return None
        steps, losses = self.run.history.series("train/loss")
        return float(losses[-1]) if len(steps) and steps[-1] == step else None

    def _measured(self, finding: Finding, candidates: Sequence[tuple[Remedy, Change]]) -> list[tuple[Remedy, Change]]:
        """The candidates, with what has to be measured first; without those that it speaks against."""
        kept = []
        for remedy, change in candidates:
            try:
                if not self.controlled.allows(remedy, finding):
                    raise Refused("it takes more steps to measure than the budget for trials allows")
                before = self.controlled.rehearsal.spent
                measured = remedy.measure(change, self.run)
                self.controlled.spent += self.controlled.rehearsal.spent - before
            except Exception as error:
                self.refused[remedy.name] = _reason(error)
                continue
            if measured is not None:
                kept.append((remedy, measured))
        return kept

    # -- with a control ------------------------------------------------------------------------------------------

    def _try_with_control(self, pending: Pending, plan: Plan, base: State, now: State) -> None:
        """Run the arms from one state; apply the winner there, if there is one."""
        finding, start = pending.finding, self.run.step + 1
        result, known = self._compared(finding, plan, base, now)
        if result is None:
            if uncontrolled := self.controlled.impossible() or (known and MEASURED):
                self._try_in_sequence(pending, uncontrolled, base, now, known=known)
            return
        (remedy, change), best = result.compared[0]
        treatment = Treatment(
            finding=finding.id,
            code=finding.code,
            illness=finding.name,
            change=change,
            step=start,
            trial="controlled",
            decided_at=self.run.step,
            control=best.control,
            treated=best.treated,
            outcome="kept" if result.winner else "undone",
            reason=best.reason,
            horizons=result.horizons[: len(best.treated)],
            judged_on=result.judged_on,
            batches=result.batches,
            effect=_finite(best.effect),
            least_effect=LEAST_EFFECT,
            p_value=best.p_value,
            extra_steps=result.steps,
            rivals=tuple(
                Rival(
                    change=other,
                    reason=told.reason if not told.won else "it won by less",
                    treated=told.treated,
                    effect=_finite(told.effect),
                    p_value=told.p_value,
                )
                for (_, other), told in result.compared[1:]
            ),
        )
        if result.winner:
            try:
                if base is not now:
                    base.restore(self.run, clocks=False)
                remedy.apply(change, self.run)
            except Exception as error:
                now.restore(self.run)
                treatment = treatment.model_copy(update={"outcome": "refused", "reason": _reason(error)})
            else:
                treatment = treatment.model_copy(update={"reason": _joined(_from(base, now), best.reason)})
                self._restart(start)
                self._begin_anew(State.capture(self.run))
                self._cured(finding.name)
                self._save_healthy()
        self._tell(treatment)
        self._rest_until = self.run.step + self._cooldown()
        if not result.winner:
            self._lost_all(finding, result, plan.look)

    def _compared(
        self, finding: Finding, plan: Plan, base: State, now: State
    ) -> tuple[Result | None, list[tuple[Remedy, Change]]]:
        """What the arms of a plan come to from a state, if any were run, and the candidates as measured.

        Nothing lasts.
        """
        began, candidates = time.perf_counter(), list[tuple[Remedy, Change]]()
        try:
            if base is not now:
                base.restore(self.run, clocks=False)
            candidates = self._measured(finding, plan.candidates)
            if len(candidates) < len(plan.candidates):
                self._note_tried(finding, plan.candidates)
            fitted = self.controlled.fitted(dataclasses.replace(plan, candidates=candidates), finding)
            return self.controlled.run_trial(fitted) if fitted.candidates else None, candidates
        except Exception as error:  # in the arm without any change
            self.refused["controlled trial"] = _reason(error)
            self.controlled.give_up(f"an untreated arm failed: {_reason(error)}")
            return None, candidates
        finally:
            if base is not now:
                now.restore(self.run)
            self.seconds += time.perf_counter() - began

    def _note_tried(self, finding: Finding, candidates: Iterable[tuple[Remedy, Change]]) -> None:
        self._tried.setdefault(finding.name, Counter()).update(remedy.name for remedy, _ in candidates)

    def _lost_all(self, finding: Finding, result: Result, look: int) -> None:
        """No arm has won. What did no harm to a run that is failing may only have been too short to show."""
        failing = self.controlled.failing(finding)
        over = [pair for pair, told in result.compared if not failing or not told.effect > -LEAST_EFFECT]
        self._note_tried(finding, over)
        if failing:
            self._looks[finding.name] = look + 1
        self._next_candidate(finding)

    def _cured(self, illness: str) -> None:
        self._tried.pop(illness, None)
        self._looks.pop(illness, None)

    # -- without one ---------------------------------------------------------------------------------------------

    def _try_in_sequence(
        self,
        pending: Pending,
        uncontrolled: str,
        base: State,
        now: State,
        seen: Result | None = None,
        known: Sequence[tuple[Remedy, Change]] = (),
    ) -> None:
        """Apply the first candidate, and watch; one that is refused gives way to the next.

        ``seen``: how they did in the first steps beside an untreated copy. Who trails it is not tried, who leads it has
        its turn first. ``known``: those that were measured already.
        """
        finding, sized = pending.finding, {remedy.name: change for remedy, change in known}
        candidates = [(remedy, sized.get(remedy.name, change)) for remedy, change in pending.candidates]
        for remedy, change in seen.ordered(candidates) if seen else candidates:
            found = seen.of(remedy) if seen else None
            if found is not None and not found.effect > -LEAST_EFFECT:
                self._note_tried(finding, [(remedy, change)] * DOSES)
                self.refused[remedy.name] = found.reason
                continue
            if remedy.ends_the_run and not pending.ends_the_run:
                self._pending = Pending(finding, [(remedy, change)])  # until the user asks whether to stop
                return
            ahead = self._ahead(finding, remedy, seen)
            if not self._time_left(finding, remedy) or (not ahead and self._reckless(finding, remedy)):
                continue
            ready = found is not None or remedy.name in sized
            pairs = [(remedy, change)] if ready else self._measured_at(base, now, finding, remedy, change)
            cost = seen.steps if seen else 0
            if pairs and self._apply(finding, *pairs[0], uncontrolled, base, now, ahead, cost):
                return

    def _ahead(self, finding: Finding, remedy: Remedy, seen: Result | None) -> str:
        """By how much it leads an untreated copy, if it does; a lower rate looks better at once, and does not count.

        But in a run that is failing: there the noise of its steps is not what holds the loss up.
        """
        found = seen.of(remedy) if seen is not None else None
        if seen is None or found is None or not found.won:
            return ""
        if remedy.name in seen.lowering and not self.controlled.failing(finding):
            return ""
        return f"{100 * found.effect:.2g} % below an untreated copy after {seen.horizons[0]} steps"

    def _screened(self, pending: Pending, plan: Plan, base: State, now: State) -> None:
        """See how the candidates do in the first steps beside an untreated copy, and try them in that order."""
        result, known = self._compared(pending.finding, plan, base, now)
        uncontrolled = plan.short
        if result is None:
            planned, names = {r.name for r, _ in plan.candidates}, {r.name for r, _ in known}
            left = [(r, c) for r, c in pending.candidates if not r.measures or r.name not in planned - names]
            pending, uncontrolled = Pending(pending.finding, left), self.controlled.impossible() or uncontrolled
        self._try_in_sequence(pending, uncontrolled, base, now, result, known)

    def _measured_at(
        self, base: State, now: State, finding: Finding, remedy: Remedy, change: Change
    ) -> list[tuple[Remedy, Change]]:
        """As :meth:`_measured`, at the state that the change would be made in. Nothing lasts."""
        if base is now:
            return self._measured(finding, [(remedy, change)])
        try:
            base.restore(self.run, clocks=False)
            return self._measured(finding, [(remedy, change)])
        finally:
            now.restore(self.run)

    def _apply(
        self,
        finding: Finding,
        remedy: Remedy,
        change: Change,
        uncontrolled: str,
        base: State,
        now: State,
        ahead: str = "",
        extra_steps: int = 0,
    ) -> bool:
        self._note_tried(finding, [(remedy, change)])
        start = self.run.step + 1
        treatment = Treatment(
            finding=finding.id,
            code=finding.code,
            illness=finding.name,
            change=change,
            step=start,
            uncontrolled=uncontrolled,
            extra_steps=extra_steps,
        )
        try:
            if base is not now:
                base.restore(self.run, clocks=False)
            undo = remedy.apply(change, self.run)
        except Exception as error:
            now.restore(self.run)
            self.refused[remedy.name] = _reason(error)
            done = {"outcome": "refused", "reason": _reason(error), "decided_at": start}
            self._tell(treatment.model_copy(update=done))
            return False
        treatment = treatment.model_copy(update={"reason": _joined(_from(base, now), ahead)})
        self._restart(start)
        if self.run.stop_requested:
            done = {"outcome": "kept", "decided_at": start, "reason": "the best monitored state is restored"}
            self._tell(treatment.model_copy(update=done))
            return True
        self._save_healthy()
        spoilt = self.states.spoilt(finding, now, self.since)
        first, last = self._time_before(start)
        trial = SequentialTrial(
            start=start,
            window=self._window(),
            since=first,
            until=last,
            spoilt=spoilt or remedy.changes_loss,
            failing=self.controlled.failing(finding),
            base=base.step if base is not now else None,
            learnt=self.states.learnt_until(base) if spoilt and base is not now else None,
            unless_worse=remedy.unless_worse or ("it had led an untreated copy" if ahead else ""),
            ceiling=self._ceiling(remedy),
        )
        unsafe, fresh = remedy.safety is not Safety.SAFE, State.capture(self.run)
        before = base if spoilt else now
        self._on_trial = OnTrial(treatment, undo, before, fresh, trial, finding, back=spoilt or unsafe)
        return True

    def _ceiling(self, remedy: Remedy) -> float:
        """The loss of taking all classes for equally likely, for acts that may raise the loss up to there."""
        level = equal_level(self.run.history)
        return level if remedy.raises_loss and math.isfinite(level) else -math.inf

    def _time_before(self, start: int) -> tuple[int, int]:
        """Steps that a change may be compared with: after one that was undone, those before that one."""
        steps = self.run.history.series("train/loss").steps if "train/loss" in self.run.history else np.empty(0)
        least = max(SequentialTrial.FEW, self._window() // 2)
        if self._before is None or np.sum((steps >= self.since_before) & (steps < start)) >= least:
            self._before = self.since_before, start - 1
        return self._before

    def _window(self) -> int:
        """Steps to watch: a tenth of a short run, so that there is a run left for what comes after."""
        total = self.run.history.facts.get("total_steps")
        return max(LEAST_WINDOW, min(self.settings.trial_steps, total // 10)) if total else self.settings.trial_steps

    def _reckless(self, finding: Finding, remedy: Remedy) -> bool:
        """Whether trying without a control risks more than it can win, in a run that is getting somewhere.

        So do unsafe acts, and, where several were undone, any act: each one costs the steps that it was watched for.
        """
        if self.controlled.failing(finding) or self.states.young or remedy.ends_the_run or remedy.unless_worse:
            return False
        if remedy.safety is not Safety.SAFE:
            self.refused[remedy.name] = "the run is getting somewhere: an unsafe act would need a control"
            return True
        return sum(t.outcome == "undone" and t.trial == "sequential" for t in self.treatments) >= IN_VAIN

    def _time_left(self, finding: Finding, remedy: Remedy) -> bool:
        """Whether the run lasts long enough to see what comes of a change: nothing is left unjudged at its end."""
        total = self.run.history.facts.get("total_steps")
        if not total or remedy.ends_the_run or remedy.unless_worse or self.run.step + 1 + self._window() <= total:
            return True
        return self.states.spoilt(finding, State.capture(self.run), self.since)  # then there is nothing to lose

    def _cooldown(self) -> int:
        total = self.run.history.facts.get("total_steps")
        return min(self.settings.cooldown, total // 10) if total else self.settings.cooldown

    def _save_healthy(self) -> None:
        if self._logdir is not None and self.run.healthy is not None:
            self.run.healthy.save(self._logdir / HEALTHY_FILE)

    # -- when nothing helps --------------------------------------------------------------------------------------

    def _give_up(self, ill: Sequence[Finding]) -> None:
        """All that could treat a failing run was tried: say so, put back the best state of a spoilt one."""
        if not ill or self.lost:
            return
        self.lost = f"nothing that was tried helped against {ill[0].name}"
        self._put_back_next = self.states.spoilt(ill[0], State.capture(self.run), self.since)
        self._stop_next = self.settings.stop_when_lost

    def _put_back(self) -> None:
        """The best monitored state, or else the last healthy one, unless the model was changed since."""
        for state in (self.run.best, self.run.healthy):
            if state is not None and state.fits(self.run) and state.finite():
                state.restore(self.run, clocks=False)
                self.lost += f"; the state of step {state.step} was put back"
                self._restart(self.run.step + 1)
                return

    def _restart(self, start: int) -> None:
        """Detectors look only at what comes after a change.

        With several optimizers, what is logged after the last one's step belongs to the next step of the first.
        """
        self.since_before, self.since = self.since, start + (len(self.run.optimizers) > 1)
        self.states.restart()
        self._changed()

    def _begin_anew(self, fresh: State) -> None:
        """A change was kept: states from before it hold what it has replaced."""
        self.states.start_from(fresh)
        self._before = None

    def _finish(self, on_trial: OnTrial, verdict: Verdict, step: int) -> None:
        reason = _joined(on_trial.treatment.reason, verdict.reason)
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
            self._begin_anew(on_trial.fresh)
            self._cured(on_trial.treatment.illness)
        else:
            self._restart(step + 1)
        self._rest_until = step + self._cooldown()

    def _tell(self, treatment: Treatment) -> None:
        self.treatments.append(treatment)
        self._decided(treatment)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Refused) else f"it failed: {type(error).__name__}: {error}"


def _from(base: State, now: State) -> str:
    return f"from the healthy state of step {base.step}" if base is not now else ""


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
