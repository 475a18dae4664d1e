"""TM302: hidden sigmoids and tanhs sit on their flat part."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import course_of, gains, several
from trainmedic.diagnose.learnt import known_apart, untrained
from trainmedic.history import History, Layer, Series

RECURRENT = ("RNN", "LSTM", "GRU")


def _hidden(losses: list[float], flat: list[float], std: float = 0.07, stuck: list[float] | None = None) -> History:
    """An example: a tanh between two layers of 64 units."""
    values: dict[str, Any] = {
        "tanh__saturated_outputs": flat,
        "tanh__saturated_units": flat if stuck is None else stuck,
        "fc1.weight__weight_std": [std] * len(losses),
    }
    layers = [
        Layer("fc1", "Linear", 0, (64,)),
        Layer("fc1.weight", "parameter", 0, (64, 64)),
        Layer("tanh", "Tanh", 1, (64,), activation="tanh"),
        Layer("fc2", "Linear", 2, (10,)),
        Layer("fc2.weight", "parameter", 2, (10, 64)),
    ]
    return History.of(train_loss=losses, layers=layers, **values)


class SaturatedActivation(Rule):
    """A hidden sigmoid, tanh or softmax puts out mostly its extremes, before anything was learnt or instead of it.

    Why it is bad: on the flat part hardly any gradient gets through, so the layers below it learn slowly or not at all.
    Usual causes: weights drawn too large; inputs that are not scaled; one step that was far too large.
    Formula: the output is flat where the activation's derivative is below a twentieth of its largest. Told where over
    the first `patience` measurements more than `start` of a layer's outputs are flat, and the weights before it are
    larger than `wild` / sqrt(fan), or (of a sigmoid or tanh) are all still as they were drawn, or the run has not come
    down by `works` of its first loss in `wait` losses; or where more than `stuck` of its units are flat for nearly all
    samples in the newest `patience` measurements, and the loss has come down by less than `works` (of a softmax, by
    less than `learnt`) in `wait` losses. Silent where accuracy on data apart knows `known` of the task.
    Remedies: normalize-inputs, reinitialize, insert-batchnorm, replace-activation, find-learning-rate,
    lower-learning-rate.
    Known limits: attention inside of nn.MultiheadAttention is not seen, nor are the gates of nn.LSTM and nn.GRU: of
    recurrent layers the mean square of what they put out, 1 at most, stands for the share of flat outputs at the start.
    The last activation of a model is left in peace: it may be sure of what it says.
    Source: Glorot and Bengio 2010, section 3: saturation at the start is what sigmoids do not recover from. A law that
    keeps the variance at 1 leaves one tanh output in a hundred flat.
    """

    code: ClassVar[str] = "TM302"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.INITIALIZATION
    needs: ClassVar[tuple[str, ...]] = ("saturated_outputs|saturated_units|activation_std", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = (
        "normalize-inputs",
        "reinitialize",
        "insert-batchnorm",
        "replace-activation",
        "find-learning-rate",
        "lower-learning-rate",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "vanishing-gradient",
        "collapsed-output",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that the weights before the activation were drawn too large. "
        "Do this: draw them smaller, nn.init.xavier_normal_(layer.weight), or put a norm before the activation. "
        "Otherwise check (a) what goes in: layer(x).std() should be near 1; (b) the scale of the inputs: x.std(); "
        "(c) the learning rate: did the share of flat outputs jump at one step?"
    )

    start: float = Field(
        0.3, gt=0, lt=1, description="share of a layer's outputs, 0 to 1 (usual laws make it 0.01, a gain of 5/3 0.06)"
    )
    stuck: float = Field(0.5, gt=0, lt=1, description="share of a layer's units, 0 to 1 (half of it is lost)")
    patience: int = Field(3, ge=1, description="measurements (one batch may be unusual)")
    wild: float = Field(2.5, gt=0, description="gain, a ratio (1.5 times the 5/3 that is recommended for tanh)")
    works: float = Field(0.5, gt=0, lt=1, description="share of the first loss, 0 to 1 (half: the run works as it is)")
    learnt: float = Field(0.05, gt=0, lt=1, description="share of the first loss, 0 to 1 (below it nothing was learnt)")
    wait: int = Field(50, ge=10, description="losses (it may free itself)")
    known: float = Field(
        0.9, gt=0, le=1, description="share of the task known by data apart, 0 to 1 (nine tenths: it has done no harm)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        course = course_of(history)
        if not len(course) or known_apart(history) > self.known:
            return
        alone = not several(history) and int(course.places[-1]) + 1 >= self.wait
        idle = alone and not course.progress[-1] >= self.learnt
        slow = alone and not course.progress[-1] >= self.works
        since = int(
            course.all_steps[min(self.wait, len(course.all_steps)) - 1]
        )  # no earlier is a run judged by its loss
        hit: list[tuple[float, str, int, int]] = []
        for layer in _inner(history):
            found = self._flat_at_start(history, layer, slow, since) or self._stuck(history, layer, idle, slow, since)
            if found is not None:
                hit.append(found)
        if not hit:
            return
        hit.sort(reverse=True)
        share, worst = hit[0][:2]
        others = f" (and of {len(hit) - 1} more layers)" if len(hit) > 1 else ""
        yield self.finding(
            step=min(step for _, _, step, _ in hit),
            detected_at=min(detected for _, _, _, detected in hit),
            where=[layer for _, layer, _, _ in hit],
            severity=Severity.ERROR if idle else Severity.WARNING,
            message=f"{100 * share:.0f} % of what {worst}{others} puts out lies on the flat part of its activation",
            evidence=[
                Evidence(name=f"flat outputs or units of {layer}", value=100 * share, limit=100 * self.start, unit="%")
                for share, layer, _, _ in hit[:5]
            ],
        )

    def _flat_at_start(
        self, history: History, layer: str, slow: bool, since: int
    ) -> tuple[float, str, int, int] | None:
        if history.architecture[layer].kind in RECURRENT:
            steps, shares = _squares(history, layer)
        elif "saturated_outputs" in history and layer in history.layers("saturated_outputs").layers:
            steps, shares = history.layers("saturated_outputs").column(layer)
        else:
            return None
        first = shares[: self.patience]
        if len(first) < self.patience or not (first > self.start).all():
            return None
        gain, measured = _gain_before(history, layer)
        detected = int(steps[self.patience - 1])
        if gain > self.wild:
            least = int(history.series("train/loss").steps[9])  # a course begins with a level
            return float(first.min()), layer, int(steps[0]), max(detected, measured, least)
        if history.architecture[layer].activation != "softmax" and untrained(history, _weights_before(history, layer)):
            return float(first.min()), layer, int(steps[0]), detected
        return (float(first.min()), layer, int(steps[0]), max(detected, since)) if slow else None

    def _stuck(
        self, history: History, layer: str, idle: bool, slow: bool, since: int
    ) -> tuple[float, str, int, int] | None:
        lost = idle if history.architecture[layer].activation == "softmax" else slow  # most of a softmax is nearly zero
        if not lost or "saturated_units" not in history or layer not in history.layers("saturated_units").layers:
            return None
        steps, shares = history.layers("saturated_units").column(layer)
        if len(shares) < self.patience or not (shares[-self.patience :] > self.stuck).all():
            return None
        free = np.flatnonzero(~(shares > self.stuck))
        onset = int(free[-1]) + 1 if len(free) else 0
        return float(shares[-1]), layer, int(steps[onset]), max(int(steps[onset + self.patience - 1]), since)

    sick: ClassVar = (
        _hidden([5.0, 4.0, 3.0] + [1.5] * 80, [0.8] * 83, std=1.0),
        _hidden([2.3] * 80, [0.7] * 80),
        # stuck by a large step
        _hidden([2.3] * 10 + [2.4] * 80, [0.0] * 10 + [0.9] * 80),
    )
    healthy: ClassVar = (
        # gates that the task has closed
        _hidden([2.3 * 0.95**i for i in range(90)], [i / 100 for i in range(90)]),
        # outputs at their extremes, but other units for each sample
        _hidden([2.3] * 5 + [2.2] * 85, [0.0] * 20 + [0.6] * 70, stuck=[0.0] * 90),
        # a net that comes with what it has learnt
        _hidden([2.3 * 0.95**i for i in range(90)], [0.6] * 90),
        _hidden([2.3] * 90, [0.02] * 90),
    )


def _inner(history: History) -> list[str]:
    """Activations with a flat part that are followed by a layer with weights."""
    weighted = [
        layer.order for layer in history.architecture.values() if layer.kind == "parameter" and len(layer.shape) > 1
    ]
    last = max(weighted, default=-1)
    return [
        name
        for name, layer in history.architecture.items()
        if (layer.activation in ("sigmoid", "tanh", "softmax") or layer.kind in RECURRENT) and 0 <= layer.order < last
    ]


def _squares(history: History, layer: str) -> Series:
    """Mean squares of what a recurrent layer puts out; empty where that is not bounded by 1, as by a tanh."""
    tables = [f"activation_{name}" for name in ("mean", "std", "max")]
    if any(name not in history or layer not in history.layers(name).layers for name in tables):
        return Series(np.empty(0, dtype=np.int64), np.empty(0))
    (steps, means), (_, spreads), (_, largest) = (history.layers(name).column(layer) for name in tables)
    bounded = len(largest) > 0 and bool((largest[:10] <= 1 + 1e-5).all())
    return Series(steps, np.square(means) + np.square(spreads) if bounded else np.zeros(len(steps)))


def _weights_before(history: History, layer: str) -> list[str]:
    """The weight matrices up to an activation, in the order of execution."""
    until = history.architecture[layer].order
    return [
        name
        for name, known in history.architecture.items()
        if 0 <= known.order <= until and len(known.shape) > 1 and known.kind == "parameter"
    ]


def _gain_before(history: History, layer: str) -> tuple[float, int]:
    """Gain of the weight matrix that runs right before an activation, 0 where it is not known; when it was measured."""
    if "weight_std" not in history:
        return 0.0, 0
    measured, found = gains(history)
    order = history.architecture[layer].order
    before = [(history.architecture[name].order, gain) for name, (gain, _) in found.items()]
    gain = max(((at, gain) for at, gain in before if 0 <= at <= order), default=(0, 0.0))[1]
    return gain, measured
