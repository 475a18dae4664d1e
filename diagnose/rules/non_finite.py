"""TM101: NaN or infinity in the loss, the gradients, the activations or the weights."""

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import in_a_row
from trainmedic.history import History


class Origin(NamedTuple):
    """Where something that is not finite was first seen."""

    step: int
    rank: int  # of two sources at one step the lower rank is nearer to the origin
    where: tuple[str, ...]
    what: str


class NonFinite(Rule):
    """A NaN or an infinity in the loss, the gradients, the activations or the weights.

    Why it is bad: one step with a gradient that is not finite makes every weight NaN, and the run can only be restarted.
    Usual causes: a learning rate or an initialisation that is too large; log or division of zero, a root at zero; half
    precision without a loss scale; a broken sample in the data.
    Formula: the first step at which a value is not finite. Infinite gradients that the loss scaler skipped do not count;
    where it is not known whether a scaler was used, `patience` of them in a row do.
    Remedies: skip-step, rewind, lower-learning-rate.
    Known limits: where the first bad step was not measured in full, the layer in which it began is not located.
    Source: IEEE 754 arithmetic; the order of layers from the run's own forward pass.
    """

    code: ClassVar[str] = "TM101"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = (
        "train/loss|gradient/norm|gradient/nonfinite|weight_nonfinite|activation_nonfinite|validation/loss",
    )
    remedies: ClassVar[tuple[str, ...]] = ("skip-step", "rewind", "lower-learning-rate")
    advice: ClassVar[str] = (
        "Usually means that a step was too large, or a log, root or division met a zero. "
        "Do this: go back to a checkpoint before this step, lower the learning rate, and add eps inside log, sqrt and "
        "divisions. Otherwise check (a) the batch of this step: torch.isfinite(x).all(); (b) the operation: "
        "torch.autograd.set_detect_anomaly(True); (c) half precision: does torch.amp.GradScaler scale the loss?"
    )

    patience: int = Field(
        3, ge=1, description="steps in a row with infinite gradients that count where a loss scale may be in use"
    )
    recovered: int = Field(10, ge=1, description="finite losses in a row after which the run came through unharmed")

    def check(self, history: History) -> Iterator[Finding]:
        origins = [o for o in (self._loss(history), self._gradients(history), *self._tables(history)) if o]
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
            message=f"{first.what} not finite at step {first.step}"
            + ("" if harmed else "; the run came through unharmed"),
            evidence=[
                Evidence(name=f"steps with {o.what.split(' of ')[0]} not finite, first", value=o.step, unit="step")
                for o in sorted(origins)
            ],
        )

    def _loss(self, history: History) -> Origin | None:
        if "train/loss" not in history:
            return None
        steps, values = history.series("train/loss")
        flags = ~np.isfinite(values)
        if flags.any() and "optimizer/skipped" in history:  # a step that was rejected did no harm, unless all are
            flags &= ~np.isin(steps, _rejected(history)) | in_a_row(flags, self.recovered)
        bad = np.flatnonzero(flags)
        return Origin(int(steps[bad[0]]), 2, ("train/loss",), "the training loss is") if len(bad) else None

    def _gradients(self, history: History) -> Origin | None:
        """The first bad gradient; backward runs from the last layer to the first, so the last bad one is the origin."""
        name = next((n for n in ("gradient/nonfinite", "gradient/norm") if n in history), None)
        if name is None:
            return None
        steps, values = history.series(name)
        bad = values > 0 if name == "gradient/nonfinite" else ~np.isfinite(values)
        if "optimizer/skipped" in history:
            bad = bad & ~np.isin(steps, _rejected(history))
        elif history.facts.get("loss_scaling") is not False:
            bad = in_a_row(bad, self.patience)
        at = np.flatnonzero(bad)
        if not len(at):
            return None
        step = int(steps[at[0]])
        hit = _flagged(history, "gradient_nonfinite", step)
        loss_bad = self._loss(history)
        if loss_bad is not None and loss_bad.step <= step:
            return Origin(step, 3, tuple(hit[::-1]) or ("gradient/norm",), "gradients are")
        what = f"the gradient of {hit[-1]} is" if hit else "gradients are"
        return Origin(step, 1, tuple(hit[::-1]) or ("gradient/norm",), what)

    def _tables(self, history: History) -> Iterator[Origin]:
        """Activations: the first bad layer in the order of execution is the origin. Weights: all that are hit."""
        for statistic, rank, what in (("activation_nonfinite", 0, "the output"), ("weight_nonfinite", 4, "the weight")):
            if statistic not in history:
                continue
            table = history.layers(statistic)
            rows = np.flatnonzero((table.values > 0).any(axis=1))
            if len(rows):
                step = int(table.steps[rows[0]])
                hit = _flagged(history, statistic, step)
                yield Origin(step, rank, tuple(hit), f"{what} of {hit[0]} is")

    def _validation(self, history: History) -> Iterator[Finding]:
        """A validation loss that is not finite while training goes on well: the evaluation is broken, not the run."""
        for name in history.names():
            if not (name.startswith("validation/") and name.endswith("loss")):
                continue
            steps, values = history.series(name)
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                step = int(steps[bad[0]])
                evidence = [Evidence(name="evaluations that are not finite", value=len(bad), limit=0)]
                yield self.finding(
                    step=step,
                    detected_at=step,
                    where=(name,),
                    severity=Severity.WARNING,
                    message=f"{name} is not finite at step {step} while the training loss is",
                    evidence=evidence,
                )

    def _came_through(self, history: History, step: int) -> bool:
        if "weight_nonfinite" in history:
            weights = history.layers("weight_nonfinite")
            if (weights.values[weights.steps >= step] > 0).any():
                return False
        if "train/loss" not in history:
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
    )
    healthy: ClassVar = (
        History.of(train_loss=[2.0, 1e30, 1e-30, 0.0], gradient_norm=[1.0, 0.0, 1e20, 3.0]),
        # the loss scaler looks for its scale
        History.of(gradient_nonfinite=[5, 5, 0, 0], optimizer_skipped=[1, 1, 0, 0], train_loss=[2.0, 2.0, 2.0, 1.9]),
        # the same in a log that does not tell of a scaler
        History.of(gradient_norm=[float("inf"), 3.0, 2.0, 2.0], train_loss=[2.0, 2.0, 2.0, 1.9]),
    )


def _rejected(history: History) -> NDArray[np.int64]:
    """Steps that the loss scaler or the medic did not take."""
    skips = history.series("optimizer/skipped")
    return skips.steps[skips.values > 0]


def _flagged(history: History, statistic: str, step: int) -> list[str]:
    """Layers that a table flags at a step, in the order of execution."""
    if statistic not in history:
        return []
    table = history.layers(statistic)
    rows = np.flatnonzero(table.steps == step)
    if not len(rows):
        return []
    hit = [layer for layer, value in zip(table.layers, table.values[rows[0]], strict=True) if value > 0]
    return sorted(hit, key=lambda layer: history.architecture[layer].order if layer in history.architecture else -1)
