"""TM304: inputs or targets far from unit scale, and a run that loses time on it."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import streak
from trainmedic.diagnose.learnt import SPAN, chance, learnt, level, skill
from trainmedic.diagnose.robust import ABSOLUTES, SQUARES, median
from trainmedic.diagnose.rules.saturated_activation import RECURRENT, SaturatedActivation
from trainmedic.history import History, Layer, Series


def _flickering() -> History:
    """An example: two classes in batches of 32, whose accuracy beats the commonest now and then, by chance."""
    return History.of(
        train_loss=[45.0, 300.0, *[0.69] * 198],
        input_feature_scale=[0.2] * 200,
        input_feature_scale_max=[1e3] * 200,
        output_accuracy=[0.5, 0.4, *np.tile(np.repeat([16, 17, 15, 16], 25), 2)[:198] / 32],
        layers=[Layer("in", "Linear", 0), Layer("out", "Linear", 1)],
        facts={
            "loss": "CrossEntropyLoss",
            "reduction": "mean",
            "classes": 2,
            "batch_size": 32,
            "total_steps": 200,
            "input_layer": "in",
        },
    )


def _fed(
    largest: float, losses: list[float], usual: float = 1.0, first: str = "Linear", target: tuple[float, float] = (0, 1)
) -> History:
    """An example: a regression on features of these scales, towards targets of this mean and standard deviation."""
    count = len(losses)
    return History.of(
        train_loss=losses,
        input_feature_scale=[usual] * count,
        input_feature_scale_max=[largest] * count,
        target_mean=[target[0]] * count,
        target_std=[target[1]] * count,
        layers=[Layer("in", first, 0), Layer("out", "Linear", 1)],
        facts={"loss": "MSELoss", "reduction": "mean", "input_layer": "in", "total_steps": 200},
    )


class _Scale(NamedTuple):
    """What is out of scale, with the number that shows it."""

    series: str
    message: str
    value: float
    limit: float


class UnnormalizedInput(Rule):
    """Inputs, one of their features, or targets are far from unit scale, and the run is long no better than a constant.

    Why it is bad: the curvature of the loss grows with the square of an input, so that one learning rate cannot fit
    features of 0.01 and of 1,000; the first outputs are as large as the inputs, and large targets have to be walked to.
    Usual causes: raw measures in different units; pixels of 0 to 255; dates and identifiers among the features; prices
    as targets.
    Formula: the root mean square of the largest feature is above `large`, or that of all of them below `small`, where
    neither the first layer nor the one after it normalises; or, for squared and absolute errors, |mean| + standard
    deviation of the targets is above `far`; and the run was not yet better for good than who knows the targets'
    distribution (loss against their entropy or variance, accuracy against the commonest class by `sigmas`: less than
    `chance_level` of the task) for its first `steps` steps and for `lost` of all (of those so far, where the total is
    not known), and for as long again if at its pace it would have been there by then (not where the inputs made the
    first loss `harm` times that of chance). Or, of inputs, the activation that they go through first is saturated (see
    saturated-activation). Silent once `works` of the task has been learnt. An error where the first
    loss was `harm` times that of chance (then the loss alone tells what is learnt), or nothing is learnt still.
    Remedies: normalize-inputs, insert-batchnorm, find-learning-rate, raise-learning-rate, scale-targets.
    Known limits: needs a live run of a loss that is a mean, or of classes. Sparse and one-hot inputs have small
    features and no large ones: only the largest is looked at. What learns all the same is left alone.
    Source: LeCun et al. 1998, "Efficient BackProp", section 4.3 (mean 0, equal variances of about 1, since convergence
    goes with the ratio of eigenvalues of the inputs' covariance).
    """

    code: ClassVar[str] = "TM304"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = ("input/feature_scale_max|target/std", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = (
        "normalize-inputs",
        "insert-batchnorm",
        "find-learning-rate",
        "raise-learning-rate",
        "scale-targets",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "bad-initialization",
        "collapsed-output",
        "dead-relu",
        "divergence",
        "exploding-gradient",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "loss-oscillation",
        "loss-spike",
        "noisy-gradient",
        "non-finite",
        "not-learning",
        "plateau",
        "saturated-activation",
        "slow-convergence",
        "underfitting",
        "vanishing-gradient",
    )
    advice: ClassVar[str] = (
        "Usually means raw measures, pixels or prices. "
        "Do this: subtract the mean of the training set and divide by its standard deviation, feature by feature, the "
        "targets of a regression too. Otherwise check (a) the scale of each feature: x.mean(0), x.std(0), and of the "
        "targets: y.mean(), y.std(); (b) columns that are no quantities (identifiers, dates): drop or encode them; "
        "(c) a batch norm as the first layer: nn.BatchNorm1d(features)."
    )

    large: float = Field(
        10.0, gt=1, description="root mean square of the largest feature (curvature a hundred times that at 1)"
    )
    small: float = Field(0.01, gt=0, lt=1, description="root mean square of the largest feature (biases drown it)")
    far: float = Field(
        10.0, gt=1, description="|mean| + standard deviation of targets (outputs start within about 1 of zero)"
    )
    chance_level: float = Field(
        0.02, gt=0, lt=1, description="share of the task below which nothing is learnt (batches differ by more)"
    )
    sigmas: float = Field(
        3.0, ge=0, description="accuracy over that of the commonest class, standard errors (1 in 700 by chance)"
    )
    steps: int = Field(
        40, ge=1, description="steps that any run may take to get there (warm-up, 4 spans of the median)"
    )
    lost: float = Field(
        0.1, gt=0, lt=1, description="share of the run that may pass before it is better than a constant (a tenth)"
    )
    harm: float = Field(2.0, gt=1, description="first loss over that of chance, where it is the scale's doing (twice)")
    works: float = Field(
        0.75, gt=0, le=1, description="share of the task that is learnt, from which on it works as it is (most of it)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        scales = [scale for scale in (self._input(history), self._target(history)) if scale is not None]
        if not scales or self._works(history):
            return
        targets_only = [scale.series for scale in scales] == ["target/std"]
        flat = None if targets_only else _flat(history)
        seen = self._lost_until(history, patience=2 if targets_only else 1)  # outputs have to walk to their targets
        if flat is not None:
            seen = flat.detected_at if seen is None else min(seen, flat.detected_at)
        if seen is None:
            return
        first = self._first_loss(history)
        severe = first > self.harm or not learnt(history) > self.chance_level
        start = min(int(history.series(scale.series).steps[0]) for scale in scales)
        evidence = [Evidence(name=scale.series, value=scale.value, limit=scale.limit) for scale in scales]
        if np.isfinite(first):
            evidence.append(Evidence(name="first loss over that of chance", value=first, limit=self.harm))
        harm = f"{seen - start + 1} steps in the model was no better than a constant"
        if flat is not None:
            harm = flat.message
            evidence += flat.evidence[:1]
        yield self.finding(
            step=min(start, seen),
            detected_at=seen,
            where=[scale.series for scale in scales],
            severity=Severity.ERROR if severe else Severity.WARNING,
            message=f"{' and '.join(scale.message for scale in scales)}, and {harm}",
            evidence=evidence,
        )

    def _input(self, history: History) -> _Scale | None:
        """A feature that is far too large, or all of them far too small, with nothing that normalises them."""
        if "input/feature_scale_max" not in history or _normalised(history):
            return None
        largest, usual = level(history, "input/feature_scale_max"), level(history, "input/feature_scale")
        if largest > self.large:
            beside = f", others at {usual:.3g}" if usual < largest / 10 else ""
            return _Scale("input/feature_scale_max", f"input features reach {largest:.3g}{beside}", largest, self.large)
        if 0 < largest < self.small:
            return _Scale("input/feature_scale_max", f"all input features are below {largest:.3g}", largest, self.small)
        return None

    def _target(self, history: History) -> _Scale | None:
        """Targets of a regression that are far from where outputs start."""
        if history.facts.get("loss") not in (*SQUARES, *ABSOLUTES, "SmoothL1Loss", "HuberLoss"):
            return None
        mean, spread = level(history, "target/mean"), level(history, "target/std")
        if not abs(mean) + spread > self.far:
            return None
        message = f"targets are {mean:.3g} on average, give or take {spread:.3g}"
        return _Scale("target/std", message, abs(mean) + spread, self.far)

    def _lost_until(self, history: History, patience: int) -> int | None:
        """The step by which too much of the run had passed at the level of chance; ``None`` if it never did."""
        tellers = self._tellers(history)
        if not tellers:
            return None
        begin = min(int(steps[0]) for steps, _ in tellers)
        better = []
        for steps, values in tellers:
            with np.errstate(invalid="ignore"):
                above = values > self.chance_level
            better += _lasting(steps, above)
        last = int(history.series("train/loss").steps[-1])
        total = history.facts.get("total_steps")
        length = total if isinstance(total, int) and total > 0 else last - begin + 1
        granted = patience * max(self.steps, int(self.lost * length)) + SPAN  # the median looks back
        for limit in (begin + granted, begin + 2 * granted):
            if min(better, default=last + 1) <= limit or last < limit:
                return None
            arrives = (patience > 1 or not self._first_loss(history) > self.harm) and any(
                self._arrives(teller, begin, limit) for teller in tellers
            )
            if limit > begin + granted or not arrives:
                return int(next(step for step in history.series("train/loss").steps if step >= limit))
        return None

    def _tellers(self, history: History) -> list[Series]:
        """What tells how much is learnt: where the first loss is the scale's doing, the loss alone."""
        known = skill(history, self.sigmas)
        return known[:1] if self._first_loss(history) > self.harm else known

    def _works(self, history: History) -> bool:
        """Whether enough of the task has been learnt by now."""
        return any(float(values[-1]) > self.works for _, values in self._tellers(history))

    def _arrives(self, told: Series, begin: int, limit: int) -> bool:
        """Whether, at the pace of the second half of the time until ``limit``, it comes there in as much time again."""
        middle, end = (int(np.searchsorted(told.steps, step)) for step in ((begin + limit) // 2, limit))
        if end >= len(told.steps):
            return False
        now = float(told.values[end])
        return now + 2 * (now - float(told.values[middle])) > self.chance_level

    def _first_loss(self, history: History) -> float:
        """The first losses over that of chance; NaN where that is not known."""
        guess = chance(history)
        return median(history.series("train/loss").values[:3]) / guess if guess > 0 else float("nan")

    sick: ClassVar = (
        _fed(1e4, [1e6 / (i + 1) ** 2 for i in range(100)] + [1.0] * 100),
        _fed(500.0, [1.0] * 200, usual=0.1),
        _fed(1.0, list(np.linspace(3e4, 6e3, 200)), target=(150.0, 75.0)),
        _flickering(),
    )
    healthy: ClassVar = (
        _fed(1.2, list(np.linspace(1.2, 0.6, 200))),
        _fed(1e4, list(np.linspace(1.2, 0.6, 200)), first="BatchNorm1d"),
        _fed(255.0, list(np.geomspace(3.0, 0.1, 200))),  # it learns all the same
        _fed(1.0, list(np.linspace(1.2, 0.6, 200)), usual=0.01),  # rare words, one-hot
        _fed(1.0, [*np.geomspace(3e4, 1e3, 60), *[1e3] * 140], target=(150.0, 75.0)),
        _fed(1e4, [1e6] * 30),  # too early to tell
    )


def _lasting(steps: NDArray[np.int64], flags: NDArray[np.bool_]) -> list[int]:
    """The step from which flags have stayed up until now, if they are: one batch may be easy."""
    start = streak(flags)
    return [] if start is None else [int(steps[start])]


def _flat(history: History) -> Finding | None:
    """What saturated-activation tells of the first activation, if it is the one that the inputs go through."""
    taking = history.architecture.get(str(history.facts.get("input_layer")))
    if taking is None or SaturatedActivation().unmet(history) is not None:
        return None
    after = [layer for layer in history.architecture.values() if layer.activation and layer.order >= taking.order >= 0]
    first = taking if taking.kind in RECURRENT else min(after, key=lambda layer: layer.order, default=None)
    told = SaturatedActivation().check(history)
    return next((finding for finding in told if first is not None and first.name in finding.where), None)


def _normalised(history: History) -> bool:
    """Whether the layer that takes the input normalises it, or the next one that which comes out."""
    taking = history.architecture.get(str(history.facts.get("input_layer")))
    if taking is None:
        return False
    after = [
        layer
        for layer in history.architecture.values()
        if layer.kind not in ("parameter", "function", "Dropout", "Flatten", "Identity")
        and layer.order > taking.order >= 0
    ]
    near = [taking, *sorted(after, key=lambda layer: layer.order)[:1]]
    return any("Norm" in layer.kind for layer in near)
