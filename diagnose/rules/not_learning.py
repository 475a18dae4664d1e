"""TM406: the loss stays at chance level."""

import math
from collections.abc import Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import (
    BINARY,
    ENTROPIES,
    SQUARES,
    Array,
    adversarial,
    beats_chance,
    block_medians,
    chance_level,
    gone,
    holds_since,
    median,
    newest,
    noise,
    share_done,
    target_spread,
    thinned,
    update_size,
    wrong,
)
from trainmedic.history import History


class Standing(NamedTuple):
    """A run that knows no more than the best constant answer."""

    level: float
    chance: float
    gone: float
    doubt: float


class NotLearning(Rule):
    """A training loss that has stayed, from the start, at that of the best constant answer.

    Why it is bad: the model has learnt nothing about its inputs, and more steps will not change that.
    Usual causes: inputs and targets that do not belong together; inputs that are blanked or constant; a signal that
    dies on its way through the network; a loss that does not fit the output.
    Formula: chance is the entropy of the labels seen, or the variance of the targets. After `half` of the run's steps
    (or `steps` losses, where its length is not known; then as a warning): the median loss of the newer half is at most
    `near` of chance below it and `memorised` above, no block of the run was ever more than twice that below, by more
    than its noise; it does not fall (third against last quarter, or second against last and below chance, by `sigmas`
    standard errors); and no accuracy beats the commonest class. A loss that creeps down to `memorised` below chance
    counts too, while the validation loss is within `near` of it or above, does not come down, and its accuracy beats
    nothing: so samples are learnt by heart; of classes, one that creeps down to `works` below it, while no validation
    loss of four or more was ever better. Of a loss of unknown make the errors of training are judged in its place,
    where it stands as high as the entropy of the labels, or the variance of the targets, where it begins and stands
    within `near` of that; in both cases only if it does not come down itself.
    Remedies: normalize-inputs, find-learning-rate, raise-learning-rate, schedule-learning-rate, reinitialize,
    replace-recurrent, swap-optimizer, fix-labels.
    Known limits: needs a criterion whose chance is known (cross-entropy, binary or not, squared or absolute error, each
    as a mean) and the labels or targets. Silent where updates are below `tiny`: then slow-convergence tells. Tasks that
    long sit at chance before they are learnt (copying over many steps, parity) look the same for half of the run; a
    regression of next to no signal may well end there, and is a warning.
    Source: the initial loss against ln C is the first of the checks of TheDeepChecker (Ben Braiek and Khomh 2022).
    """

    code: ClassVar[str] = "TM406"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = (
        "normalize-inputs",
        "find-learning-rate",
        "raise-learning-rate",
        "schedule-learning-rate",
        "reinitialize",
        "replace-recurrent",
        "swap-optimizer",
        "fix-labels",
    )
    explains: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = (
        "Usually means that inputs say nothing about the targets as they arrive, or that no signal gets through. "
        "Do this: train on one batch of 16 samples until its loss is near 0; if that fails, the model or the loss is "
        "at fault, else the data. Otherwise check (a) a few pairs by eye: x[0], y[0], after all transforms; (b) that "
        "the output depends on the input: model(x).std(0); (c) that each weight gets a gradient: p.grad.norm()."
    )

    near: float = Field(0.03, gt=0, lt=1, description="distance from chance, share of it (noise of a batch's loss)")
    memorised: float = Field(
        0.1, gt=0, lt=1, description="distance from chance by single samples, share of it (a tenth, learnt by heart)"
    )
    works: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="the same, where validation was never better than chance (more: validation-mismatch)",
    )
    half: float = Field(0.5, gt=0, le=1, description="share of the run's steps (slow starters have begun by then)")
    steps: int = Field(500, ge=50, description="losses, where the length of the run is not known (ten epochs of fifty)")
    sigmas: float = Field(3.0, gt=0, description="fall, standard errors (one in 700 flat runs falls by chance)")
    tiny: float = Field(
        2e-4, ge=0, lt=1, description="|update| / |weight| below which a run is slow (a fifth of the usual 1e-3)"
    )

    def unmet(self, history: History) -> str | None:
        """Needs a loss whose chance level is known, or to see accuracies or the scale of targets beside it."""
        if (reason := super().unmet(history)) is not None or chance_level(history) is not None:
            return reason
        seen = all(name in history for name in ("output/accuracy", "label_share"))
        scaled = "target/std" in history and history.facts.get("reduction", "mean") == "mean"
        return None if seen or scaled else "the loss of knowing nothing is not known for this history"

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history):
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        steps, values = steps[usable], values[usable]
        judged = partial(self._stands, history, steps, values)
        since = holds_since(judged, steps)
        standing = None if since is None else judged(since)
        if since is None or standing is None:
            return
        classes = history.facts.get("loss") in (*ENTROPIES, *BINARY) or "output/accuracy" in history
        sure = share_done(history, int(steps[since])) is not None and classes
        yield self.finding(
            step=steps[0],
            detected_at=steps[since],
            where=("train/loss",),
            severity=Severity.ERROR if sure else Severity.WARNING,
            message=f"after {since + 1} losses the loss is {standing.level:.4g}; knowing nothing gives "
            f"{standing.chance:.4g}",
            evidence=[
                Evidence(name="training loss", value=standing.level, limit=(1 - self.near) * standing.chance),
                Evidence(name="fall since half time", value=standing.gone, limit=self.sigmas * standing.doubt),
            ],
        )

    def _stands(self, history: History, steps: NDArray[np.int64], values: Array, place: int) -> Standing | None:
        now = int(steps[place])
        done = share_done(history, now)
        if place < 40 or (place < self.steps if done is None else done < self.half):
            return None
        known = self._compared(history, steps, values, place)
        if known is None:
            return None
        curve, chance = known
        level = median(curve[len(curve) // 2 :])
        block = max(5, len(curve) // 20)
        luck = self.sigmas * 1.25 * noise(curve) / block**0.5  # of a block of small batches
        lowest = float(block_medians(curve, block).min()) + luck
        fell, doubt = gone(curve)
        comparable = chance_level(history, now) is not None
        apart = newest(history, "validation/loss", now, share=1.0) if comparable else np.empty(0)
        stays = len(apart) >= 3 and _come_down(apart) < self.near * chance
        by_heart = stays and median(apart[len(apart) // 2 :]) > (1 - self.near) * chance
        limit = (1 - (self._by_heart(history, now, chance) if by_heart else self.near)) * chance
        if not limit <= level <= (1 + self.memorised) * chance or lowest < 2 * limit - chance:
            return None
        if not by_heart and (fell > self.sigmas * doubt or self._creeps(curve, chance)):
            return None
        tokens = any("Embedding" in layer.kind for layer in history.architecture.values())
        varied = tokens or history.facts.get("loss") in SQUARES  # targets or words of another part are spread otherwise
        own = self.memorised if varied else self.near
        if len(apart) and median(apart[len(apart) // 2 :]) < (1 - own) * chance:
            return None
        size = update_size(history, now)
        if (size is not None and size < self.tiny) or beats_chance(history, now, trained=not by_heart):
            return None
        return Standing(level, chance, fell, doubt)

    def _creeps(self, curve: Array, chance: float) -> bool:
        """Whether the loss has come below chance, and below where it was in its second quarter, beyond its noise."""
        quarter = len(curve) // 4
        then, now = median(curve[quarter : 2 * quarter]), median(curve[-quarter:])
        doubt = 1.25 * noise(curve) / quarter**0.5
        return bool(min(then - now, chance - now) > self.sigmas * 2**0.5 * doubt)

    def _compared(
        self, history: History, steps: NDArray[np.int64], values: Array, place: int
    ) -> tuple[Array, float] | None:
        """The curve until then, and what knowing nothing would give.

        Of a loss of unknown make that stands at the variance of the targets, that is what it is.
        """
        now = int(steps[place])
        known = wrong(history, values[: place + 1], now)
        if known is not None and chance_level(history, now) is None:  # then the loss must stand still, too
            own = thinned(values[: place + 1])
            return known if _come_down(own) < self.near * abs(median(own)) else None
        if known is not None or history.facts.get("reduction", "mean") != "mean":
            return known
        curve, variance = thinned(values[: place + 1]), target_spread(history, now) ** 2
        first, last = median(curve[: len(curve) // 4]), median(curve[-len(curve) // 4 :])
        alike = all(abs(level - variance) < self.near * variance for level in (first, last))
        return (curve, variance) if alike and len(curve) >= 40 else None

    def _by_heart(self, history: History, now: int, chance: float) -> float:
        """How far below chance single samples may have brought the loss: half of it, if nothing of it ever held."""
        steps, values = history.series("validation/loss")
        ever = values[(steps <= now) & np.isfinite(values)]
        classes = history.facts.get("classes")
        if isinstance(classes, int) and classes > 1:
            chance = max(chance, math.log(classes))  # validation may hold other shares of the classes
        if history.facts.get("loss") in SQUARES:
            return self.memorised  # noise in targets may be nearly all that there is
        return self.works if len(ever) >= 4 and float(ever.min()) > (1 - self.near) * chance else self.memorised

    sick: ClassVar = (
        History.of(
            train_loss=[2.302, 2.31, 2.29, 2.303, 2.305] * 60,
            facts={"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 300},
        ),
        History.of(
            train_loss=[1.01, 0.98, 1.0, 1.03, 0.97] * 120,
            target_std=[1.0] * 600,
            facts={"loss": "MSELoss", "reduction": "mean"},
        ),
    )
    healthy: ClassVar = (
        # slow at first
        History.of(
            train_loss=[2.3] * 100 + list(np.linspace(2.3, 0.5, 200)),
            facts={"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 300},
        ),
        # a loss that says nothing about chance: noise around a level
        History.of(train_loss=[2.302, 2.31, 2.29, 2.303, 2.305] * 200),
        # most labels are of one class: its entropy is where learning begins
        History.of(
            train_loss=[0.3] * 20 + list(np.geomspace(0.3, 0.2, 280)),
            facts={"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 2, "total_steps": 300},
        ),
        # little to be learnt, and that is learnt
        History.of(
            train_loss=list(1 - 0.1 * (1 - np.exp(-np.arange(600) / 100))),
            target_std=[1.0] * 600,
            facts={"loss": "MSELoss", "reduction": "mean", "total_steps": 600},
        ),
    )


def _come_down(values: Array) -> float:
    """By how much the newer half of values lies below the older."""
    half = len(values) // 2
    return median(values[:half]) - median(values[half:])
