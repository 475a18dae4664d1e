"""Controlled trials: from one state, on the same batches with the same random numbers, with each change and without."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from trainmedic.diagnose import Finding
from trainmedic.diagnose.learnt import learnt, skill
from trainmedic.keeping import Keeping
from trainmedic.remedies._clocks import generators, restore_generators
from trainmedic.remedies._containers import copied, size_in_bytes
from trainmedic.remedies._rehearsal import FORWARD, Example, Rehearsal, Unlike
from trainmedic.remedies._state import State
from trainmedic.remedies.change import Change
from trainmedic.remedies.remedy import Remedy
from trainmedic.remedies.run import Run
from trainmedic.remedies.trial import EACH, POINTS, Array, Comparison, compare, points
from trainmedic.settings import Settings

Candidate = tuple[Remedy, Change]

FREE = 100
"""Steps that may be spent in any run, however short: so that the rate of a short run can be measured, too."""
FLOOR = 30
"""Steps of the first horizon, at least, whatever the budget: before that a run has not answered to a change."""
LATER = 3
"""The last horizon is so many times the first."""
LONGEST = 300
"""Steps of the last horizon, at most: what did not show by then costs more to see than it is worth."""
CHEAP = 0.1
"""Share of the run that a trial of several candidates may cost, or a longer one after one that was too short to tell:
beyond it they have their turns one by one."""
SEEN_AT_MOST = 3
"""Times that a trial may train on one kept batch, unless the run itself has no others: else it would learn them."""
APART = 2
"""Batches set apart that are needed to judge on."""
ATTEMPTS = 3
"""Steps that are compared with their replay, at most, before controlled trials are given up."""
FEW = 10
"""Losses whose median stands for a moment of the run."""
NO_GAIN = 0.02
"""Share of the loss by which it must have come down for the run to be worth something."""
WELL = 0.5
"""Share of the task that a run has learnt which is not failing, whatever else is wrong with it."""
VALIDATION = ("overfitting",)
"""Illnesses that only validation shows."""
ON_TRAINING, ON_VALIDATION = "training data set apart", "validation data"


@dataclass
class Arm:
    """One candidate, or none, and the losses that it was judged by: (points x batches) for each horizon."""

    candidate: Candidate | None
    judged: list[Array] = field(default_factory=list)
    broke: str = ""
    lowers: bool = False


@dataclass(frozen=True)
class Result:
    """What a trial came to: each candidate with its comparison, the winner first if there is one."""

    winner: Candidate | None
    compared: list[tuple[Candidate, Comparison]]
    horizons: tuple[int, ...]
    judged_on: str
    batches: int
    steps: int
    lowering: frozenset[str] = frozenset()
    """Acts that lower the rate, which looks better at once."""

    def of(self, remedy: Remedy) -> Comparison | None:
        """How one act did, if it was tried."""
        return next((told for (other, _), told in self.compared if other.name == remedy.name), None)

    def ordered(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Who has won first, then the others in their order; with what was measured of them."""
        led = [pair for pair, told in self.compared if told.won]
        names = {remedy.name for remedy, _ in led}
        measured = {remedy.name: change for (remedy, change), _ in self.compared}
        return led + [(r, measured.get(r.name, change)) for r, change in candidates if r.name not in names]


@dataclass(frozen=True)
class Plan:
    """What a trial will do."""

    horizons: tuple[int, ...]
    candidates: list[Candidate]
    judged: Sequence[Example]
    judged_on: str
    look: int = 0
    short: str = ""
    """Why there is only a first horizon. That makes no controlled trial: it tells what is worth a sequential one."""


class Controlled:
    """Makes controlled trials where they can be made, and says why not where they cannot."""

    def __init__(
        self, run: Run, rehearsal: Rehearsal, keeping: Keeping, settings: Settings, val_loader: Iterable[Any] | None
    ) -> None:
        self.run, self.rehearsal, self.keeping, self.settings = run, rehearsal, keeping, settings
        self.spent = 0.0
        self._val_loader = val_loader
        self._held_out: list[Example] | None = None
        self._why_not = ""
        self._attempts = 0
        self._watched: State | None = None
        self._epochs: dict[int, int] = {}

    # -- is the medic's step the user's step? ------------------------------------------------------------------------

    @property
    def watching(self) -> bool:
        """Whether a step is being watched, to be replayed after it."""
        return self._watched is not None

    def impossible(self) -> str:
        """Why no step can be replayed in this run; empty if one can, as far as is known."""
        run, rehearsal = self.run, self.rehearsal
        if self._why_not:
            return self._why_not
        if rehearsal.loss_fn is None and rehearsal.step_fn is None:
            return "neither loss_fn nor step_fn was handed over"
        if len(run.optimizers) != 1:
            return "there are several optimizers, each with its own part of the step"
        if len(run.models) != 1 and rehearsal.step_fn is None:
            return "there are several models and no step_fn"
        if not rehearsal.examples:
            return self.keeping.why_not
        return ""

    def give_up(self, reason: str) -> None:
        """Make no more controlled trials."""
        self._why_not = reason

    def watch_a_step(self) -> None:
        """Between two batches: keep the state, so that the step that comes can be replayed."""
        self._watched = State.capture(self.rehearsal.whole())
        self._epochs = {id(scheduler): getattr(scheduler, "last_epoch", 0) for scheduler in self.rehearsal.schedulers()}
        self.keeping.watch_step()

    def replay_the_step(self, logged: float | None) -> None:
        """Between two batches, a step later: replay it, and compare."""
        before, self._watched = self._watched, None
        self.keeping.unwatch()
        examples, random = self.keeping.watched, self.keeping.random
        self.keeping.watched, self.keeping.random = [], None
        assert before is not None
        try:
            if not examples or random is None:
                raise Unlike(self.keeping.why_not)
            self.rehearsal.compare(
                before, examples, random, logged=logged, clip=self._clip(), scheduled=self._scheduled()
            )
        except Unlike as error:
            self._attempts += 1
            if self._attempts >= ATTEMPTS:
                self._why_not = f"a step of the run was taken again, and {error}"

    def _scheduled(self) -> list[tuple[Any, int]]:
        """How often each scheduler was stepped since the state was kept: with a metric nobody but the user can."""
        schedulers = self.rehearsal.schedulers()
        inside = {id(inner) for scheduler in schedulers for inner in getattr(scheduler, "_schedulers", ())}
        return [
            (scheduler, scheduler.last_epoch - self._epochs[id(scheduler)])
            for scheduler in schedulers
            if id(scheduler) in self._epochs and id(scheduler) not in inside
            if isinstance(scheduler, LRScheduler) and not isinstance(scheduler, ReduceLROnPlateau)
        ]

    def _clip(self) -> float | None:
        """The norm that the user clips to, if they do: what was left of those that were clipped."""
        history = self.run.history
        if "gradient/clipped" not in history or "gradient/norm" not in history:
            return None
        steps, ratios = history.series("gradient/clipped")
        norms = dict(zip(*history.series("gradient/norm"), strict=True))
        limits = [
            ratio * norms[step]
            for step, ratio in zip(steps[-200:], ratios[-200:], strict=True)
            if ratio < 0.999 and step in norms
        ]
        limits = [limit for limit in limits if math.isfinite(limit) and limit > 0]
        return float(np.median(limits)) if limits else None

    # -- what it may cost --------------------------------------------------------------------------------------------

    def plan(self, finding: Finding, candidates: Sequence[Candidate], look: int = 0) -> Plan | str | None:
        """What to do about a finding, or why no controlled trial can be made; ``None``: not yet, batches are coming.

        ``look``: how many trials were too short to tell; each one is followed by one three times as long. Where only a
        first horizon can be paid for, the plan is one for that, and says why.
        """
        if reason := self.impossible():
            return reason
        fit = [(remedy, change) for remedy, change in candidates if remedy.rehearsed]
        if not fit:
            return "kept batches cannot show what it does"
        total, allowed = self._allowed(finding)
        shortest, short = FLOOR * LATER ** (look + 1), ""
        if look:
            allowed = min(allowed, CHEAP * total)
        if (least := self._cost(1, shortest)) > allowed:
            short = f"it takes {math.ceil(least)} extra steps, and {max(0, int(allowed))} are allowed"
            if look or self._cost_of_first(1) > allowed:
                return short
            shortest = FLOOR
        distinct = len(self.rehearsal.examples)
        longest = LONGEST if self.keeping.complete else min(LONGEST, SEEN_AT_MOST * distinct)
        if self.keeping.collecting and longest < shortest:
            return None
        judged, judged_on = self._judged(finding)
        if not judged:
            return "there are no batches set apart to judge on" + (
                ": give val_loader" if finding.name in VALIDATION else ""
            )
        if longest < shortest:
            return f"{distinct} kept batches are too few to train on for {shortest} steps without learning them"
        if short:
            while len(fit) > 1 and self._cost_of_first(len(fit)) > allowed:
                fit = fit[:-1]
            return Plan((FLOOR,), fit, judged, judged_on, look, short)
        while len(fit) > 1 and self._cost(len(fit), shortest) > min(allowed, CHEAP * total):
            fit = fit[:-1]
        share = int(self.settings.trial_budget * total / (len(fit) + 1))
        last = min(longest, max(shortest, share))
        while last > shortest and self._cost(len(fit), last) > allowed:
            last -= LATER
        return Plan((last // LATER, last), fit, judged, judged_on, look)

    def failing(self, finding: Finding) -> bool:
        """Whether the run is worth little as it is: an error and not half of the task learnt, or no progress at all."""
        if (finding.severity == "error" and not learnt(self.run.history) > WELL) or self.knows_nothing():
            return True
        if "train/loss" not in self.run.history:
            return False
        losses = self.run.history.series("train/loss").values
        losses = losses[np.isfinite(losses)]
        if len(losses) < 2 * FEW:
            return False
        start, now = float(np.median(losses[:FEW])), float(np.median(losses[-FEW:]))
        return now > start - NO_GAIN * abs(start)

    def knows_nothing(self) -> bool:
        """Whether the loss is still that of who knows nothing of the inputs, where it can be told."""
        history = self.run.history
        enough = "train/loss" in history and len(history.series("train/loss").steps) >= 2 * FEW
        return enough and learnt(history) < NO_GAIN

    def ever_knew(self) -> bool:
        """Whether half of the task was learnt at some time."""
        return any(bool(np.nanmax(values, initial=-math.inf) > WELL) for _, values in skill(self.run.history))

    def allows(self, remedy: Remedy, finding: Finding) -> bool:
        """Whether the steps that a remedy takes to measure what it does fit into the budget."""
        return not remedy.measures or self._allowed(finding)[1] >= float(getattr(remedy, "steps", 0))

    def _allowed(self, finding: Finding) -> tuple[int, float]:
        """The length of the run as far as it is known, and the steps that a trial may cost now."""
        done = self.run.step + 1
        known = self.run.history.facts.get("total_steps")
        total = max(known, done) if isinstance(known, int) else done
        share = self.settings.trial_budget_failing if self.failing(finding) else self.settings.trial_budget
        allowed = max(share * total, FREE) - self.spent
        return total, min(allowed, total - done) if isinstance(known, int) else allowed

    def fitted(self, plan: Plan, finding: Finding) -> Plan:
        """The plan with as many candidates as can be paid for now, perhaps none: measuring has cost steps as well."""
        arms, (_, allowed) = len(plan.candidates), self._allowed(finding)
        while arms and (self._cost_of_first(arms) if plan.short else self._cost(arms, plan.horizons[-1])) > allowed:
            arms -= 1
        return dataclasses.replace(plan, candidates=plan.candidates[:arms])

    def _cost(self, arms: int, last: int) -> float:
        """Steps, at most: each arm with its judging, and for each a control that is cooled down at the end."""
        judging = 2 * POINTS * EACH * FORWARD
        return (arms + 1) * (last + judging) + arms * (last / 3 + judging / 2)

    def _cost_of_first(self, arms: int) -> float:
        """Steps of the first horizon alone, at its least."""
        return (arms + 1) * (FLOOR + POINTS * EACH * FORWARD)

    def _judged(self, finding: Finding) -> tuple[Sequence[Example], str]:
        if finding.name in VALIDATION:
            return self._validation(), ON_VALIDATION
        if len(self.rehearsal.apart) >= APART:
            return self.rehearsal.apart, ON_TRAINING
        return self._validation(), ON_VALIDATION

    def _validation(self) -> list[Example]:
        """A few validation batches, fetched when they are needed for the first time."""
        if self._held_out is None:
            self._held_out = self._fetched() if self._val_loader is not None else []
        return self._held_out

    def _fetched(self) -> list[Example]:
        loader = self._val_loader
        if loader is None or hasattr(loader, "__next__"):  # it can be gone through only once, by the user
            return []
        if self.rehearsal.step_fn is None and any(e.args is not None for e in self.rehearsal.examples):
            return []  # the model is not called with what a batch holds
        kept: list[Example] = []
        room, random = self.settings.kept_batches_mb * 1e6, generators()
        own = list(_own_generators(loader))
        states = [generator.get_state() for generator in own]
        try:
            for batch in loader:
                room -= size_in_bytes(batch)
                if room < 0 or len(kept) == POINTS * EACH:
                    break
                kept.append(Example(copied(batch)))
        finally:
            restore_generators(random)
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)
        return kept

    # -- the trial ---------------------------------------------------------------------------------------------------

    def run_trial(self, plan: Plan) -> Result:
        """Run the arms and compare them. Everything is as before afterwards, bit for bit."""
        before = self.rehearsal.spent
        control, arms = Arm(None), [Arm(candidate) for candidate in plan.candidates]
        loss_fn = self.rehearsal.loss_fn
        criterion = copy.deepcopy(loss_fn) if isinstance(loss_fn, nn.Module) else loss_fn
        course = _Course(self.run, self.rehearsal, plan, criterion)
        try:
            with self.rehearsal.quietly() as start:
                course.start = start
                course.begin(control, plan.horizons[:1])
                for arm in arms:
                    course.begin(arm, against=control)
                if any(len(arm.judged) == len(plan.horizons) > 1 for arm in arms):
                    course.go_on(control)
                compared = [self._compare(course, control, arm, len(arms) * (plan.look + 1)) for arm in arms]
        finally:
            steps = math.ceil(self.rehearsal.spent - before)
            self.spent += steps
        ordered = sorted(compared, key=lambda pair: (not pair[1].won, math.isnan(pair[1].effect), -pair[1].effect))
        winner = ordered[0][0] if ordered[0][1].won else None
        lowering = frozenset(arm.candidate[0].name for arm in arms if arm.candidate is not None and arm.lowers)
        return Result(winner, ordered, plan.horizons, plan.judged_on, POINTS * EACH, steps, lowering)

    def _compare(self, course: "_Course", control: Arm, arm: Arm, arms: int) -> tuple[Candidate, Comparison]:
        assert arm.candidate is not None
        if arm.broke:
            return arm.candidate, Comparison(False, arm.broke, math.nan, 1.0, (), ())
        against = list(control.judged)
        if arm.lowers and len(arm.judged) == len(against) > 1:
            against[-1] = course.cooled(arm.candidate)
        return arm.candidate, compare(against, arm.judged, course.plan.horizons, arms)


class _Course:
    """Takes arms from the start to the horizons."""

    def __init__(self, run: Run, rehearsal: Rehearsal, plan: Plan, criterion: Callable[..., Any] | None) -> None:
        self.run, self.rehearsal, self.plan, self.criterion = run, rehearsal, plan, criterion
        self.start: State | None = None
        self._late: State | None = None  # the control, when two thirds of the way are done
        self._stopped: State | None = None  # the control at the first horizon

    def begin(self, arm: Arm, horizons: Sequence[int] = (), against: Arm | None = None) -> None:
        """Run one arm from the start; one that trails at the first horizon goes no further.

        ``horizons``: those to go to, all of the plan unless given. Where an arm stopped, it can go on.
        """
        self._restore(self.start)
        undo = None
        try:
            if arm.candidate is not None:
                rates = self.run.learning_rates()
                undo = arm.candidate[0].apply(arm.candidate[1], self.run)
                arm.lowers = any(new < old for new, old in zip(self.run.learning_rates(), rates, strict=False))
            self._walk(arm, horizons or self.plan.horizons, against)
            if arm.candidate is None:
                self._stopped = State.capture(self.rehearsal.whole())
        except Exception as error:
            if arm.candidate is None:
                raise
            arm.broke = f"it failed: {type(error).__name__}: {error}"
        finally:
            if undo is not None:
                undo()
            self._restore(self.start)

    def go_on(self, control: Arm) -> None:
        """Run the arm without any change on, from where it stopped: only who leads it at first needs it further."""
        done = len(control.judged)
        self._restore(self._stopped)
        try:
            self._walk(control, self.plan.horizons[done:], number=self.plan.horizons[done - 1])
        finally:
            self._restore(self.start)

    def _walk(self, arm: Arm, horizons: Sequence[int], against: Arm | None = None, number: int = 0) -> None:
        turn = self._turn()
        for horizon in horizons:
            rows = []
            for index, point in enumerate(points(horizon)):
                while number < point:
                    if arm.candidate is None and number == turn and len(self.plan.horizons) > 1:
                        self._late = State.capture(self.rehearsal.whole())
                    self.rehearsal.step(number)
                    number += 1
                rows.append(self._losses(index))
            arm.judged.append(np.array(rows))
            if against is not None and len(arm.judged) == 1:
                told = compare(against.judged, arm.judged, self.plan.horizons)
                if not told.won:
                    return

    def cooled(self, candidate: Candidate) -> Array:
        """The control, given the same lower rates for the last third: was there a lead besides that of a lower rate?"""
        self._restore(self._late)
        undo = candidate[0].apply(candidate[1], self.run)
        try:
            rows, number, last = [], self._turn(), self.plan.horizons[-1]
            for index, point in enumerate(points(last)):
                while number < point:
                    self.rehearsal.step(number)
                    number += 1
                rows.append(self._losses(index))
            return np.array(rows)
        finally:
            undo()
            self._restore(self.start)

    def _turn(self) -> int:
        last = self.plan.horizons[-1]
        return last - last // 3

    def _losses(self, index: int) -> list[float]:
        judged = self.plan.judged
        return self.rehearsal.judge([judged[(index * EACH + i) % len(judged)] for i in range(EACH)], self.criterion)

    def _restore(self, state: State | None) -> None:
        assert state is not None
        state.restore(self.rehearsal.whole())


def _own_generators(loader: Any) -> Iterable[torch.Generator]:
    """Generators that a loader and its samplers hold: going through it draws from them."""
    things = [loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler"))]
    things.append(getattr(things[-1], "sampler", None))
    found = [getattr(thing, "generator", None) for thing in things if thing is not None]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
