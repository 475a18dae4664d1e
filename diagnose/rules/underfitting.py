"""TM502: both training and validation stay bad."""

import itertools
import math
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
    beats_chance,
    block_medians,
    chance_level,
    correct_by_chance,
    gone,
    holds_since,
    median,
    newest,
    reconstructs,
    share_done,
    update_size,
    wrong,
)
from trainmedic.history import History, Layer, Snapshot


class Fit(NamedTuple):
    """What is left to be learnt."""

    level: float
    chance: float
    least: float  # share of chance that is left after as long a run again, at least
    lowest: float  # of the blocks of the run
    flat: bool
    why: str


def _classes(losses: list[float], accuracy: float) -> History:
    """An example: ten classes, and the accuracy on the training set."""
    count = len(losses)
    history = History.of(
        train_loss=losses,
        output_accuracy=[accuracy] * count,
        facts={"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": count, "batch_size": 64},
    )
    for step in range(count):
        history.record(Snapshot(step, layers={"label_share": {str(i): 0.1 for i in range(10)}}))
    return history


def _patches(losses: list[float], code: int) -> History:
    """An example: 64 numbers are to come out as they went in, through ``code`` units."""
    count = len(losses)
    ends = {f"{end}_{what}": [value] * count for end in ("input", "target") for what, value in _SCALE}
    return History.of(
        train_loss=losses,
        layers=[Layer(f"{i}.weight", "parameter", i, shape) for i, shape in enumerate([(code, 64), (64, code)])],
        facts={"loss": "MSELoss", "reduction": "mean", "total_steps": count},
        steps=None,
        **ends,
    )


_SCALE = (("std", 1.0), ("min", -2.0), ("max", 2.0))


class Underfitting(Rule):
    """A run that learns something, at steps of the usual size, and stays bad on the training and the validation set.

    Why it is bad: more steps or data will not help a model that cannot hold what is to be learnt, or is kept from it.
    Usual causes: too few units, or one layer that is too narrow; dropout, decay or augmentation that leaves nothing of
    the signal; part of the model that is not trained.
    Formula: after `half` of the run's steps (`steps` losses, where its length is not known), with steps that are not
    tiny (`tiny`). What is left is the training loss over that of the best constant answer (at most `above` more than
    all), as it will be after as long a run again at the pace of its last quarter (less `sigmas` standard errors); where
    that loss is not known, the errors of training over those of naming the commonest class. Told where the architecture
    shows why: a layer of at most `units` stands before twice as many classes, or one of a single unit before `narrow`
    numbers, and more than `much` is left; or one of two units or less before as few numbers, nothing has gone since the
    third quarter, and more than `most` is left; or the targets are the inputs, nothing has gone since the third quarter
    (`sigmas` standard errors or a fiftieth), a layer is `narrow` times narrower than the output and more than
    `unexplained` is left; or a dropout layer takes more than `dropped` of what its activation gives, or several more
    than `repeated`, and more than `much` is left in training and validation; or there is a single matrix, and what is
    left lies within `near` of all. Else, of classes, more than `weak` is left in training and validation, and it was
    never a tenth better: more than `poor`, while accuracy beats chance (where training and validation are within `near`
    of it, not-learning tells); or, of three classes and more that are no tokens, nothing has gone since the third
    quarter, steps are not `large`, and the best accuracy lies within a `quarter` of the way from the commonest class to
    1.
    Remedies: weight-decay, unfreeze, widen-model.
    Known limits: how well a task can be done is not known in general: a small model of one number or of two classes is
    told close to chance only, since its targets may be noise. Labels of which three in four are wrong look the same.
    A code of two numbers that is meant for a picture is narrow by design. Dropout is seen where a module for the
    activation stands before it.
    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, section 5.2 (both errors high, and close to each other).
    """

    code: ClassVar[str] = "TM502"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = ("weight-decay", "unfreeze", "widen-model")
    explains: ClassVar[tuple[str, ...]] = ("plateau", "not-learning")
    advice: ClassVar[str] = (
        "Usually means that the model is too small for the task, or regularised too much. "
        "Do this: take regularisation away (dropout 0, weight_decay 0), and if the training loss does not fall, widen "
        "the narrowest layer. Otherwise check (a) that 100 samples can be learnt by heart; (b) which parameters move: "
        "(p - before).norm() / before.norm() over an epoch; (c) whether a linear model does as well."
    )

    poor: float = Field(0.9, gt=0, lt=1, description="loss over that of knowing nothing (a tenth has been learnt)")
    unexplained: float = Field(
        0.05, gt=0, lt=1, description="share of the variance of targets that are the inputs (nothing of it is noise)"
    )
    much: float = Field(
        0.3, gt=0, lt=1, description="what is left of that of knowing nothing, where the architecture shows why"
    )
    most: float = Field(0.5, gt=0, lt=1, description="what is left where a regression may be noise (half)")
    narrow: float = Field(32.0, gt=1, description="width of the outputs over that of the narrowest layer (32 to 1)")
    units: int = Field(
        3, ge=1, description="units of a layer that is narrow for twice as many classes (gates are wider)"
    )
    dropped: float = Field(
        0.75, gt=0.5, lt=1, description="share of values that dropout takes away (usual is up to a half)"
    )
    repeated: float = Field(
        0.65, gt=0.5, lt=1, description="share that each of several dropout layers takes away (of two a tenth is left)"
    )
    weak: float = Field(0.75, gt=0, lt=1, description="loss over that of knowing nothing, of three classes and more")
    quarter: float = Field(
        0.25, gt=0, lt=1, description="share of the way from the commonest class to 1, of accuracies at that level"
    )
    large: float = Field(
        1e-2, gt=0, description="|update| / |weight| above which the rate is to blame (ten times the usual)"
    )
    near: float = Field(0.03, gt=0, lt=1, description="distance from knowing nothing that is nothing, share of it")
    above: float = Field(0.2, gt=0, lt=1, description="loss above that of knowing nothing, share of it (its noise)")
    half: float = Field(0.5, gt=0, le=1, description="share of the run's steps (slow starters have begun by then)")
    steps: int = Field(
        1_000, ge=50, description="losses, where the length of the run is not known (twenty epochs of 50)"
    )
    sigmas: float = Field(3.0, gt=0, description="fall, standard errors (one in 700 flat runs falls by chance)")
    tiny: float = Field(2e-4, ge=0, lt=1, description="|update| / |weight|, below which the run is slow, not underfit")

    def unmet(self, history: History) -> str | None:
        """Needs a loss whose chance level is known, or an accuracy with its classes."""
        if (reason := super().unmet(history)) is not None or chance_level(history) is not None:
            return reason
        known = "output/accuracy" in history and "label_share" in history
        return None if known else "the loss of knowing nothing is not known for this history"

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history):
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        steps, values = steps[usable], values[usable]
        judged = partial(self._fit, history, steps, values)
        since = holds_since(judged, steps)
        fit = None if since is None else judged(since)
        if since is None or fit is None:
            return
        yield self.finding(
            step=steps[0],
            detected_at=steps[since],
            where=("train/loss", *(["validation/loss"] if "validation/loss" in history else [])),
            message=f"{100 * fit.level / fit.chance:.0f} % of what the best constant answer gets wrong is still wrong, "
            f"{fit.why}",
            evidence=[
                Evidence(
                    name="training loss or error, share of knowing nothing",
                    value=100 * fit.level / fit.chance,
                    unit="%",
                ),
                Evidence(name="the same after as long a run again, at this pace", value=100 * fit.least, unit="%"),
            ],
        )

    def _fit(self, history: History, steps: NDArray[np.int64], values: Array, place: int) -> Fit | None:
        now = int(steps[place])
        done = share_done(history, now)
        if place < 40 or (place < self.steps if done is None else done < self.half):
            return None
        size = update_size(history, now)
        left = self._left(history, values, now, place, done)
        if left is None or (size is not None and size < self.tiny):
            return None
        if (why := self._kept_from(history, now, left)) is not None:
            return left._replace(why=why)
        if history.facts.get("loss") in SQUARES or not self._stays_bad(history, now, left, size):
            return None
        return left._replace(why="although steps are of the usual size")

    def _left(self, history: History, values: Array, now: int, place: int, done: float | None) -> Fit | None:
        """What is left to be learnt: by the loss, or, where its chance is not known, by the accuracy."""
        known = wrong(history, values[: place + 1], now)
        if known is None:
            return None
        curve, chance = known
        level = median(curve[-max(10, len(curve) // 4) :])
        fell, doubt = gone(curve)
        quarters = 4 * (2 / done - 1) if done else 8.0  # of the run until now, to its end and as long again
        least = (level - max(0.0, fell - self.sigmas * doubt) * quarters) / chance
        lowest = float(block_medians(curve, max(5, len(curve) // 20)).min())
        flat = fell < max(self.sigmas * doubt, 0.02 * level)
        return Fit(level, chance, least, lowest, flat, "") if level < (1 + self.above) * chance else None

    def _kept_from(self, history: History, now: int, left: Fit) -> str | None:
        """What in the architecture keeps the run from fitting, if too much is left."""
        squares = history.facts.get("loss") in SQUARES
        neck = _bottleneck(history)
        if neck is not None:
            width, outputs = neck
            few = outputs >= self.narrow if squares and width == 1 else width <= self.units and outputs >= 2 * width
            few &= not squares or width == 1
            copied = squares and outputs >= self.narrow * width and left.flat and reconstructs(history)
            thin = squares and width <= 2 and outputs <= 2 * width and left.flat  # a wider output may be a picture
            if (few and left.least > self.much) or (copied and left.least > self.unexplained):
                return f"with {width} number{'s' * (width > 1)} for {outputs} in its narrowest layer"
            if thin and left.least > self.most:
                return f"with {width} number{'s' * (width > 1)} for {outputs} in its narrowest layer"
        if _linear(history) and left.least > 1 - self.near:
            return "and a linear model may be all that it is"
        most = _dropped(history, now)
        dropped = max(most, default=0.0)
        often = sum(share > self.repeated for share in most) > 1
        if (
            (dropped > self.dropped or often)
            and left.least > self.much
            and not self._known_apart(history, now) < self.much
        ):
            return f"with {100 * dropped:.0f} % of the values of a layer dropped"
        return None

    def _stays_bad(self, history: History, now: int, left: Fit, size: float | None) -> bool:
        """Of classes: little is learnt, never was more, and little is to come."""
        apart = self._known_apart(history, now)
        if left.lowest < 0.9 * left.level or not left.least > self.weak or apart < self.weak:
            return False
        if left.least > self.poor:
            nothing = 1 - self.near < apart < math.inf and left.level > (1 - self.near) * left.chance
            return not nothing and beats_chance(history, now)  # else not-learning tells
        commonest = correct_by_chance(history, now)
        tokens = any("Embedding" in layer.kind for layer in history.architecture.values())
        classes = history.facts.get("classes")
        if (
            tokens
            or not left.flat
            or not isinstance(classes, int)
            or classes < 3
            or (size is not None and size > self.large)
        ):
            return False
        known = [newest(history, name, now, share=0.25) for name in ("output/accuracy", "validation/accuracy")]
        best = max((float(part.mean()) for part in known if len(part)), default=math.nan)
        return bool(commonest + 0.02 < best < commonest + self.quarter * (1 - commonest))

    def _known_apart(self, history: History, now: int) -> float:
        """What is left to be learnt by validation, share of chance; infinite where there is none."""
        chance, losses = chance_level(history, now), newest(history, "validation/loss", now, share=0.25)
        if chance is not None and len(losses):
            return median(losses) / chance
        commonest, right = correct_by_chance(history, now), newest(history, "validation/accuracy", now, share=0.25)
        return float(1 - right.mean()) / (1 - commonest) if len(right) and commonest < 1 else math.inf

    sick: ClassVar = (
        # dropout that leaves nothing
        _classes([2.31] * 60 + [2.28, 2.29, 2.27] * 80, 0.2),
        # one number for a patch of 64
        _patches([1.0] * 10 + [0.1, 0.11, 0.09] * 100, 1),
    )
    healthy: ClassVar = (
        # slow, but on its way
        _classes(list(np.linspace(2.31, 1.9, 300)), 0.3),
        # most was learnt, the rest is noise
        _classes(list(0.7 + 1.6 * np.exp(-np.arange(300) / 40)), 0.8),
        # a code wide enough
        _patches([1.0] * 10 + [0.1, 0.11, 0.09] * 100, 16),
        # a narrow one that explains nearly everything
        _patches([1.0] * 10 + [0.01, 0.011, 0.009] * 100, 1),
    )


def _bottleneck(history: History) -> tuple[int, int] | None:
    """The least width that one matrix gives and a later one takes, and that of the outputs, in order of execution.

    ``None`` where there is none, or some of the weights are frozen: what is trained may stand beside them.
    """
    own = [layer for layer in history.architecture.values() if layer.kind == "parameter" and len(layer.shape) == 2]
    own = sorted((layer for layer in own if layer.order >= 0), key=lambda layer: layer.order)
    given: set[int] = set()
    taken: list[int] = []
    for layer in own:
        owner = history.architecture.get(layer.name.rpartition(".")[0])
        looked_up = owner is not None and owner.kind.startswith("Embedding")
        taken += [layer.shape[1]] if layer.shape[1] in given and not looked_up else []
        given.add(layer.shape[1] if looked_up or ".weight_hh" in f".{layer.name}" else layer.shape[0])
    if not taken or not all(layer.trainable for layer in own):
        return None
    return min(taken), own[-1].shape[0]


def _linear(history: History) -> bool:
    """Whether there is only one matrix."""
    own = [layer for layer in history.architecture.values() if layer.kind == "parameter" and len(layer.shape) > 1]
    return len(own) == 1 and len(own[0].shape) == 2


def _dropped(history: History, now: int) -> list[float]:
    """The share of values that each dropout layer takes away, by the zeros before and after it."""
    if "activation_zeros" not in history:
        return []
    table = history.layers("activation_zeros")
    rows = table.values[table.steps <= now].astype(np.float64)
    known = [(history.architecture.get(name), i) for i, name in enumerate(table.layers)]
    layers = sorted(((layer, i) for layer, i in known if layer is not None), key=lambda pair: pair[0].order)
    shares: list[float] = []
    for (earlier, before), (layer, after) in itertools.pairwise(layers):
        if layer.kind.startswith("Dropout") and earlier.activation is not None and len(rows):
            passed = 1 - rows[:, before]
            kept = (1 - rows[:, after])[passed > 0.05] / passed[passed > 0.05]
            shares += [1 - median(kept)] if np.isfinite(kept).any() else []
    return shares
