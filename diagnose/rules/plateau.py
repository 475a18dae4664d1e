"""TM404: progress stopped before the task was learnt."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import (
    SQUARES,
    Array,
    adversarial,
    block_medians,
    chance_level,
    correct_by_chance,
    gone,
    holds_since,
    median,
    newest,
    noise,
    rate_at,
    reconstructs,
    share_done,
    thinned,
    update_size,
)
from trainmedic.diagnose.rules.noisy_gradient import NoisyGradient
from trainmedic.history import History, Layer, Snapshot


def _run(losses: list[float], updates: float, *, same: bool = False, accuracy: float | None = None) -> History:
    """An example: one layer moved by so much; of ten classes where there is an accuracy, else of numbers."""
    count = len(losses)
    facts = {"loss": "MSELoss" if accuracy is None else "CrossEntropyLoss", "reduction": "mean", "total_steps": count}
    history = History.of(
        train_loss=losses,
        optimizer_learning_rate=[0.01] * count,
        fc__update_ratio=[updates] * count,
        layers=[Layer("fc", "parameter", 0, (8, 8))],
        facts=facts | ({} if accuracy is None else {"classes": 10}),
    )
    for end, scale in (("target", 1.0), ("input", 1.0 if same else 7.0)) if accuracy is None else ():
        for what, value in (("std", 1.0), ("min", -2.0), ("max", 2.0)):
            history.add_series(f"{end}/{what}", range(count), [scale * value] * count)
    if accuracy is not None:
        history.add_series("output/accuracy", range(count), [accuracy] * count)
        for step in range(count):
            history.record(Snapshot(step, layers={"label_share": {str(i): 0.1 for i in range(10)}}))
    return history


class Flat(NamedTuple):
    """A run that has stopped getting better."""

    since: int  # place in the series
    level: float
    chance: float
    gone: float
    doubt: float
    why: str


class Plateau(Rule):
    """A training loss that has stood still for half of the run, well below chance and well above what can be reached.

    Why it is bad: the rest of the run is spent without any gain.
    Usual causes: a learning rate that is too large to settle, and is never lowered; a schedule that ended too early;
    a part of the model that cannot learn.
    Formula: since `half` of the steps of the whole run, at least `values` losses, the loss has not come down: from the
    third to the last quarter of that stretch by less than `sigmas` standard errors or `still` of it, and from the first
    to the last by less than two or `still`. And the task is not learnt, by evidence that does not come from the curve:
    of classes, the loss is above `unlearnt` of that of the best constant answer (and below 0.9 of it, else underfitting
    or not-learning tells), noise would not hide a fall by `visible` of it, and the accuracy of training and validation
    has not come half of the way from the commonest class to 1; where the targets are the inputs, more than
    `unexplained` of their variance is left. And the steps are large, |update| / |weight| above `large` at a rate that
    was never lowered (so that a smaller one would settle), or, of three classes and more, of the usual size above
    `tiny`. Or, of any loss: the rate fell below `cut` of its height within a share `soon` of the run, and stayed there,
    while the loss was falling beyond its noise and by twice `still`, and more than a third of `unlearnt` of its first
    level was left. Or, of squared errors at a constant rate: the size of the steps holds up `held` of the loss, by the
    formula of noisy-gradient, more than as long a run again would bring, `unexplained` of the variance is left, and
    that has been so for a third of the run until now.
    Remedies: schedule-learning-rate, find-learning-rate, lower-learning-rate, raise-learning-rate, swap-optimizer,
    unfreeze, replace-recurrent, widen-model.
    Known limits: needs the total of steps, and, but for a rate that was cut, a loss whose chance is known and measured
    updates. What a regression or a language model could reach is not known: those are never told. A stair before the
    rate is cut may be as long in runs that are cut only once, late.
    Source: Keras' ReduceLROnPlateau asks for no gain over ten epochs; that alone is true of any run that has converged.
    """

    code: ClassVar[str] = "TM404"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss", "update_ratio|optimizer/learning_rate")
    remedies: ClassVar[tuple[str, ...]] = (
        "schedule-learning-rate",
        "find-learning-rate",
        "lower-learning-rate",
        "raise-learning-rate",
        "swap-optimizer",
        "unfreeze",
        "replace-recurrent",
        "widen-model",
    )
    explains: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = (
        "Usually means that the learning rate is too large to settle, and is never lowered. "
        "Do this: lower it over the run: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps). "
        "Otherwise check (a) whether the training set can be learnt at all: 100 samples, no regularisation; (b) the "
        "noise of the gradient: does the loss fall with four times the batch? (c) parts of the model that do not move: "
        "print({n: p.grad is not None for n, p in model.named_parameters()})."
    )

    half: float = Field(
        0.5, gt=0, lt=1, description="share of the whole run that the loss stands still for (most of it)"
    )
    values: int = Field(100, ge=20, description="losses of that stretch (fewer leave the trend open)")
    sigmas: float = Field(3.0, gt=0, description="fall that would be progress, standard errors (one in 700 by chance)")
    still: float = Field(0.02, gt=0, lt=1, description="fall that is none, share of the loss (a fiftieth in a quarter)")
    visible: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="fall of classes' loss that noise must not hide, share of it (a tenth in a quarter)",
    )
    unlearnt: float = Field(0.3, gt=0, lt=1, description="loss over that of knowing nothing (three tenths are left)")
    unexplained: float = Field(
        0.05, gt=0, lt=1, description="share of the variance of targets that are the inputs (nothing of it is noise)"
    )
    large: float = Field(
        1e-2, gt=0, description="|update| / |weight| that keeps a run from settling (ten times the usual 1e-3)"
    )
    held: float = Field(
        0.67, gt=0, lt=1, description="share of squared errors that the size of the steps holds up (two thirds)"
    )
    cut: float = Field(0.1, gt=0, lt=1, description="rate over its height at which a run has all but stopped (a tenth)")
    soon: float = Field(0.25, gt=0, lt=1, description="share of the run by which that is early (schedules take longer)")
    tiny: float = Field(2e-4, ge=0, description="|update| / |weight| below which a run is slow (a fifth of the usual)")

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history):
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        steps, values = steps[usable], values[usable]
        same = reconstructs(history)
        judged = partial(self._flat, history, steps, values, same)
        since = holds_since(judged, steps)
        flat = None if since is None else judged(since)
        if since is None or flat is None:
            yield from self._held_up(history)
            return
        yield self.finding(
            step=steps[flat.since],
            detected_at=steps[since],
            where=("train/loss",),
            message=f"the loss has stood at {flat.level:.4g} since step {steps[flat.since]}, "
            f"{100 * flat.level / flat.chance:.0f} % of that of the best constant answer, {flat.why}",
            evidence=[
                Evidence(name="fall in the newest quarter of that", value=flat.gone, limit=self.still * flat.level),
                Evidence(
                    name="training loss, share of knowing nothing",
                    value=100 * flat.level / flat.chance,
                    limit=100 * (self.unexplained if same else self.unlearnt),
                    unit="%",
                ),
            ],
        )

    def _held_up(self, history: History) -> Iterator[Finding]:
        """Of squared errors: most of what is left is made by the size of the steps, and would go with a lower rate."""
        if history.facts.get("loss") not in SQUARES:
            return
        every = 1_000_000  # batches of any size
        noisy = NoisyGradient(excess=self.held, of_gain=every, batch=every, works=1 - self.unexplained, sigmas=1e-9)
        rest = noisy.rest(history)
        first = history.first_step
        sure = (
            0 if rest is None else first + int(1.5 * (rest.detected_at - first))
        )  # it has lasted for half as long again
        if rest is not None and sure <= history.last_step:
            yield self.finding(
                step=rest.step,
                detected_at=sure,
                where=("train/loss",),
                message=f"the loss has come to {rest.level:.4g}, and the size of the steps holds up about "
                f"{100 * min(rest.share, 1.0):.0f} % of it: as many steps again would bring less than a lower rate",
                evidence=noisy.told(rest),
                confidence=0.7,
            )

    def _flat(self, history: History, steps: NDArray[np.int64], values: Array, same: bool, place: int) -> Flat | None:
        now = int(steps[place])
        done = share_done(history, now)
        if done is None or done < self.half:
            return None
        first = int(np.searchsorted(steps, now - self.half / done * (now - int(steps[0]))))
        stretch = thinned(values[first : place + 1])
        chance, size = chance_level(history, now), update_size(history, now)
        if len(stretch) < self.values:
            return None
        fell, doubt = gone(stretch)
        quarter = len(stretch) // 4
        level = median(stretch[-quarter:])
        if fell > max(self.sigmas * doubt, self.still * level):
            return None
        if median(stretch[:quarter]) - level > max(2 * doubt, self.still * level):
            return None
        if float(block_medians(thinned(values[: place + 1]), max(5, quarter // 5)).min()) < 0.7 * level:
            return None  # it was better before
        rates = rate_at(history, steps[: place + 1])
        if self._cut_short(history, rates, values[: place + 1], done, first):
            known = chance if chance else median(values[: max(5, quarter // 5)])
            return Flat(first, level, known, fell, doubt, "since its rate was cut while it fell")
        tokens = any("Embedding" in layer.kind for layer in history.architecture.values())
        if tokens or chance is None or not chance > 0 or size is None:
            return None
        kept = bool(np.isfinite(rates).all()) and float(rates[-1]) >= 0.9 * float(np.max(rates))
        if history.facts.get("loss") in SQUARES:
            if same and self.unexplained < level / chance < 0.9 and size > self.large and kept:
                return Flat(first, level, chance, fell, doubt, "at a rate that is never lowered")
            return None
        if not self.unlearnt < level / chance < 0.9 or size < self.tiny or self._half_way(history, now):
            return None
        if self.sigmas * doubt > self.visible * level:
            return None  # the noise hides what would be progress
        several = isinstance(classes := history.facts.get("classes"), int) and classes > 2
        if not several and not (size > self.large and kept):
            return None  # of two classes, half of the answers may well be luck
        return Flat(first, level, chance, fell, doubt, "and few samples are classified rightly")

    def _cut_short(self, history: History, rates: Array, values: Array, done: float, first: int) -> bool:
        """Whether the rate fell to a tenth of its height early in the run, and the loss was still falling then."""
        if not np.isfinite(rates).all() or not float(rates.max()) > 0:
            return False
        top = int(np.argmax(rates))
        low = np.flatnonzero(rates[top:] < self.cut * rates.max())
        if not len(low) or rates[top + int(low[0]) :].max() > self.cut * float(rates.max()):
            return False  # it is high, or rises again
        until = top + int(low[0])
        if until < 20 or until > min(first, self.soon * len(values) / done):
            return False
        high = top + max(8, int(np.argmax(rates[top:] < rates.max() / 2)))  # while it was high
        first_half, second_half = median(values[: high // 2]), median(values[high // 2 : high])
        third, last = (median(values[i * high // 4 : (i + 1) * high // 4]) for i in (2, 3))
        doubt = 1.25 * noise(values[:until]) * (4 / high) ** 0.5
        falling = first_half - second_half > self.sigmas * doubt and third - last > self.still * abs(last)
        return bool(falling and median(values[first:]) > self.unlearnt / 3 * median(values[: max(3, until // 10)]))

    def _half_way(self, history: History, now: int) -> bool:
        """Whether an accuracy has come half of the way from the commonest class to 1, or none is known."""
        chance = correct_by_chance(history, now)
        known = [newest(history, name, now, share=0.25) for name in ("output/accuracy", "validation/accuracy")]
        known = [accuracies for accuracies in known if len(accuracies)]
        if not known or not np.isfinite(chance):
            return True
        return any(float(accuracies.mean()) > (1 + chance) / 2 for accuracies in known)

    sick: ClassVar = (
        # large steps around a level
        _run([*np.linspace(1.0, 0.12, 60), *([0.12, 0.11, 0.13, 0.115, 0.125] * 88)], 2e-2, same=True),
        # stuck at a third of the classes
        _run([*np.linspace(2.3, 1.5, 60), *([1.5, 1.48, 1.52, 1.51, 1.49] * 88)], 3e-3, accuracy=0.35),
    )
    healthy: ClassVar = (
        # labels are noisy: most are right, and that is all there is
        _run([*np.linspace(2.3, 0.8, 60), *([0.8, 0.78, 0.82, 0.81, 0.79] * 88)], 3e-3, accuracy=0.85),
        # an autoencoder that has settled
        _run([*np.linspace(1.0, 0.12, 60), *([0.12, 0.11, 0.13, 0.115, 0.125] * 88)], 2e-3, same=True),
        # a stair: the rate is cut after a third
        _run([*np.linspace(2.3, 1.5, 60), *([1.5] * 110), *np.linspace(1.0, 0.8, 330)], 3e-3, accuracy=0.4),
        # a regression whose targets are noise for the better part
        _run([*np.linspace(1.0, 0.5, 60), *([0.5, 0.48, 0.52, 0.51, 0.49] * 88)], 2e-2),
    )
