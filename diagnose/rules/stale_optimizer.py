"""TM605: the optimizer does not hold the parameters that the model trains with."""

from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import learnt, untrained
from trainmedic.history import History, Layer, LayerTable


def _reader(spread: float, norms: list[float], orphans: list[str], moves: float = 0.0) -> History:
    """An example: a reader (64 units, drawn with this standard deviation) under a head that is trained."""
    columns: dict[str, Any] = {
        "reader.weight__gradient_norm": norms,
        "head.weight__gradient_norm": [0.1] * len(norms),
        "head.weight__weight_std": [0.01] * len(norms),
        "reader.weight__weight_std": [spread * (1 + moves * i) for i in range(len(norms))],
    }
    layers = [
        Layer("reader", "Linear", 0, (64,)),
        Layer("reader.weight", "parameter", 0, (64, 64)),
        Layer("head", "Linear", 1, (10,)),
        Layer("head.weight", "parameter", 1, (10, 64)),
    ]
    return History.of(layers=layers, facts={"not_in_optimizer": orphans, "optimizers": 1}, **columns)


class StaleOptimizer(Rule):
    """Parameters get gradients, but no optimizer holds them, and they stay as they were drawn.

    Why it is bad: these layers never learn; what follows them learns from random features.
    Usual causes: the optimizer was made before a layer was replaced or added, or before the model was loaded, copied or
    rebuilt; only some of the modules were handed to it.
    Formula: a trainable parameter is in no optimizer, had a gradient in `patience` measurements, and the standard
    deviation of its elements has not moved since the start (somebody else's optimizer would move it, in `spreads`
    readings); and either the optimizer holds parameters of the same shapes that are not the model's, or the last matrix
    of the model is among them and others are not (nobody trains a body under a head that stays as it was drawn), or
    these matrices are still as torch, He or Glorot draw them, within 3.5 standard errors (trained weights are not:
    whoever trains only the head of a trained model may leave the rest out on purpose). An error, but a warning where
    `works` of the task has been learnt all the same.
    Remedies: adopt-parameters.
    Known limits: needs a live run, and parameters that were there when watching began. Random features that stay random
    on purpose look the same unless requires_grad is off.
    Source: torch's own documentation of optimizers (parameters are those that were given at construction); standard
    error of a standard deviation: sqrt((kurtosis - 1) / 4n).
    """

    code: ClassVar[str] = "TM605"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.WIRING
    needs: ClassVar[tuple[str, ...]] = ("gradient_norm",)
    remedies: ClassVar[tuple[str, ...]] = ("adopt-parameters",)
    explains: ClassVar[tuple[str, ...]] = (
        "exploding-gradient",
        "frozen-layer",
        "learning-rate-too-low",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
        "vanishing-gradient",
    )
    advice: ClassVar[str] = (
        "Usually means that the optimizer was made before the model was finished. "
        "Do this: make the optimizer after the last change of the model, or call optimizer.add_param_group. "
        "Otherwise check (a) which are missing: held = {id(p) for g in optimizer.param_groups for p in g['params']}; "
        "[n for n, p in model.named_parameters() if id(p) not in held]; (b) that no line after it puts a new module in "
        "place: model.fc = ...; (c) if they are meant to stay as they are, say so: layer.requires_grad_(False)."
    )

    patience: int = Field(10, ge=1, description="measurements with a gradient (one pass of another loss proves little)")
    spreads: int = Field(2, ge=2, description="readings of the weights' spread that must agree (two can show a change)")
    works: float = Field(
        0.5, gt=0, le=1, description="share of the task that is learnt, from which on it is a warning (half)"
    )

    def unmet(self, history: History) -> str | None:
        """Needs to know what the optimizers hold."""
        known = "not_in_optimizer" in history.facts
        return super().unmet(history) or (None if known else "what the optimizer holds is not known")

    def check(self, history: History) -> Iterator[Finding]:
        table = history.layers("gradient_norm")
        orphans = [name for name in history.facts["not_in_optimizer"] if name in table.layers]
        hit = {name: seen for name in orphans if (seen := self._reached(table, name)) is not None}
        by_mistake = _replaced(history, hit) or untrained(history, hit) or _on_top(history, hit)
        if not hit or not self._stay(history, list(hit)) or not by_mistake:
            return
        elements = sum(int(np.prod(history.architecture[n].shape)) for n in hit if n in history.architecture)
        share = 100 * elements / max(int(history.facts.get("trainable", elements)), 1)
        largest = sorted(hit, key=lambda n: -np.prod(history.architecture[n].shape) if n in history.architecture else 0)
        works = learnt(history) > self.works
        yield self.finding(
            step=min(first for first, _ in hit.values()),
            detected_at=max(self._since(history, list(hit)), min(last for _, last in hit.values())),
            where=largest,
            severity=Severity.WARNING if works else Severity.ERROR,
            message=f"{len(hit)} parameters ({', '.join(largest[:3])}{', ...' if len(hit) > 3 else ''}) get gradients, "
            "but no optimizer holds them",
            evidence=[
                Evidence(name="parameters with a gradient and no optimizer", value=len(hit), limit=0),
                Evidence(name="share of the trainable elements", value=min(share, 100.0), limit=0, unit="%"),
            ],
        )

    def _reached(self, table: LayerTable, name: str) -> tuple[int, int] | None:
        """The first step with a gradient, and the one by which there were enough."""
        steps, norms = table.column(name)
        steps = steps[np.isfinite(norms) & (norms > 0)]
        return (int(steps[0]), int(steps[self.patience - 1])) if len(steps) >= self.patience else None

    def _stay(self, history: History, names: list[str]) -> bool:
        """Whether the spread of all these weights has been read often enough, and never changed."""
        if "weight_std" not in history:
            return False
        table = history.layers("weight_std")
        if not any(name in table.layers for name in names):
            return False
        for name in (name for name in names if name in table.layers):
            spread = table.column(name).values
            if len(spread) < self.spreads or np.ptp(spread) > 1e-6 * np.abs(spread).max():
                return False
        return True

    def _since(self, history: History, names: list[str]) -> int:
        """The step by which the spreads had been read often enough."""
        table = history.layers("weight_std")
        return max(int(table.column(name).steps[self.spreads - 1]) for name in names if name in table.layers)

    sick: ClassVar = (
        _reader((3 * 64) ** -0.5, [0.1 * (i + 1) for i in range(30)], ["reader.weight"]),
        _reader((3 * 64) ** -0.5, [0.1] * 30, ["head.weight"]),  # a head that was put in place later
    )
    healthy: ClassVar = (
        _reader((3 * 64) ** -0.5, [0.1] * 30, []),  # held
        _reader(0.11, [0.1] * 30, ["reader.weight"]),  # a trained reader, left out on purpose
        _reader((3 * 64) ** -0.5, [float("nan")] * 30, ["reader.weight"]),  # unused, or frozen: no gradient
        _reader((3 * 64) ** -0.5, [0.1] * 30, ["reader.weight"], moves=1e-3),  # an optimizer that nobody told us of
    )


def _replaced(history: History, orphans: Collection[str]) -> bool:
    """Whether the optimizer holds other parameters of all these shapes: those of the model that this is a copy of."""
    held = {tuple(shape) for shape in history.facts.get("not_in_model", ())}
    shapes = [history.architecture[name].shape for name in orphans if name in history.architecture]
    return held.issuperset(shapes) and any(len(shape) > 1 for shape in shapes)


def _on_top(history: History, orphans: Collection[str]) -> bool:
    """Whether the last weight matrix is left out, over others that train: whoever leaves out on purpose keeps a body.

    ``orphans``: the names that no optimizer holds.
    """
    ran = [
        layer
        for layer in history.architecture.values()
        if layer.kind == "parameter" and layer.trainable and len(layer.shape) > 1 and layer.order >= 0
    ]
    last = max(ran, key=lambda layer: layer.order, default=None)
    return last is not None and last.name in orphans and any(layer.name not in orphans for layer in ran)
