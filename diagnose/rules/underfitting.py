"""TM502: both training and validation stay bad."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import SQUARES
from trainmedic.diagnose.robust import (
    Array,
    adversarial,
    beats_chance,
    block_medians,
    chance_level,
    gone,
    holds_since,
    median,
    newest,
    reconstructs,
    share_done,
    thinned,
    update_size,
)
from trainmedic.history import History, Layer, Snapshot


class Fit(NamedTuple):
    """What is left to be learnt."""

    level: float
    chance: float
    least: float  # share of chance that is left at the end, at least
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
    tiny (`tiny`), either (1) of classes: the training loss is still above `poor` of that of the best constant answer,
    will be so at the end of the run at the pace of its last quarter, and was never a tenth better; the validation loss
    is no better; and accuracy beats chance (else not-learning tells); or (2) where the targets are the inputs: more
    than `unexplained` of their variance is left, nothing of it has gone since the third quarter (`sigmas` standard
    errors or a fiftieth), and the narrowest layer has at most a `narrow`-th of the outputs' width.
    Remedies: weight-decay, unfreeze, widen-model.
    Known limits: how well a task can be done is not known in general, so that only runs close to chance are told, and
    of squared errors those without noise in the targets. A code of two numbers that is meant for a picture is narrow
    by design.
    Source: Goodfellow, Bengio, Courville 2016, Deep Learning, section 5.2 (both errors high, and close to each other).
    """

    code: ClassVar[str] = "TM502"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = ("weight-decay", "unfreeze", "widen-model")
    explains: ClassVar[tuple[str, ...]] = ("plateau",)
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
    narrow: float = Field(32.0, gt=1, description="width of the outputs over that of the narrowest layer (32 to 1)")
    half: float = Field(0.5, gt=0, le=1, description="share of the run's steps (slow starters have begun by then)")
    steps: int = Field(
        1_000, ge=50, description="losses, where the length of the run is not known (twenty epochs of 50)"
    )
    sigmas: float = Field(3.0, gt=0, description="fall, standard errors (one in 700 flat runs falls by chance)")
    tiny: float = Field(2e-4, ge=0, lt=1, description="|update| / |weight|, below which the run is slow, not underfit")

    def unmet(self, history: History) -> str | None:
        """Needs a loss whose chance level is known."""
        known = super().unmet(history) is not None or chance_level(history) is not None
        return super().unmet(history) or (
            None if known else "the loss of knowing nothing is not known for this history"
        )

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history):
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        steps, values = steps[usable], values[usable]
        same = reconstructs(history)
        judged = partial(self._fit, history, steps, values, same)
        since = holds_since(judged, steps)
        fit = None if since is None else judged(since)
        if since is None or fit is None:
            return
        yield self.finding(
            step=steps[0],
            detected_at=steps[since],
            where=("train/loss", *(["validation/loss"] if "validation/loss" in history else [])),
            message=f"the loss is {fit.level:.4g}, {100 * fit.level / fit.chance:.0f} % of that of the best constant "
            f"answer, {fit.why}",
            evidence=[
                Evidence(
                    name="training loss, share of knowing nothing",
                    value=100 * fit.level / fit.chance,
                    limit=100 * (self.unexplained if same else self.poor),
                    unit="%",
                ),
                Evidence(name="the same at the end, at this pace", value=100 * fit.least, unit="%"),
            ],
        )

    def _fit(self, history: History, steps: NDArray[np.int64], values: Array, same: bool, place: int) -> Fit | None:
        now = int(steps[place])
        done = share_done(history, now)
        if place < 40 or (place < self.steps if done is None else done < self.half):
            return None
        chance, size = chance_level(history, now), update_size(history, now)
        if chance is None or (size is not None and size < self.tiny):
            return None
        curve = thinned(values[: place + 1])
        level = median(curve[-max(10, len(curve) // 4) :])
        fell, doubt = gone(curve)
        quarters = 4 * (1 / done - 1) if done else 4.0  # how many more quarters of the run until now there are
        least = (level - max(0.0, fell - self.sigmas * doubt) * quarters) / chance
        apart = newest(history, "validation/loss", now, share=0.25)
        if same and history.facts.get("loss") in SQUARES:
            width = _narrowest(history)
            flat = fell < max(self.sigmas * doubt, 0.02 * level)
            if width is None or not flat or not self.unexplained < level / chance < 1:
                return None
            if width[1] < self.narrow * width[0]:
                return None
            return Fit(level, chance, least, f"with {width[0]} numbers for {width[1]} in its narrowest layer")
        if history.facts.get("loss") in SQUARES or not self.poor < level / chance < 1 + (1 - self.poor):
            return None
        lowest = float(block_medians(curve, max(5, len(curve) // 20)).min())
        if least < self.poor or lowest < 0.9 * level or (len(apart) and median(apart) < self.poor * chance):
            return None
        if not beats_chance(history, now):
            return None
        return Fit(level, chance, least, "although steps are of the usual size")

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


def _narrowest(history: History) -> tuple[int, int] | None:
    """Widths of the narrowest weight matrix and of the last one, in the order of execution."""
    own = [layer for layer in history.architecture.values() if layer.kind == "parameter" and len(layer.shape) >= 2]
    own = sorted((layer for layer in own if layer.order >= 0), key=lambda layer: layer.order)
    return (min(layer.shape[0] for layer in own), own[-1].shape[0]) if own else None
