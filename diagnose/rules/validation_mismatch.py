"""TM504: training and validation do not measure the same thing."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule
from trainmedic.diagnose.learnt import SPAN, chance, learnt, shares, skill, untrained
from trainmedic.diagnose.robust import BINARY, SQUARES, Array, median
from trainmedic.history import History, Series

FEW_EPOCHS = 3
"""Passes over the data in which a fresh network learns what its samples share, not each by itself."""
SAMPLES = 100
"""Samples that are too many to be known by heart after so few passes."""
EVEN = 0.9
"""Entropy of the labels over that of classes that are all alike, from which both sets have the same shares."""


def _apart(
    losses: Sequence[float],
    accuracies: Sequence[float] = (),
    *,
    train: float = 0.2,
    loss: str = "CrossEntropyLoss",
    epoch: int = 20,
) -> History:
    """An example: ten classes (or targets of variance 1) learnt down to ``train``, validated every 10 steps."""
    count = 10 * len(losses)
    start = float(np.log(10)) if loss == "CrossEntropyLoss" else 1.0
    history = History.of(
        train_loss=[*np.linspace(start, train, 40), *[train] * (count - 40)],
        target_std=[1.0] * count,
        facts={"loss": loss, "reduction": "mean", "classes": 10, "total_steps": count, "steps_per_epoch": epoch},
    )
    history.add_series("validation/loss", range(9, count, 10), losses)
    if accuracies:
        history.add_series("validation/accuracy", range(9, count, 10), accuracies)
    return history


class ValidationMismatch(Rule):
    """Training has learnt its task, and validation has never known anything of it.

    Why it is bad: one of the two is not what it is taken for, so that nothing that validation says can be trusted.
    Usual causes: validation is not normalised, or in another way; its labels come from another file, order or encoding;
    the target leaks into the training inputs; training labels were shuffled, and learnt by heart.
    Formula: at least `learns` of the training task has been learnt (loss against the entropy of the labels or the
    variance of the targets), and in at least `evaluations` evaluations (two, where the architecture is known to have no
    batch norm), over at least `share` of the run, the best validation loss was above `level` of that of chance (all
    classes alike, or the variance), and the best accuracy, where it is known, less than `skilled` of the way from the
    commonest class to 1; an accuracy does not help where the loss was there within the first epoch, when training knew
    `learns` of its task from samples seen once. Where training knew `at_once` of it by then, and validation did not,
    that is enough to have learnt. Or, of squared errors: nearly all of the task has been learnt (`nearly`), and the
    last three validation losses are above `unrelated` times the variance of the targets: predictions of that spread
    which have nothing to do with the targets err by twice it. Or, since what has been seen seldom is not known by
    heart: validation has been behind training by `apart` of the task in two evaluations or more, always since the first
    of them within the first epoch (after 20 steps) at which training knew `begun` of it; or since the last one within
    three epochs, where training knew `mostly` of it by then, of 100 samples or more, by weights that were fresh. That
    is judged without batch norm, whose statistics come late, of classes whose labels have an entropy of 0.9 or more of
    all alike, where training began at chance.
    Remedies: match-validation, fix-labels.
    Known limits: needs a live run that knows targets or classes: from curves alone a mismatch cannot be told from
    overfitting, or from a validation loss that is defined differently.
    Source: Var(a - b) = Var(a) + Var(b) of independent quantities; leakage: Kapoor and Narayanan 2023, Patterns 4(9);
    the loss of samples not seen before is an unbiased estimate of that of all others (Dawid 1984, prequential); what
    samples share is learnt before what is theirs alone (Arpit et al. 2017, arXiv:1706.05394).
    """

    code: ClassVar[str] = "TM504"
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = ("match-validation", "fix-labels")
    explains: ClassVar[tuple[str, ...]] = ("overfitting",)
    advice: ClassVar[str] = (
        "Usually means that validation samples are prepared differently, or that their labels do not belong to them. "
        "Do this: put one training batch through the code of the validation; its loss must be that of training. "
        "Otherwise check (a) the scale of both: train_x.mean(), train_x.std(), val_x.mean(), val_x.std(); (b) a few "
        "validation samples beside their labels, by eye; (c) for a leak: train on one input feature at a time, and "
        "look for one that predicts the target alone."
    )

    learns: float = Field(0.5, gt=0, le=1, description="share of the training task that is learnt (half of it)")
    at_once: float = Field(
        0.25, gt=0, le=1, description="share that is learnt of samples seen once (a quarter: far beyond noise)"
    )
    evaluations: int = Field(4, ge=2, description="evaluations (running statistics may need a few; without any, two)")
    share: float = Field(0.1, ge=0, lt=1, description="share of the run that has passed (a tenth, where it is known)")
    level: float = Field(
        0.95, gt=0, description="best validation loss over that of who knows nothing of the inputs (5 % is noise)"
    )
    skilled: float = Field(
        0.1, gt=0, lt=1, description="share of the way from the commonest class to 1 (a tenth is not nothing)"
    )
    begun: float = Field(
        0.1, gt=0, lt=1, description="share that is learnt, less than which could be noise (a tenth of the loss)"
    )
    mostly: float = Field(
        0.75, gt=0, le=1, description="share that is learnt in three epochs if it is simple (three quarters)"
    )
    apart: float = Field(
        0.33, gt=0, description="validation loss above that of training, share of chance (a third of the task)"
    )
    nearly: float = Field(
        0.9, gt=0, le=1, description="share of the training task, where a leak gives all (nine tenths)"
    )
    unrelated: float = Field(
        1.9, gt=1, description="validation loss over the variance of targets (2, less 5 % for noise)"
    )

    def unmet(self, history: History) -> str | None:
        """Needs validation, and to know what chance would score."""
        if (reason := super().unmet(history)) is not None:
            return reason
        if not _validations(history):
            return "no validation loss in this history"
        return None if chance(history) > 0 else "what chance would score is not known"

    def check(self, history: History) -> Iterator[Finding]:
        knows = learnt(history)
        if not knows > self.begun:
            return
        guess = chance(history)
        for name in _validations(history):
            steps, losses = history.series(name)
            finite = np.isfinite(losses)
            seen = Series(steps[finite], losses[finite])
            found = self._ignorant(history, name, seen, guess)
            if found is None and knows > self.nearly and history.facts.get("loss") in SQUARES:
                found = self._unrelated(history, seen, guess)
            if found is None:
                found = self._too_soon(history, seen, guess)
            if found is None:
                continue
            detected, value, limit, what = found
            yield self.finding(
                step=min(int(seen.steps[0]), detected),
                detected_at=detected,
                where=[name],
                message=f"{100 * knows:.0f} % of the training task is learnt, but {name} {what}",
                evidence=[
                    Evidence(name=f"{name} over that of chance", value=value, limit=limit),
                    Evidence(name="learnt in training", value=100 * knows, limit=100 * self.learns, unit="%"),
                ],
            )

    def _ignorant(
        self, history: History, name: str, seen: Series, guess: float
    ) -> tuple[int, float, float, str] | None:
        """Validation that was at the level of chance all the time."""
        guess = max(guess, _uniform(history))
        least = self.evaluations if _normalised(history) or not history.architecture else 2
        if len(seen.values) < least or not seen.values.min() > self.level * guess:
            return None
        needed = self.at_once if self._apart_at_once(history, seen, guess, self.at_once) else self.learns
        if not learnt(history) > needed:
            return None
        accuracy = name.removesuffix("loss") + "accuracy"
        if accuracy in history and not self._apart_at_once(history, seen, guess, self.learns):
            commonest = _commonest(history)
            best = float(np.nanmax(np.nan_to_num(history.series(accuracy).values)))
            if not best < commonest + self.skilled * (1 - commonest):
                return None
        since = history.first_step + self.share * float(history.facts.get("total_steps") or 0)
        late = seen.steps[least - 1 :]
        late = late[(late >= since) & (late >= self._learnt_by(history, needed))]
        if not len(late):
            return None
        value = float(seen.values.min()) / guess
        return int(late[0]), value, self.level, f"has never been better than chance: {value:.3g} times its loss at best"

    def _apart_at_once(self, history: History, seen: Series, guess: float, knew: float) -> bool:
        """Whether it was at that level while no sample had been seen twice, and training ``knew`` its task by then.

        Nothing can be learnt by heart in the first epoch: there training and validation measure the same, if they do.
        """
        epoch = history.facts.get("steps_per_epoch")
        if not isinstance(epoch, int):
            return False
        first = seen.steps < history.first_step + epoch
        train = history.series("train/loss")
        for step, value in zip(seen.steps[first], seen.values[first], strict=True):
            newest = train.values[train.steps <= step][-SPAN:]
            if value > self.level * guess and median(newest) < (1 - knew) * guess:
                return True
        return False

    def _unrelated(self, history: History, seen: Series, guess: float) -> tuple[int, float, float, str] | None:
        """Predictions that have nothing to do with the targets any more."""
        count = len(seen.values)
        if count < self.evaluations or not (seen.values[-3:] > self.unrelated * guess).all():
            return None
        bad = seen.values > self.unrelated * guess
        good = np.flatnonzero(~bad)
        since = min((int(good[-1]) + 1 if len(good) else 0) + 2, count - 1)
        value = median(seen.values[-3:]) / guess
        detected = max(int(seen.steps[max(since, self.evaluations - 1)]), self._learnt_by(history, self.nearly))
        what = f"is {value:.3g} times what always naming the mean would make"
        return min(detected, history.last_step), value, self.unrelated, what

    def _too_soon(self, history: History, seen: Series, guess: float) -> tuple[int, float, float, str] | None:
        """Validation that is far from training, as long as that had seen its samples too seldom to know them by heart.

        Once, or three times where training knew most of its task by then, and its weights were not trained before.
        """
        epoch = history.facts.get("steps_per_epoch")
        if not isinstance(epoch, int) or not len(seen.steps) or not _comparable(history, guess):
            return None
        left = _training_beside(history, seen, epoch) / guess
        apart = seen.values / guess - left > self.apart
        steps = seen.steps - history.first_step
        once = np.flatnonzero((steps < epoch) & (steps >= 2 * SPAN) & (left < 1 - self.begun))
        early = np.flatnonzero((steps < FEW_EPOCHS * epoch) & (left < 1 - self.mostly))
        if not (len(once) and apart[once[0]]):
            size = history.facts.get("batch_size")
            few = not isinstance(size, int) or size * epoch < SAMPLES
            if few or not len(early) or not apart[early[-1]] or not untrained(history, _matrices(history)):
                return None
            once = early[-1:]
        since = int(once[0])
        if len(apart) < since + 2 or not apart[since:].all():
            return None
        passes = 1 + int(steps[since]) // epoch
        what = f"was behind it by {100 * float((seen.values / guess - left)[since]):.0f} % of the task within " + (
            "the first epoch" if passes == 1 else f"{passes} epochs"
        )
        return int(seen.steps[since + 1]), float(seen.values[since]) / guess, float(left[since] + self.apart), what

    def _learnt_by(self, history: History, limit: float) -> int:
        """The step since which so much of the training task has been learnt."""
        known = []
        for steps, values in skill(history):
            below = np.flatnonzero(~(values > limit))
            since = int(below[-1]) + 1 if len(below) else 0
            known += [int(steps[since])] if since < len(steps) else []
        return min(known, default=history.last_step)

    sick: ClassVar = (
        _apart([2.4, 3.0, 3.5, 4.0, 4.5, 5.0, 5.2, 5.3], [0.11, 0.1, 0.1, 0.11, 0.1, 0.1, 0.1, 0.1]),
        # pixels of 0 to 255, as training has them from 0 to 1: most are right, and the loss shows it within an epoch
        _apart([30.0, 33.0, 35.0, 40.0, 40.0, 40.0, 41.0, 41.0], [0.8] * 8, epoch=80),
        _apart([1.0, 0.7, 0.8, 1.5, 2.0, 2.1, 2.1, 2.1], train=0.01, loss="MSELoss"),
        _apart([2.5, 2.6, 2.7, 2.8, 2.9, 2.9, 3.0, 3.0], train=1.3, epoch=80),  # in the first epoch
        # little of it holds, and that within the first epoch
        _apart([2.2, 2.15, *[2.1] * 6], [0.4] * 8, epoch=80),
    )
    healthy: ClassVar = (
        _apart([1.5, 1.0, 0.6, 0.4, 0.3, 0.3, 0.3, 0.3]),
        _apart(
            [3.0] * 8, [0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]
        ),  # sure where it is wrong, and that ever less often
        _apart([1.0, *[0.5] * 7], train=0.08, loss="MSELoss"),  # half of it is general
        _apart([2.3, 2.2, 2.1, 2.0, 2.0, 1.9, 1.9, 1.9], train=1.6),  # little is learnt, in both
    )


def _comparable(history: History, guess: float) -> bool:
    """Whether both losses would be the same, of the same samples: none lags behind, or is weighted otherwise.

    Running statistics come late; a validation set of other shares is no fault, if the classes are not balanced; and the
    training loss began at chance, so that it is not logged in other units.
    """
    if _normalised(history):
        return False
    known = np.array([*shares(history).values()])
    if len(known) > 1 and -np.sum(known * np.log(np.maximum(known, 1e-12))) < EVEN * np.log(len(known)):
        return False
    first = history.series("train/loss").values[:3]
    return bool(np.max(first, initial=0.0) > 0.8 * guess)


def _normalised(history: History) -> bool:
    """Whether the architecture has running statistics, which validation uses and training does not."""
    return any("BatchNorm" in layer.kind for layer in history.architecture.values())


def _training_beside(history: History, seen: Series, epoch: int) -> Array:
    """The mean training loss of a quarter of an epoch, five losses at least, before each evaluation."""
    steps, values = history.series("train/loss")
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(finite, values, 0.0), finite))
    ends = np.searchsorted(steps, seen.steps, side="right")
    begins = np.maximum(0, ends - max(5, epoch // 4))
    with np.errstate(all="ignore"):
        return np.asarray((sums[ends] - sums[begins]) / (counts[ends] - counts[begins]))


def _matrices(history: History) -> list[str]:
    """All weights that are matrices or kernels."""
    return [layer.name for layer in history.architecture.values() if layer.kind == "parameter" and len(layer.shape) > 1]


def _validations(history: History) -> list[str]:
    return [name for name in history.names() if name.startswith("validation/") and name.endswith("/loss")]


def _uniform(history: History) -> float:
    """The cross-entropy of who takes all classes for equally likely; 0 of other losses.

    A run that has learnt how common its classes are knows something that may hold for validation.
    """
    classes = 2 if history.facts.get("loss") in BINARY else history.facts.get("classes")
    return float(np.log(classes)) if isinstance(classes, int) and classes > 1 else 0.0


def _commonest(history: History) -> float:
    """The largest share of a class among the labels."""
    classes = history.facts.get("classes")
    given: Array = np.array([*shares(history).values()])
    return max(1 / classes if isinstance(classes, int) and classes > 0 else 0.5, float(given.max(initial=0.0)))
