"""TM306: batch norm in the wrong mode, on too few samples, or with running statistics that stay behind."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import streak
from trainmedic.diagnose.learnt import learnt
from trainmedic.diagnose.robust import Array, median
from trainmedic.history import History, Layer


def _norm(
    mode: list[float], values: float = 64.0, *, movement: float = 0.01, facts: dict[str, Any] | None = None, **more: Any
) -> History:
    """An example: a convolution and its batch norm, in these modes, with so many values per channel."""
    count = len(mode)
    columns: dict[str, Any] = {
        "bn__batchnorm_training": mode,
        "bn__batchnorm_values": [values] * count,
        "bn__batchnorm_movement": [movement] * count,
        "conv__activation_mean": [0.5] * count,
        "conv__activation_std": [1.0] * count,
        "bn.weight__weight_std": [0.001] * count,
        "bn.weight__weight_norm": [4.0] * count,
    }
    layers = [
        Layer("conv", "Conv2d", 0, (16, 8, 8)),
        Layer("bn", "BatchNorm2d", 1, (16, 8, 8)),
        Layer("bn.weight", "parameter", 1, (16,)),
    ]
    history = History.of(layers=layers, facts=facts, **columns, train_loss=more.get("train_loss", [2.3] * count))
    if "validation_loss" in more:
        known = more["validation_loss"]
        history.add_series("validation/loss", range(19, 19 + 10 * len(known), 10), known)
    return history


class _Fault(NamedTuple):
    """What is misused: where, since and by which step, in a sentence, with evidence."""

    layers: list[str]
    step: int
    detected: int
    message: str
    evidence: Evidence
    severe: bool


class BatchnormMisuse(Rule):
    """Batch norms train in evaluation mode, on a handful of values, or keep running statistics that never arrive.

    Why it is bad: in evaluation mode they normalise by what they were given, not by what comes in; of two or three
    values a mean says next to nothing; and where running statistics stay behind, evaluation is of another model than
    the one that was trained.
    Usual causes: model.eval() for the validation, and no model.train() after it; a batch size of 1 to 3; momentum taken
    for its complement (0.99 or 0.9 elsewhere are 0.01 and 0.1 in torch), or set to next to nothing.
    Formula: (1) All batch norms with weights that train are in evaluation mode in the last `patience` measurements, and
    either trained in training mode before, and the model itself was left in evaluation mode, or they are fresh (weights
    at 1, within `fresh`: nobody has trained them). (2) Values per channel, median of the run, below `values`. (3) In
    training mode the way that the running mean has gone since the start, in standard deviations, is below `arrived` of
    the distance to the mean that the layer before puts out, while the newer half of the validation losses is more than
    `gap` times the training loss of their time. (4) In training mode it has not moved at all in `patience`
    measurements. An error in a run that has learnt less than `works` of its task, or of (3).
    Remedies: set-train-mode, enlarge-batch.
    Known limits: needs a live run. Batch norms frozen on purpose (module.eval() in a model that trains) are left alone
    unless they are fresh. The distance is told by the mean over all channels, which is smaller than theirs.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167; Wu and He 2018, arXiv:1803.08494 (error grows below 16 samples,
    steeply at 2). The relative error of a standard deviation of n values is 1 / sqrt(2 (n - 1)): a half for 3.
    """

    code: ClassVar[str] = "TM306"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.WIRING
    needs: ClassVar[tuple[str, ...]] = ("batchnorm_training",)
    remedies: ClassVar[tuple[str, ...]] = ("set-train-mode", "enlarge-batch")
    explains: ClassVar[tuple[str, ...]] = (
        "noisy-gradient",
        "not-learning",
        "overfitting",
        "plateau",
        "slow-convergence",
        "underfitting",
        "validation-mismatch",
    )
    advice: ClassVar[str] = (
        "Usually means that model.eval() was called for the validation and model.train() was not called after it. "
        "Do this: call model.train() at the start of every epoch. Otherwise check (a) the batch size: below 8, use "
        "nn.GroupNorm or nn.LayerNorm; (b) the momentum, 0.1 in torch: [m.momentum for m in model.modules() if "
        "hasattr(m, 'momentum')]; (c) that training and evaluation mode agree: compare model(x) after model.train() "
        "and after model.eval() on one large batch."
    )

    patience: int = Field(10, ge=1, description="measurements in a row (an evaluation with gradients may pass)")
    fresh: float = Field(
        0.03, gt=0, lt=1, description="deviation of a batch norm's weights from 1 at the start (one step moves a rate)"
    )
    values: float = Field(4.0, ge=1, description="values per channel, below which a mean says nothing (half is error)")
    arrived: float = Field(
        0.5, gt=0, lt=1, description="share of the way that a running mean must have gone (below half it is mostly 0)"
    )
    gap: float = Field(2.0, gt=1, description="validation loss over training loss, factor (twice is no noise)")
    works: float = Field(
        0.5, gt=0, le=1, description="share of the task that is learnt, from which on it is a warning (half)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        table = history.layers("batchnorm_training")
        columns = [i for i, name in enumerate(table.layers) if _trains(history, name)]
        if not columns:
            return
        names = [table.layers[i] for i in columns]
        modes = table.values[:, columns].astype(np.float64)
        faults = (self._evaluating(history, names, table.steps, modes), self._few(history, names))
        fault = next(filter(None, (*faults, self._behind(history, names, modes), self._still(history, names))), None)
        if fault is None:
            return
        works = learnt(history) > self.works
        yield self.finding(
            step=fault.step,
            detected_at=fault.detected,
            where=fault.layers,
            severity=Severity.ERROR if fault.severe or not works else Severity.WARNING,
            message=fault.message,
            evidence=[fault.evidence],
        )

    def _evaluating(self, history: History, names: list[str], steps: NDArray[np.int64], modes: Array) -> _Fault | None:
        """All of them in evaluation mode, by mistake."""
        seen = np.isfinite(modes).any(axis=1)
        steps, modes = steps[seen], modes[seen]
        evaluating = (np.nan_to_num(modes) == 0).all(axis=1)
        trained = np.flatnonzero(~evaluating)
        since = int(trained[-1]) + 1 if len(trained) else 0
        if len(steps) - since < self.patience:
            return None
        left = len(trained) > 0 and bool(history.facts.get("trains_in_eval_mode"))
        if not left and not (len(trained) == 0 and self._fresh(history, names)):
            return None
        how = "again, and were trained in training mode before" if len(trained) else "from the start, though fresh"
        return _Fault(
            names,
            int(steps[since]),
            int(steps[since + self.patience - 1]),
            f"batch norms train in evaluation mode {how}",
            Evidence(name="measurements in evaluation mode", value=len(steps) - since, limit=self.patience),
            severe=False,
        )

    def _fresh(self, history: History, names: list[str]) -> bool:
        """Whether the weights of all of them began at 1."""
        if "weight_std" not in history or "weight_norm" not in history:
            return False
        spreads, norms = history.layers("weight_std"), history.layers("weight_norm")
        for name in (f"{name}.weight" for name in names):
            layer = history.architecture.get(name)
            if layer is None or name not in spreads.layers or name not in norms.layers or not np.prod(layer.shape) > 0:
                return False
            spread, norm = spreads.column(name).values[:1], norms.column(name).values[:1]
            size = norm / float(np.prod(layer.shape)) ** 0.5
            if not len(spread) or not len(norm) or not (spread < self.fresh).all():
                return False
            if not (np.abs(size - 1) < self.fresh).all():
                return False
        return True

    def _few(self, history: History, names: list[str]) -> _Fault | None:
        """Batches of too few values."""
        if "batchnorm_values" not in history:
            return None
        table = history.layers("batchnorm_values")
        few = []
        for name in (name for name in names if name in table.layers):
            steps, values = table.column(name)
            if len(values) >= self.patience and median(values) < self.values:
                few.append((median(values), name, int(steps[0]), int(steps[self.patience - 1])))
        if not few:
            return None
        least = min(few)[0]
        return _Fault(
            [name for _, name, _, _ in sorted(few)],
            min(step for _, _, step, _ in few),
            min(step for _, _, _, step in few),
            f"batch norms take means and variances of {least:g} values per channel",
            Evidence(name="values per channel", value=least, limit=self.values),
            severe=False,
        )

    def _still(self, history: History, names: list[str]) -> _Fault | None:
        """Running statistics that have not moved at all, in training mode: they are not those of this data."""
        if "batchnorm_movement" not in history:
            return None
        table, modes = history.layers("batchnorm_movement"), history.layers("batchnorm_training")
        still = []
        for name in (name for name in names if name in table.layers):
            steps, movement = table.column(name)
            trained = np.isin(steps, modes.steps[modes.values[:, modes.layers.index(name)] == 1])
            steps, movement = steps[trained], movement[trained]
            if len(movement) >= self.patience and not movement.any():
                still.append((name, int(steps[0]), int(steps[self.patience - 1])))
        if not still:
            return None
        return _Fault(
            [name for name, _, _ in still],
            min(step for _, step, _ in still),
            min(step for _, _, step in still),
            f"the running mean of {still[0][0]} has not moved since the start, and evaluation normalises by it",
            Evidence(name="measurements without a movement", value=len(steps), limit=self.patience),
            severe=False,
        )

    def _behind(self, history: History, names: list[str], modes: Array) -> _Fault | None:
        """Running statistics that do not arrive, where validation shows it."""
        needed = ("batchnorm_movement", "activation_mean", "validation/loss", "train/loss")
        if any(name not in history for name in needed) or not (np.nan_to_num(modes, nan=1.0) == 1).all():
            return None
        train = history.series("train/loss")
        steps, losses = history.series("validation/loss")
        moved, before = history.layers("batchnorm_movement"), history.layers("activation_mean")
        behind: list[tuple[float, str, int, int]] = []
        for name, source in ((name, _source(history, name)) for name in names):
            if name not in moved.layers or source not in before.layers:
                continue
            at, movement = moved.column(name)
            means = np.abs(before.column(str(source)).values)
            half = len(means) // 2
            far = min(median(means[:half]), median(means[half:]))  # where it has been all the time
            if len(at) < self.patience or not np.isfinite(movement).all() or not far > 0:
                continue
            gone = float(movement.sum())
            share = gone / far if gone < 1 else 1.0  # a mean that has gone a whole deviation is not left behind
            reached = (
                at[np.searchsorted(at, at[0] + 2 * self.patience)] if at[-1] >= at[0] + 2 * self.patience else None
            )
            if share < self.arrived and reached is not None:
                behind.append((share, name, int(at[0]), int(reached)))
        if not behind:
            return None
        since = max(step for _, _, _, step in behind)
        late = np.flatnonzero((steps >= since) & np.isfinite(losses))
        seen = self._apart(train.steps, train.values, steps[late], losses[late])
        if seen is None:
            return None
        share = min(behind)[0]
        return _Fault(
            [name for _, name, _, _ in sorted(behind)],
            min(step for _, _, step, _ in behind),
            int(steps[late[seen]]),
            f"the running mean of {min(behind)[1]} has gone {100 * share:.2g} % of its way, and validation, which uses "
            "it, is far worse than training",
            Evidence(name="way gone by a running mean", value=100 * share, limit=100 * self.arrived, unit="%"),
            severe=True,
        )

    def _apart(self, steps: NDArray[np.int64], losses: Array, at: NDArray[np.int64], validated: Array) -> int | None:
        """The evaluation since which the newer half of them so far lies far above the training loss around it."""
        ends = np.searchsorted(steps, at, side="right")
        around = np.array([median(losses[max(0, end - self.patience) : end]) for end in ends])
        far = validated > self.gap * around
        return streak(np.array([far[count // 2 : count].all() for count in range(1, len(far) + 1)], dtype=bool))

    sick: ClassVar = (
        _norm([1.0] * 20 + [0.0] * 30, facts={"trains_in_eval_mode": True}),
        _norm([0.0] * 30),
        _norm([1.0] * 40, values=2.0),
        _norm([1.0] * 40, movement=0.0),
        _norm([1.0] * 60, movement=1e-4, train_loss=[0.1] * 60, validation_loss=[3.0, 2.0, 2.5, 2.0]),
    )
    healthy: ClassVar = (
        _norm([1.0] * 40),
        _norm([1.0] * 20 + [0.0] * 30),  # the norms alone were frozen, on purpose
        _norm([1.0] * 40 + [0.0] * 3, facts={"trains_in_eval_mode": True}),  # an evaluation with gradients
        _norm([1.0] * 60, movement=1e-4, train_loss=[0.1] * 60, validation_loss=[0.2, 0.12, 0.1, 0.1]),
    )


def _trains(history: History, name: str) -> bool:
    """Whether a batch norm has weights, and they train."""
    weight = history.architecture.get(f"{name}.weight")
    return weight is not None and weight.trainable and weight.kind == "parameter"


def _source(history: History, name: str) -> str | None:
    """The module that ran right before."""
    own = history.architecture[name].order
    return next(
        (layer.name for layer in history.architecture.values() if layer.kind != "parameter" and layer.order == own - 1),
        None,
    )
