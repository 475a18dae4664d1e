"""TM503: predictions collapse to the majority class."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import learnt
from trainmedic.diagnose.robust import Array, median
from trainmedic.history import History

CUT = {"BCEWithLogitsLoss": 0.0, "binary_cross_entropy_with_logits": 0.0, "BCELoss": 0.5, "binary_cross_entropy": 0.5}
"""Above which output a single one says yes."""


def _classes(
    rare: float,
    predicted: Sequence[float],
    *,
    losses: Sequence[float] = (),
    validation: Sequence[float] = (),
    **more: Any,
) -> History:
    """An example: two classes, one of this share, and how often it is predicted."""
    count = len(predicted)
    columns: dict[str, Any] = {
        "0__label_share": [1 - rare] * count,
        "1__label_share": [rare] * count,
        "0__predicted_share": [1 - share for share in predicted],
        "1__predicted_share": list(predicted),
    }
    facts = {"loss": "CrossEntropyLoss", "classes": 2, "batch_size": 64, "total_steps": count}
    history = History.of(facts=facts, train_loss=losses or np.geomspace(0.3, 0.02, count), **columns)
    if validation:
        accuracies = more["accuracies"]
        at = np.linspace(count // 8, count - 1, len(validation)).astype(int)
        history.add_series("validation/loss", at, validation)
        history.add_series("validation/accuracy", at, accuracies)
    return history


class _Collapse(NamedTuple):
    """Since when, and by which step, only the majority is predicted; of how many samples; and how rare the rest is."""

    step: int
    detected: int
    samples: float
    rare: float
    share: float


class ClassImbalance(Rule):
    """One class is by far the commonest, and the others are never predicted, or only in training.

    Why it is bad: the accuracy looks high, and the classes that matter are not found.
    Usual causes: too few samples of the rare class, and a loss that counts all samples alike; a batch sampler that
    hardly ever draws it; a threshold that does not fit the shares.
    Formula: the commonest class has at least `majority` of the labels; over the second half of the run so far, after
    `share` of all its steps (`steps` where the total is not known) and at least `samples` samples of the others, these
    are predicted at most `predicted` times as often as they occur. (Of a single output: it never crosses the threshold
    of its loss.) Or, told by validation: the others make at most `scarce` of the labels, and in the last three
    evaluations the share of errors is `errs` times that or more, and the loss `gap` times that of training: the rare
    ones were learnt by heart.
    Remedies: reweight-classes, augment-inputs, add-data.
    Known limits: needs a live run. A validation set that is drawn in the same proportions hides the second case.
    Weights given to the classes are not known; what they are to achieve is what is looked at.
    Source: He and Garcia 2009, "Learning from imbalanced data", IEEE TKDE 21(9).
    """

    code: ClassVar[str] = "TM503"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = ("predicted_share|target/binary",)
    remedies: ClassVar[tuple[str, ...]] = ("reweight-classes", "augment-inputs", "add-data")
    explains: ClassVar[tuple[str, ...]] = (
        "collapsed-output",
        "not-learning",
        "overfitting",
        "plateau",
        "validation-mismatch",
    )
    advice: ClassVar[str] = (
        "Usually means that naming the commonest class is nearly as good as knowing, by the loss that is used. "
        "Do this: weight the classes, nn.CrossEntropyLoss(weight=1 / counts), or draw them evenly with "
        "torch.utils.data.WeightedRandomSampler. Otherwise check (a) the counts: torch.bincount(labels); (b) the "
        "accuracy of each class by itself, not of all together; (c) whether the rare class can be told at all: train "
        "on as many samples of each."
    )

    majority: float = Field(0.75, gt=0.5, lt=1, description="share of the commonest class (three to one)")
    predicted: float = Field(
        0.1, ge=0, lt=1, description="predictions of other classes over their labels (a tenth is by accident)"
    )
    samples: int = Field(20, ge=1, description="samples of other classes (none of 20 found: one in seven at most)")
    share: float = Field(
        0.4, gt=0, lt=1, description="share of the run after which it counts (the commonest is learnt first)"
    )
    steps: int = Field(200, ge=1, description="steps after which it counts, where the total is not known (likewise)")
    scarce: float = Field(0.03, gt=0, lt=0.5, description="share of the other classes (one in thirty)")
    errs: float = Field(4.0, gt=1, description="validation errors over the share of other classes (they explain 1)")
    gap: float = Field(4.0, gt=1, description="validation loss over training loss, factor (no usual difference)")

    def check(self, history: History) -> Iterator[Finding]:
        collapse = self._by_predictions(history) if "predicted_share" in history else self._by_outputs(history)
        if collapse is not None:
            knows = learnt(history)
            yield self.finding(
                step=collapse.step,
                detected_at=collapse.detected,
                where=["predicted_share" if "predicted_share" in history else "output/max"],
                severity=Severity.WARNING if knows > 0.1 else Severity.ERROR,
                message=f"{100 * collapse.rare:.2g} % of the labels are of other classes than the commonest, of the "
                f"predictions {100 * collapse.share:.2g} %",
                evidence=[
                    Evidence(
                        name="predictions of other classes over their labels",
                        value=collapse.share / collapse.rare,
                        limit=self.predicted,
                    ),
                    Evidence(name="samples of other classes", value=collapse.samples, limit=self.samples),
                ],
            )
            return
        yield from self._by_validation(history)

    def _by_predictions(self, history: History) -> _Collapse | None:
        """Of several outputs: how often each class is the largest."""
        steps, rare, said = _others(history)
        if not len(steps):
            return None
        return self._collapse(history, steps, rare, said)

    def _by_outputs(self, history: History) -> _Collapse | None:
        """Of a single output: whether it ever crosses the threshold."""
        cut = CUT.get(str(history.facts.get("loss")))
        names = ("target/binary", "target/mean", "output/min", "output/max")
        if cut is None or any(name not in history for name in names):
            return None
        binary, ones, low, high = (history.series(name) for name in names)
        same = len({len(series.steps) for series in (binary, ones, low, high)}) == 1
        if not same or not (binary.values == 1).all() or not np.isfinite(ones.values).all():
            return None
        mostly = float(np.mean(ones.values)) > 0.5
        rare = 1 - ones.values if mostly else ones.values
        crossed = low.values <= cut if mostly else high.values >= cut
        return self._collapse(history, ones.steps, rare, np.where(crossed, 1.0, 0.0))

    def _collapse(self, history: History, steps: NDArray[np.int64], rare: Array, said: Array) -> _Collapse | None:
        """Whether the rare classes are predicted too seldom in the second half of the run so far."""
        total = history.facts.get("total_steps")
        since = int(steps[0]) + (int(self.share * total) if isinstance(total, int) and total > 0 else self.steps)
        begin = int(np.searchsorted(steps, (steps[0] + steps[-1]) / 2))
        common, share = float(np.mean(rare[begin:])), float(np.mean(said[begin:]))
        samples = common * (len(steps) - begin) * float(history.facts.get("batch_size") or 1)
        late = steps[steps >= since]
        if not 0 < common <= 1 - self.majority or samples < self.samples or not len(late):
            return None
        if not share <= self.predicted * common:
            return None
        onset, detected = self._seen(history, steps, rare, said, int(late[0]))
        return _Collapse(onset, detected, samples, common, share)

    def _seen(
        self, history: History, steps: NDArray[np.int64], rare: Array, said: Array, earliest: int
    ) -> tuple[int, int]:
        """Where the second half of the run began when all of this could first be seen, and when that was."""
        size = float(history.facts.get("batch_size") or 1)
        before_rare, before_said = np.concatenate([[0], np.cumsum(rare)]), np.concatenate([[0], np.cumsum(said)])
        ends = np.arange(1, len(steps) + 1)
        begins = np.searchsorted(steps, (steps[0] + steps) / 2)
        labels, names = before_rare[ends] - before_rare[begins], before_said[ends] - before_said[begins]
        shown = (labels * size >= self.samples) & (names <= self.predicted * labels) & (steps >= earliest)
        shown &= (labels > 0) & (labels <= (1 - self.majority) * (ends - begins))
        first = int(np.argmax(shown)) if shown.any() else len(steps) - 1
        return int(steps[begins[first]]), int(steps[first])

    def _by_validation(self, history: History) -> Iterator[Finding]:
        """Rare classes that were learnt by heart: validation errs far more often than they occur."""
        names = ("label_share", "validation/accuracy", "validation/loss", "train/loss")
        if any(name not in history for name in names):
            return
        steps, rare, _ = _others(history)
        common = float(np.mean(rare)) if len(rare) else 0.0
        at, accuracies = history.series("validation/accuracy")
        losses = history.series("validation/loss")
        train = history.series("train/loss")
        if not 0 < common <= self.scarce or len(at) < 3 or len(losses.values) < 3:
            return
        errors = 1 - accuracies[-3:]
        here = median(train.values[-10:])
        if not (errors >= self.errs * common).all() or not (losses.values[-3:] > self.gap * here).all():
            return
        yield self.finding(
            step=min(int(steps[0]), int(at[-1])),
            detected_at=at[-1],
            where=["validation/accuracy"],
            message=f"{100 * common:.2g} % of the training labels are of other classes than the commonest, and "
            f"validation errs on {100 * float(errors[-1]):.2g} %",
            evidence=[
                Evidence(name="validation errors over rare labels", value=float(errors[-1]) / common, limit=self.errs),
                Evidence(
                    name="validation loss over training loss", value=float(losses.values[-1]) / here, limit=self.gap
                ),
            ],
        )

    sick: ClassVar = (_classes(0.05, [0.3] * 10 + [0.0] * 90, losses=[0.2] * 100),)
    healthy: ClassVar = (
        _classes(0.05, [0.3] * 10 + [0.0] * 20 + [0.05] * 70),  # the common class is learnt first
        _classes(0.5, [0.0] * 100),  # not imbalanced: another illness
        _classes(0.05, [0.04] * 100),
        _classes(0.01, [0.01] * 100, losses=[0.02] * 100, validation=[0.06] * 8, accuracies=[0.99] * 8),
    )


def _others(history: History) -> tuple[NDArray[np.int64], Array, Array]:
    """Steps, and at each the share of labels, and of predictions, that are not of the commonest class."""
    nothing = np.empty(0, np.int64), np.empty(0), np.empty(0)
    if "label_share" not in history:
        return nothing
    labels, said = history.layers("label_share"), history.layers("predicted_share")
    if len(labels.steps) != len(said.steps) or labels.layers != said.layers or len(labels.layers) < 2:
        return nothing
    asked, told = labels.values.astype(np.float64), said.values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        valid = (np.abs(asked.sum(axis=1) - 1) < 0.01) & (np.abs(told.sum(axis=1) - 1) < 0.01)
        valid &= (np.abs(asked) <= 1).all(axis=1) & (np.abs(told) <= 1).all(axis=1)
    if not valid.any():
        return nothing
    commonest = int(np.argmax(asked[valid].mean(axis=0)))
    return labels.steps[valid], 1 - asked[valid, commonest], 1 - told[valid, commonest]
