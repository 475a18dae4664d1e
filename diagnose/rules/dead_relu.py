"""TM301: the same units of a rectifier stay at zero, whatever the input."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import learnt
from trainmedic.diagnose.robust import gone, progress, share_done
from trainmedic.history import History, Layer

HALF = 0.5
"""Share of its first loss that a run which works has come down by."""
SIGMAS = 3.0
"""Standard errors by which a loss falls beyond doubt."""


class DeadRelu(Rule):
    """Units that have put out zero for every one of the last samples, over many batches.

    Why it is bad: such a unit gets no gradient, so it cannot recover; a layer of them passes nothing on.
    Usual causes: one step that was far too large; inputs that are not scaled; a large negative bias.
    Formula: share of a rectifier's units silent for each of the last `dead_after` samples (a setting, 1,000 by
    default) above `dead_units`, in `patience` measurements in a row, the newest among them. A run that has more than
    halved its loss, or falls by three standard errors at a pace that halves it by the end, works as it is, and is held
    to `dead_units_working`. From `dead_units_error` on the layer passes
    hardly anything: an error, but in a run that works. Measurements after the loss stopped being finite do not count.
    Remedies: normalize-inputs, reinitialize, find-learning-rate, lower-learning-rate, replace-activation.
    Known limits: silent where all inputs are the same sample. Layers that are sparse by design (top-k, routers) look
    dead to a short window.
    Source: Lu et al. 2019, arXiv:1903.06733; half of a layer's units is also the limit of SageMaker Debugger.
    """

    code: ClassVar[str] = "TM301"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.INITIALIZATION
    needs: ClassVar[tuple[str, ...]] = ("dead_units_lasting",)
    remedies: ClassVar[tuple[str, ...]] = (
        "normalize-inputs",
        "reinitialize",
        "find-learning-rate",
        "lower-learning-rate",
        "replace-activation",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "collapsed-output",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that an early step was too large and pushed the units below zero for every input. "
        "Do this: draw the layer anew, layer.reset_parameters(), and lower the learning rate or warm it up. "
        "Otherwise check (a) the scale of the inputs: x.mean(), x.std(); (b) the biases: layer.bias.min(); (c) "
        "nn.LeakyReLU or nn.GELU in place of nn.ReLU."
    )

    dead_units: float = Field(
        0.5, gt=0, le=1, description="share of a layer's units, 0 to 1 (SageMaker Debugger's limit)"
    )
    dead_units_working: float = Field(
        0.95,
        gt=0,
        le=1,
        description="the same in a run that halves its loss, 0 to 1 (wide layers, dropout and large rates leave "
        "8 in 10 idle in runs that train well)",
    )
    dead_units_error: float = Field(
        0.9, gt=0, le=1, description="share of a layer's units that makes it an error, 0 to 1 (one in ten is left)"
    )
    patience: int = Field(3, ge=1, description="measurements in a row (one large step can silence units for a while)")

    def check(self, history: History) -> Iterator[Finding]:
        if "input/constant_features" in history and history.series("input/constant_features").values[-1] == 1:
            return  # all samples are one sample
        table = history.layers("dead_units_lasting")
        works, end = _state(history)
        limit = self.dead_units_working if works else self.dead_units
        hit: list[tuple[float, str, int, int]] = []
        with np.errstate(invalid="ignore"):
            ever = np.flatnonzero((table.values > limit).any(axis=0))
        for layer in (table.layers[i] for i in ever):
            steps, shares = table.column(layer)
            steps, shares = steps[steps < end], shares[steps < end]
            if len(shares) < self.patience or not (shares[-self.patience :] > limit).all():
                continue
            alive = np.flatnonzero(shares <= limit)
            onset = int(alive[-1]) + 1 if len(alive) else 0
            since = _silent_since(history, layer, int(steps[onset]))
            hit.append((float(shares[-1]), layer, since, int(steps[onset + self.patience - 1])))
        if not hit:
            return
        hit.sort(reverse=True)
        worst, layer = hit[0][0], hit[0][1]
        others = f" (and {len(hit) - 1} more rectifiers)" if len(hit) > 1 else ""
        samples = history.facts.get("dead_after", 1_000)
        yield self.finding(
            step=min(step for _, _, step, _ in hit),
            detected_at=min(step for _, _, _, step in hit),
            where=[layer for _, layer, _, _ in hit],
            severity=Severity.ERROR if worst >= self.dead_units_error and not works else Severity.WARNING,
            message=f"{100 * worst:.0f} % of the units of {layer}{others} "
            f"were zero for each of the last {samples} samples",
            evidence=[
                Evidence(name=f"silent units of {name}", value=100 * share, limit=100 * limit, unit="%")
                for share, name, _, _ in hit[:5]
            ],
        )

    sick: ClassVar = (
        History.of(relu1__dead_units_lasting=[0.0] * 5 + [0.95] * 20, train_loss=[2.3] * 25),
        History.of(relu1__dead_units_lasting=[0.6] * 20),
    )
    healthy: ClassVar = (
        History.of(relu1__dead_units_lasting=[0.2] * 20),
        # sparse: most outputs are zero, but other units in each batch
        History.of(relu1__activation_zeros=[0.95] * 20, relu1__dead_units_lasting=[0.0] * 20),
        # a wide layer with idle units, in a run that works
        History.of(relu1__dead_units_lasting=[0.6] * 40, train_loss=[2.3] * 10 + [0.4] * 30),
        # silent for a moment after a large step, then back
        History.of(relu1__dead_units_lasting=[0.0] * 5 + [0.7] * 2 + [0.1] * 10),
        History.of(layers=[Layer("act", "ReLU", 0, activation="relu")], act__dead_units_lasting=[0.0, 0.6]),
    )


def _silent_since(history: History, layer: str, step: int) -> int:
    """The step at which the silence began that had lasted for long enough at ``step``."""
    if "dead_samples" not in history or layer not in history.layers("dead_samples").layers:
        return step
    steps, watched = history.layers("dead_samples").column(layer)
    before = steps <= step
    steps, watched = steps[before], watched[before]
    if not len(steps):
        return step
    began = int(np.searchsorted(watched, watched[-1] - history.facts.get("dead_after", 1_000), side="right"))
    return int(steps[min(began, len(steps) - 1)])


def _state(history: History) -> tuple[bool, float]:
    """Whether the run works, and the first step at which its loss is not finite."""
    if "train/loss" not in history:
        return False, float("inf")
    steps, values = history.series("train/loss")
    bad = steps[~np.isfinite(values)]
    return _works(history), float(bad[0]) if len(bad) else float("inf")


def _works(history: History) -> bool:
    """Whether the run has halved its loss, learnt half of its task, or falls beyond doubt, at a pace to halve it.

    By the end, or where that is not known in as much time again. The pace is that of the newer half so far.
    """
    if learnt(history) > HALF:  # by the accuracy, where the loss does not show it
        return True
    steps, done = progress(history)
    now, curve = float(done[-1]), history.series("train/loss").values
    if now > HALF:
        return True
    fell, doubt = gone(curve) if np.isfinite(curve).all() else (0.0, 0.0)
    if not fell > SIGMAS * doubt:
        return False
    newer = now - float(done[len(done) // 2])
    share = share_done(history, int(steps[-1])) or 0.5
    return now + newer * (1 - share) / (0.5 * share) > HALF
