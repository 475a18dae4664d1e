"""TM101: NaN or infinity in the loss, the gradients, the activations or the weights."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import in_a_row, rejected_steps
from trainmedic.history import History, LayerTable


class Origin(NamedTuple):
    """Where something that is not finite was first seen."""

    step: int
    rank: int  # of two sources at one step the lower rank is nearer to the origin
    where: tuple[str, ...]
    what: str  # "the output of fc1"
    kind: str  # "activations"


class NonFinite(Rule):
    """A NaN or an infinity in the loss, the gradients, the activations or the weights.

    Why it is bad: one step with a gradient that is not finite makes every weight NaN, and the run has to go back.
    Usual causes: a learning rate or an initialisation that is too large; log or division of zero, a root at zero; half
    precision without a loss scale; a broken sample in the data.
    Formula: the first step at which a value is not finite, without patience. Of the layers hit at that step the origin
    is the first in the order of execution by its output, and the last by its gradient, for backward runs the other way.
    Infinite gradients that the loss scaler skipped do not count; where it is not known whether a scaler was used,
    `patience` of them in a row do. Outputs alone do not count while loss and gradients stay finite. A warning, not an
    error, where the weights stayed clean and the newest `recovered` losses are finite.
    Remedies: skip-step, rewind, lower-learning-rate, change-precision.
    Known limits: where the first bad step was not measured in full, the layer in which it began is not located.
    Source: IEEE 754 arithmetic; the order of layers from the run's own forward pass.
    """

    code: ClassVar[str] = "TM101"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = (
        "train/loss|gradient/norm|gradient/nonfinite|weight_nonfinite|activation_nonfinite|validation/loss",
    )
    remedies: ClassVar[tuple[str, ...]] = ("skip-step", "rewind", "lower-learning-rate", "change-precision")
    advice: ClassVar[str] = (
        "Usually means that a step was too large, or a log, root or division met a zero. "
        "Do this: go back to a checkpoint before this step, lower the learning rate, and add eps inside log, sqrt "
        "and divisions. Otherwise check (a) the batch of this step: torch.isfinite(x).all(); (b) the operation: "
        "torch.autograd.set_detect_anomaly(True); (c) half precision: does a torch.amp.GradScaler scale the loss, "
        "print(scaler.get_scale())?"
    )

    patience: int = Field(
        3,
        ge=1,
        description="steps in a row with bad gradients, where a loss scale may be in use (its search takes 1-2)",
    )
    recovered: int = Field(
        10, ge=1, description="newest losses, all finite, by which the run came through (poisoned weights allow none)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        loss, gradients = self._loss(history), self._gradients(history)
        origins = [o for o in (loss, gradients, _weights(history), _activations(history, loss, gradients)) if o]
        if not origins:
            yield from self._validation(history)
            return
        first = min(origins, key=lambda origin: (origin.step, origin.rank))
        harmed = not self._came_through(history, first.step)
        yield self.finding(
            step=first.step,
            detected_at=first.step,
            where=first.where,
            severity=Severity.ERROR if harmed else Severity.WARNING,
            message=f"{first.what} is not finite at step {first.step}"
            + ("" if harmed else "; the run came through unharmed"),
            evidence=[
                Evidence(name=f"first step with {o.kind} that are not finite", value=o.step) for o in sorted(origins)
            ],
        )

    def _loss(self, history: History) -> Origin | None:
        if "train/loss" not in history:
            return None
        steps, values = history.series("train/loss")
        flags = ~np.isfinite(values)
        if flags.any() and "optimizer/skipped" in history:  # a step that was rejected did no harm, unless all are
            flags &= ~np.isin(steps, rejected_steps(history)) | in_a_row(flags, self.recovered)
        bad = np.flatnonzero(flags)
        return Origin(int(steps[bad[0]]), 2, ("train/loss",), "the training loss", "losses") if len(bad) else None

    def _gradients(self, history: History) -> Origin | None:
        """The first bad gradient; backward runs from the last layer to the first, so the last bad one is the origin."""
        bad_steps = self._bad_gradients(history)
        if not len(bad_steps):
            return None
        step = int(bad_steps[0])
        hit = _flagged(history, "gradient_nonfinite", step)[::-1]
        loss = self._loss(history)
        rank = 3 if loss is not None and loss.step <= step else 1
        what = f"the gradient of {hit[0]}" if hit else "the gradient norm"
        return Origin(step, rank, tuple(hit) or ("gradient/norm",), what, "gradients")

    def _bad_gradients(self, history: History) -> NDArray[np.int64]:
        """Steps that were taken with gradients that are not finite."""
        if "gradient/nonfinite" in history:
            steps, values = history.series("gradient/nonfinite")
            bad = ~(values <= 0)
        elif "gradient/norm" in history:
            steps, values = history.series("gradient/norm")
            bad = ~np.isfinite(values)
        elif "gradient_nonfinite" in history:
            table = history.layers("gradient_nonfinite")
            steps, bad = table.steps, _any(table, axis=1)
        else:
            return np.empty(0, dtype=np.int64)
        if "optimizer/skipped" in history:
            bad = bad & ~np.isin(steps, rejected_steps(history))
        elif history.facts.get("loss_scaling") is not False:
            bad = in_a_row(bad, self.patience)
        return steps[bad]

    def _validation(self, history: History) -> Iterator[Finding]:
        """A validation loss that is not finite while training goes on well: the evaluation is broken, not the run."""
        for name in history.names():
            if not (name.startswith("validation/") and name.endswith("/loss")):
                continue
            steps, values = history.series(name)
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                step = int(steps[bad[0]])
                yield self.finding(
                    step=step,
                    detected_at=step,
                    where=(name,),
                    severity=Severity.WARNING,
                    message=f"{name} is not finite at step {step}, while nothing in training is",
                    evidence=[Evidence(name="evaluations that are not finite", value=len(bad), limit=0)],
                )

    def _came_through(self, history: History, step: int) -> bool:
        weights = _weights(history)
        if weights is not None or "train/loss" not in history:
            return False
        steps, values = history.series("train/loss")
        after = values[steps > step][-self.recovered :]
        return len(after) >= self.recovered and bool(np.isfinite(after).all())

    sick: ClassVar = (
        History.of(train_loss=[2.0, 1.5, float("nan"), float("nan")]),
        History.of(
            fc1__activation_nonfinite=[0, 0, 1], fc2__activation_nonfinite=[0, 0, 1], train_loss=[1, 1, float("inf")]
        ),
        History.of(gradient_norm=[1.0, 1.1, float("nan")], facts={"loss_scaling": False}),
        History.of(fc1__weight_nonfinite=[0, 0, 1]),
        # the scaler skips again and again, and one gradient gets past it
        History.of(gradient_nonfinite=[5, 0, 5], optimizer_skipped=[1, 0, 0], train_loss=[2.0, 2.0, 1.9]),
    )
    healthy: ClassVar = (
        History.of(train_loss=[2.0, 1e30, 1e-30, 0.0], gradient_norm=[1.0, 0.0, 1e20, 3.0]),
        # the loss scaler looks for its scale
        History.of(gradient_nonfinite=[5, 5, 0, 0], optimizer_skipped=[1, 1, 0, 0], train_loss=[2.0, 2.0, 2.0, 1.9]),
        # the same in a log that does not tell of a scaler
        History.of(gradient_norm=[float("inf"), 3.0, 2.0, 2.0], train_loss=[2.0, 2.0, 2.0, 1.9]),
        # a mask puts out -inf by design
        History.of(mask__activation_nonfinite=[1.0] * 20, fc__activation_nonfinite=[0.0] * 20, train_loss=[1.0] * 20),
    )


def _any(table: LayerTable, axis: int) -> NDArray[np.bool_]:
    """Which steps (axis 1) or layers (axis 0) of a table of flags are raised anywhere."""
    return np.asarray((table.values > 0).any(axis=axis))


def _weights(history: History) -> Origin | None:
    """The first step with a bad weight, and all weights that are hit then."""
    if "weight_nonfinite" not in history:
        return None
    table = history.layers("weight_nonfinite")
    rows = np.flatnonzero(_any(table, axis=1))
    if not len(rows):
        return None
    step = int(table.steps[rows[0]])
    hit = _flagged(history, "weight_nonfinite", step)
    return Origin(step, 4, tuple(hit), f"the weight {hit[0]}", "weights")


def _activations(history: History, *others: Origin | None) -> Origin | None:
    """The first bad output, in the order of execution, of the step at which loss or gradients went bad.

    Layers that put out infinities before that while all else was finite do so by design (masks), and so do all in a run
    whose loss or gradients are known and fine.
    """
    if "activation_nonfinite" not in history:
        return None
    table = history.layers("activation_nonfinite")
    known = [other.step for other in others if other]
    if not known and any(name in history for name in ("train/loss", "gradient/norm", "gradient/nonfinite")):
        return None
    earlier = table.steps < min(known, default=table.steps[0])
    by_design = np.asarray((table.values[earlier] > 0).any(axis=0))
    rows = np.flatnonzero((table.values[:, ~by_design] > 0).any(axis=1))
    if not len(rows):
        return None
    step = int(table.steps[rows[0]])
    hit = [
        layer for layer in _flagged(history, "activation_nonfinite", step) if not by_design[table.layers.index(layer)]
    ]
    return Origin(step, 0, tuple(hit), f"the output of {hit[0]}", "outputs")


def _flagged(history: History, statistic: str, step: int) -> list[str]:
    """Layers that a table flags at a step, in the order of execution."""
    if statistic not in history:
        return []
    table = history.layers(statistic)
    rows = np.flatnonzero(table.steps == step)
    flagged = np.asarray((table.values[rows] > 0).any(axis=0))
    hit = [table.layers[i] for i in np.flatnonzero(flagged)]
    return sorted(hit, key=lambda layer: history.architecture[layer].order if layer in history.architecture else -1)
