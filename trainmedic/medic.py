"""``Medic``: the only object with a loop and state. Probe -> history -> rules -> remedies -> trial -> report."""

import atexit
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from torch import nn

from trainmedic.batches import Batches
from trainmedic.controlled import Controlled
from trainmedic.diagnose import Finding
from trainmedic.diagnose.judge import Diagnosis, judge
from trainmedic.errors import UsageError
from trainmedic.history import History, Snapshot, check_step
from trainmedic.hooks import ranks
from trainmedic.hooks.facts import facts, options
from trainmedic.hooks.probe import Probe
from trainmedic.hooks.safe_point import SafePoint
from trainmedic.hooks.schedule import Schedule
from trainmedic.keeping import Keeping
from trainmedic.logged import Logged, scalar
from trainmedic.moments import Moments
from trainmedic.remedies._rehearsal import Rehearsal
from trainmedic.remedies._store import Store
from trainmedic.remedies.change import Treatment
from trainmedic.remedies.run import Run
from trainmedic.reports.report import Report
from trainmedic.reports.status import status as status_text
from trainmedic.settings import Settings
from trainmedic.status import Pace, StatusLine, beside_bars
from trainmedic.treating import Treating
from trainmedic.writing import Writing

log = logging.getLogger("trainmedic")
T = TypeVar("T")

TOGETHER = 16
"""Steps whose few numbers are taken over at once, where none of them is needed sooner."""

RAISE_ERRORS = False
"""The medic's own tests set this: an error inside it is then raised instead of told once."""


class Medic:
    """Watches one training run. Made by :func:`trainmedic.watch`; see there for the arguments."""

    def __init__(
        self,
        *,
        models: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        loss_fn: Callable[..., Any] | None,
        step_fn: Callable[..., Any] | None,
        val_loader: Any,
        schedulers: Sequence[Any],
        scaler: Any,
        total_steps: int | None,
        monitor: str,
        mode: Literal["min", "max"],
        fix: Literal["off", "safe", "unsafe"],
        on_finding: Callable[[Finding], Any] | None,
        logdir: str | os.PathLike[str] | None,
        settings: Settings,
        status: bool = False,
    ) -> None:
        self.settings = settings
        self.history = History(bounded=True)
        self._notes: list[str] = []
        if ranks.processes() > 1 and fix != "off":
            fix = "off"
            self._notes.append("no change is made where several processes train one model: they would have to agree")
        self.monitor, self.mode, self.fix = monitor, mode, fix
        self._tell = on_finding or (_log_finding if ranks.writes() else _keep_quiet)
        self._rules = settings.configured_rules()
        self._logged = Logged()
        self._logs_before_step: bool | None = None
        self._findings: dict[tuple[int, tuple[str, str]], Finding] = {}  # by first step judged, and key
        self._checked: set[str] = set()
        self._moments = Moments(time.perf_counter if fix == "off" else None)
        self._off: set[str] = set()
        self._closed = False
        self._process = os.getpid()
        self._started, self._ended = time.perf_counter(), 0.0
        self._schedule = Schedule(every=settings.every, budget=settings.budget, total_steps=total_steps)
        self.history.facts.update(
            facts(models, optimizers, loss_fn, schedulers[0] if schedulers else None, scaler, total_steps)
        )
        self.history.facts.update(monitor=monitor, mode=mode, dead_after=settings.dead_after)
        self._writing = Writing(Path(logdir), self.history) if logdir is not None and ranks.writes() else None
        self._probe = Probe(
            models,
            optimizers,
            schedule=self._schedule,
            on_snapshot=self._record,
            on_step=self._step_ended,
            on_error=self._note_error,
            scaler=scaler,
            loss_fn=loss_fn,
            dead_after=settings.dead_after,
            sample=settings.activation_sample,
            wants_histograms=self._writing.wants_histograms if self._writing else lambda _: False,
            together=TOGETHER if fix == "off" else 1,
        )
        self.history.architecture = self._probe.architecture
        run = Run(models, optimizers, self.history, schedulers=schedulers, scaler=scaler, loss_fn=loss_fn)
        run.store = Store(settings.states_mb * 1e6, logdir)
        run.guards = self._probe.guards
        run.dead_units = self._probe.activations.dead_units
        self._keeping = Keeping(
            models,
            loss_fn,
            step_fn,
            most=0 if fix == "off" else settings.kept_batches,
            megabytes=settings.kept_batches_mb,
        )
        examples, apart = self._keeping.examples, self._keeping.apart
        run.rehearsal = Rehearsal(run, loss_fn=loss_fn, step_fn=step_fn, examples=examples, apart=apart)
        self._treating = Treating(
            run,
            settings,
            fix,
            changed=self._changed,
            decided=self._decided,
            controlled=Controlled(run, run.rehearsal, self._keeping, settings, val_loader),
            logdir=Path(logdir) if logdir else None,
        )
        self._safe_point_wait: SafePoint | None = None
        self._status = StatusLine(self._describe) if status and ranks.writes() else None
        self._pace = Pace()
        self._iterating = 0
        self._do("treating", self._treating.begin)
        self._probe.attach()
        atexit.register(self.close)

    # -- what the user calls -------------------------------------------------------------------------------------

    def log(self, loss: Any = None, *, step: int | None = None, **values: Any) -> None:
        """Record this step's training loss and other values: numbers, or tensors of one element, never waited for.

        Belongs to the step in progress, or to the one just done; several calls within one step are averaged.
        """
        if self._closed:
            self._probe.let_go()
        at = self._current_step() if step is None else check_step(step)
        if loss is not None:
            self._logged.put(at, "train/loss", loss)
            if isinstance(loss, torch.Tensor):
                self._probe.ends.loss_logged(loss)
        for name, value in values.items():
            self._logged.put(at, f"train/{name}", value)
        if step is not None:  # which of these belong to one value, the next end of a step decides, as ever
            self._logged.alarming = True

    def log_validation(
        self, loss: Any = None, *, name: str = "validation", step: int | None = None, **metrics: Any
    ) -> None:
        """Record a validation result, after the step just done unless ``step`` is given.

        The series are ``validation/loss`` and ``validation/<metric>``, or ``validation/<name>/...`` for a named set.
        """
        at = max(self._probe.step - 1, 0) if step is None else check_step(step)
        prefix = "validation" if name == "validation" else f"validation/{name}"
        named = {} if loss is None else {"loss": loss}
        for metric, value in {**named, **metrics}.items():
            self._take(at, f"{prefix}/{metric}", float(scalar(metric, value)))
            if f"{prefix}/{metric}" == self.monitor:
                self._do("treating", self._treating.keep_best, self.history.series(self.monitor).values[-1], self.mode)
        if self._moments.evaluated():
            self._judge()

    def batches(self, loader: Any) -> Batches:
        """``loader``, seen through: times the waiting for data, keeps a few batches, marks where changes are safe."""
        if not hasattr(loader, "__iter__"):
            raise UsageError(f"batches() needs something to iterate over, but got {type(loader).__name__}")
        with contextlib.suppress(TypeError):
            self.history.facts.setdefault("steps_per_epoch", len(loader))
        return Batches(
            loader,
            entered=self._between_batches,
            waited=self._waited,
            fetched=self._keep,
            begins=self._pass_begins,
            ends=self._pass_ends,
        )

    @property
    def should_stop(self) -> bool:
        """Whether the run should end now. The best monitored state is in the model then. Never with ``fix="off"``."""
        if self.fix == "off":
            return False
        self._do("treating", self._treating.at_stopping_point)
        return self._treating.run.stop_requested

    def report(self) -> Report:
        """Everything until now: what was seen, found and changed, and what watching cost."""
        self._flush(everything=True)
        diagnosis = self._judge()
        return Report(
            history=self.history,
            findings=diagnosis.findings,
            checked=diagnosis.checked,
            not_checked=diagnosis.not_checked,
            treatments=self._treating.record(),
            advised=tuple(self._do("advising", self._treating.advise, diagnosis.findings) or ()),
            refused=tuple(self._treating.refused.items()),
            notes=(
                *self._notes,
                *([self._treating.lost] if self._treating.lost else []),
                *diagnosis.suppressed,
                *(f"not measured: {what}: {why}" for what, why in self._not_measured().items()),
            ),
            cost=self._cost(),
            path=str(self._writing.logdir) if self._writing else "",
            format="live",
        )

    def close(self) -> None:
        """Stop watching: hand over what is on the way, write the files, remove every hook. Can be called again."""
        self._probe.let_go()  # what could not be removed when it was closed from within a hook
        if self._closed or os.getpid() != self._process:  # a forked copy leaves the run's files alone
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._status is not None:
            self._status.close()
        self._probe.detach()
        if self._safe_point_wait is not None:
            self._safe_point_wait.remove()
        self._flush(everything=True)
        if self._writing:
            self._write("finish", self.report())
        self._keeping.close()
        self._ended = time.perf_counter()

    def __enter__(self) -> Self:
        if self._closed:
            raise UsageError("this medic is closed; call trainmedic.watch again for another run")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the probe calls ------------------------------------------------------------------------------------

    def _record(self, snapshot: Snapshot) -> None:
        self.history.record(snapshot)
        self._write("snapshot", snapshot)
        if snapshot.values.get("gradient/nonfinite"):
            self._moments.alarm(snapshot.step)

    def _step_ended(self, step: int) -> None:
        if not self._probe.holds_back or self._logged.alarming:
            self._do("recording", self._flush)
        if self._moments.due(step):
            self._judge()
            self._moments.judged(step)
        self._iterating = max(0, self._iterating - 1)
        if self.fix != "off":
            self._do("treating", self._treating.watch_trial, self.history, step)
            self._seek_safe_point()
        self._write("save_now_and_then", step, self._so_far)
        if self._status is not None:
            self._do("showing the status", self._status.update)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _current_step(self) -> int:
        """The step that a log belongs to: the one in progress, or the one just done.

        Whether a step has begun is known on measured steps, after a backward pass, and with ``batches``. Elsewhere the
        user's habit decides, which the first steps (always measured) have shown.
        """
        probe = self._probe
        if probe.begun or probe.step == 0:
            self._logs_before_step = True
            return probe.step
        if probe.sees_forward or self._logs_before_step is None:
            self._logs_before_step = False
        return probe.step if self._logs_before_step else probe.step - 1

    def _flush(self, *, everything: bool = False) -> None:
        """Take over logged values of steps that are over."""
        for step, values in self._logged.take(None if everything else self._probe.step - 1):
            for name, value in values.items():
                self._take(step, name, value)
        self._logged.send()

    def _take(self, step: int, name: str, value: float) -> None:
        self.history.add(name, step, value)
        if name.endswith("/loss") and value - value != 0:
            self._moments.alarm(step)
        self._write("value", name, step, value)

    def _judge(self) -> Diagnosis:
        """Let the rules judge what is recorded; tell what is new."""
        # what can be had without waiting for a device
        self._do("the last reading", partial(self._probe.hand_over, newest=False))
        self._do("recording", self._flush)
        self.history.facts.update(self._probe.observed)
        since, start = self._treating.since, time.perf_counter()
        diagnosis = self._do("judging", judge, self.history.since(since) if since else self.history, self._rules)
        self._moments.spent(time.perf_counter() - start)
        if diagnosis is None:
            return Diagnosis(tuple(self._findings.values()))
        for error in diagnosis.errors:
            self._note(error)
        present = self._remember(diagnosis)
        if not self._closed:
            self._do("treating", self._treating.consider, present, self._probe.step - 1)
        self._checked |= set(diagnosis.checked)  # a rule that could judge once, before a change, has checked the run
        unchecked = tuple(rule for rule in diagnosis.not_checked if rule.code not in self._checked)
        since = self._treating.since
        earlier = [finding for (segment, _), finding in self._findings.items() if segment != since]
        found = (*earlier, *present)
        return Diagnosis(found, tuple(sorted(self._checked)), unchecked, suppressed=diagnosis.suppressed)

    def _remember(self, diagnosis: Diagnosis) -> list[Finding]:
        """Give findings the ids that they had before, and tell the new ones."""
        since = self._treating.since
        known = {finding.id: self._findings.get((since, finding.key)) for finding in diagnosis.findings}
        fresh = (f"f{n}" for n in itertools.count(len(self._findings) + 1))
        ids = {given: before.id if before else next(fresh) for given, before in known.items()}
        findings = [
            finding.model_copy(update={"id": ids[finding.id], "explained_by": ids.get(finding.explained_by or "")})
            for finding in diagnosis.findings
        ]
        for finding in findings:
            new = (since, finding.key) not in self._findings
            self._findings[since, finding.key] = finding
            if new:
                self._do("telling findings", self._tell, finding)
                self._write("finding", finding)
        return findings

    def _describe(self, width: int) -> tuple[str, str | None]:
        """The state of the run in one line, and the worst severity of what was found."""
        findings = [one for one in self._findings.values() if one.explained_by is None]
        worst = sorted(findings, key=lambda one: -one.severity.rank)
        trials = [one for one in self._treating.record() if one.outcome == "on trial"]
        text = status_text(
            self.history,
            worst,
            step=self._probe.step,
            total_steps=self.history.facts.get("total_steps"),
            steps_per_second=self._pace.at(self._probe.step),
            doing=f"{trials[0].change.remedy} on trial" if trials else "",
            width=width,
        )
        return text, str(worst[0].severity) if worst else None

    def _so_far(self) -> Report:
        """What is known now, without judging anew: for pictures of a run that goes on."""
        return Report(
            history=self.history,
            findings=tuple(self._findings.values()),
            checked=tuple(sorted(self._checked)),
            treatments=self._treating.record(),
            cost=self._cost(),
            path=str(self._writing.logdir) if self._writing else "",
        )

    # -- treating ------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """The model or the optimizer is not what it was: look at it anew."""
        self._probe.refresh()
        self.history.architecture = self._probe.architecture
        first = self._probe.optimizers[0]
        self.history.facts.update(optimizer=type(first).__name__, optimizer_options=options(first))
        self._probe.activations.forget_units()
        self._moments.restart(self._probe.step)

    def _decided(self, treatment: Treatment) -> None:
        self._write("treatment", treatment)
        self._write("prescription", self._treating.treatments)
        with beside_bars():
            log.warning(
                "%s at step %d: %s: %s", treatment.outcome, treatment.step, treatment.change.summary, treatment.reason
            )

    def _seek_safe_point(self) -> None:
        """Without ``batches`` the next safe point is found by looking at the forward passes."""
        if self._safe_point_wait is not None:
            self._safe_point_wait.step_ended()
        elif self._treating.wants_a_safe_point and not self._iterating:
            self._safe_point_wait = SafePoint(self._probe.models, self._safe_point)

    # -- loader --------------------------------------------------------------------------------------------------

    def _between_batches(self) -> None:
        self._iterating = 2  # the next step comes from these batches; a step without one counts this down
        self._safe_point()

    def _safe_point(self) -> None:
        """No graph of a watched model is needed any more: changes are made here, and only here."""
        if self._safe_point_wait is not None:
            self._safe_point_wait.remove()
            self._safe_point_wait = None
        if self._treating.watches_a_step:
            self._flush(everything=True)  # its loss is needed now
        if self._treating.wants_a_safe_point:
            before = self._treating.seconds
            self._do("treating", self._treating.at_safe_point)
            self._probe.leave_out(self._treating.seconds - before)

    def _waited(self, seconds: float) -> None:
        self._probe.data_time += seconds

    def _keep(self, batch: Any) -> None:
        self._probe.begun = True
        self._probe.ends.batch(batch)
        if self.fix != "off" and not self._closed:
            self._do("keeping batches", self._keeping.fetched, batch)

    def _pass_begins(self) -> None:
        if self.fix != "off" and not self._closed:
            self._do("keeping batches", self._keeping.pass_begins)

    def _pass_ends(self) -> None:
        self._do("keeping batches", self._keeping.pass_ends)

    # -- errors, costs -------------------------------------------------------------------------------------------

    def _do(self, part: str, action: Callable[..., T], *arguments: Any) -> T | None:
        """Do a part of the medic's work: an error in it is told once and switches that part off; training goes on."""
        if part in self._off:
            return None
        start = time.perf_counter()
        try:
            return action(*arguments)
        except Exception as error:
            self._note_error(part, error)
            return None
        finally:
            self._schedule.spent += time.perf_counter() - start

    def _write(self, what: str, *arguments: Any) -> None:
        if self._writing:
            self._do("writing", getattr(self._writing, what), *arguments)
            self._schedule.spent += self._writing.cost()

    def _note_error(self, part: str, error: Exception) -> None:
        if RAISE_ERRORS:
            raise error
        self._off.add(part)
        self._note(f"{part} stopped: {type(error).__name__}: {error}")

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            with beside_bars():
                log.warning("%s (the training goes on)", text)

    def _not_measured(self) -> dict[str, str]:
        return self._probe.not_measured

    def _cost(self) -> dict[str, float]:
        """What watching cost: seconds, share of the run's time, steps measured in full, all steps; what trials cost."""
        elapsed = (self._ended or time.perf_counter()) - self._started
        return {
            "seconds": self._schedule.spent,
            "share": self._schedule.spent / max(elapsed, 1e-9),
            "measured": self._schedule.measured,
            "steps": self._probe.step,
            "interval": self._schedule.interval,
            "trial_steps": self._treating.controlled.spent,
            "trial_seconds": self._treating.seconds,
        }


def _keep_quiet(_: Finding) -> None:
    """Of several processes one tells."""


def _log_finding(finding: Finding) -> None:
    level = logging.INFO if finding.severity == "info" else logging.WARNING
    with beside_bars():
        log.log(level, "%s %s at step %d: %s", finding.code, finding.name, finding.step, finding.message)
