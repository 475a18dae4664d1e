"""TM203: a parameter that should train gets no gradient."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import learnt, untrained
from trainmedic.diagnose.memo import remembered
from trainmedic.diagnose.robust import progress, rate_at, rejected_steps
from trainmedic.history import History, Layer, LayerTable

NAN = float("nan")


def _cut(
    dead: int,
    spread: float = (3 * 64) ** -0.5,
    *,
    gradient: float = NAN,
    trainable: bool = True,
    widths: int = 64,
    thawed: int = 0,
) -> History:
    """An example: four layers, the first ``dead`` of which get no gradient, or this one, and train since ``thawed``."""
    columns: dict[str, Any] = {}
    layers: list[Layer] = []
    for i in range(4):
        shape = (64, 64) if i != 1 else (widths, 64)
        columns[f"fc{i}.weight__gradient_norm"] = [gradient if i < dead else 0.1] * 40
        columns[f"fc{i}.weight__weight_norm"] = [NAN if i < dead and step < thawed else 4.6 for step in range(40)]
        columns[f"fc{i}.weight__weight_std"] = [spread if i < dead else (3 * 64) ** -0.5] * 40
        layers += [Layer(f"fc{i}", "Linear", i, shape[:1])]
        layers += [Layer(f"fc{i}.weight", "parameter", i, shape, trainable or i >= dead)]
    return History.of(layers=layers, train_loss=[2.3] * 40, facts={"optimizers": 1}, **columns)


class FrozenLayer(Rule):
    """Layers should train, but no gradient has ever reached them, or no step has ever moved them.

    Why it is bad: they stay random, so that everything above them learns from random features.
    Usual causes: .detach(), .data, .numpy() or torch.no_grad() on the way; a step whose derivative is zero everywhere
    (round, sign, argmax, comparisons); a parameter group with a rate of zero; zero_grad() between backward and step.
    Formula: (first layers) all parameters of a module are trainable and in the optimizer, and none has had a gradient
    other than zero in any of at least `patience` measurements since they are; all modules that ran before the first one
    with a gradient (or never ran with gradients switched on, and stand before it) are such, its inputs are as many as
    their outputs or a multiple; and their matrices are still as torch, He or Glorot draw them, within 3.5 standard
    errors (a trained part is often left alone on purpose). Exact zeros count only where no unit is dead or saturated
    and the loss has not come down by `done`. The same of modules in a row that ran beside others, where a later one
    takes as many inputs as both put out together. Or nothing moves at all in `patience` measurements or more, though
    gradients arrive at a rate above zero. Or modules get gradients and are in the optimizer, which moves others, but
    in `patience` measurements or more not one has moved them, and they are still as drawn. An error, but a warning
    where `works` of the task has been learnt all the same.
    Remedies: unfreeze, mend-graph.
    Known limits: needs a live run. A cut further up, within one layer, or before a sum or a product is taken for a head
    that nobody uses. Layers
    whose updates are rounded away look like ones whose group has a rate of zero.
    Source: torch's own documentation of autograd (no_grad, detach); standard error of a standard deviation:
    sqrt((kurtosis - 1) / 4n).
    """

    code: ClassVar[str] = "TM203"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.WIRING
    needs: ClassVar[tuple[str, ...]] = ("gradient_norm",)
    remedies: ClassVar[tuple[str, ...]] = ("unfreeze", "mend-graph")
    explains: ClassVar[tuple[str, ...]] = (
        "learning-rate-too-low",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
        "vanishing-gradient",
    )
    advice: ClassVar[str] = (
        "Usually means that the way back is cut: .detach(), .data, .numpy() or torch.no_grad() in forward. "
        "Do this: take the cut out: it lies before the first layer that has a gradient, whose input has no grad_fn. "
        "Otherwise check (a) for functions without a derivative: round, sign, argmax, > and <; (b) that the loss "
        "uses the model's own output, not a copy: loss.grad_fn; (c) if the layers are meant to stay as they are, "
        "say so: layer.requires_grad_(False)."
    )

    still_advice: ClassVar[str] = (
        "Usually means a parameter group whose learning rate is zero. "
        "Do this: give it one, optimizer.param_groups[i]['lr'] = 1e-3. Otherwise check (a) "
        "[(g['lr'], len(g['params'])) for g in optimizer.param_groups]; (b) that no scheduler multiplies the group's "
        "rate by zero: scheduler.get_last_lr(); (c) if the layers are meant to stay as they are, say so: "
        "layer.requires_grad_(False)."
    )

    idle_advice: ClassVar[str] = (
        "Usually means that zero_grad() is called between backward() and step(): the gradients are gone by then. "
        "Do this: keep the order optimizer.zero_grad(), loss.backward(), optimizer.step(). Otherwise check (a) right "
        "before step(): [p.grad for g in optimizer.param_groups for p in g['params']], none of them None or zero; "
        "(b) a limit of clip_grad_norm_ that leaves nothing; (c) a rate that is rounded away: below 1e-8 of a weight."
    )

    patience: int = Field(12, ge=1, description="measurements without any gradient (a phase of a warm-up may pass)")
    done: float = Field(
        0.9, gt=0, le=1, description="share of its first level, after which gradients may well be zero (converged)"
    )
    works: float = Field(
        0.5, gt=0, le=1, description="share of the task that is learnt, from which on it is a warning (half)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        table = history.layers("gradient_norm")
        if len(table.steps) < self.patience:
            return
        zeros_count = self._zeros_count(history)
        for modules in _models(history):
            dead, first = _prefix(history, modules, zeros_count)
            if first is None or not dead or not _feeds(history, modules[dead[-1]], modules[first]):
                dead, first = _branch(history, modules, zeros_count)
            weights = [name for module in dead for name in modules[module]]
            if first is None or not untrained(history, weights) or self._thawed(history, weights):
                continue
            works = learnt(history) > self.works
            others = f" and {len(dead) - 1} modules before it" if len(dead) > 1 else ""
            yield self.finding(
                step=table.steps[0],
                detected_at=table.steps[self.patience - 1],
                where=dead[::-1],
                severity=Severity.WARNING if works else Severity.ERROR,
                message=f"no gradient has ever reached {dead[-1]}{others}, though {first} above it gets one",
                evidence=[
                    Evidence(name="modules without a gradient", value=len(dead), limit=0),
                    Evidence(name="measurements", value=len(table.steps), limit=self.patience),
                ],
            )
            return
        yield from self._unmoved(history)

    def _unmoved(self, history: History) -> Iterator[Finding]:
        """Layers that get gradients, and that the optimizer holds, but never moves: a group at a rate of zero."""
        if "update_ratio" not in history:
            return
        gradients, updates = history.layers("gradient_norm"), history.layers("update_ratio")
        measured, moved = (~np.isnan(updates.values)).sum(axis=0), (np.nan_to_num(updates.values) > 0).any(axis=0)
        resting = {updates.layers[i] for i in np.flatnonzero(~moved & (measured >= self.patience))}
        if not moved.any():
            yield from self._nothing_moves(history, gradients, updates)
        if not resting or not moved.any():
            return
        pulled = (np.nan_to_num(gradients.values) > 0).sum(axis=0) >= self.patience
        resting &= {gradients.layers[i] for i in np.flatnonzero(pulled)}
        for modules in _models(history):
            still = [m for m, names in modules.items() if set(names) <= resting and _matrix(history, names) is not None]
            weights = [name for module in still for name in modules[module]]
            if not still or not untrained(history, weights):
                continue
            steps = updates.column(weights[0]).steps
            yield self.finding(
                step=steps[0],
                detected_at=steps[self.patience - 1],
                where=still,
                severity=Severity.WARNING if learnt(history) > self.works else Severity.ERROR,
                message=f"{len(still)} modules ({', '.join(still[:3])}) get gradients, and the optimizer holds "
                "them, but no step has moved them",
                evidence=[Evidence(name="measurements without an update", value=len(steps), limit=self.patience)],
                advice=self.still_advice,
            )
            return

    def _nothing_moves(self, history: History, gradients: LayerTable, updates: LayerTable) -> Iterator[Finding]:
        """Gradients arrive, the rate is none of zero, no step was rejected, and no step has moved anything."""
        pulled = (np.nan_to_num(gradients.values) > 0).any(axis=1)
        steps = gradients.steps[pulled & np.isin(gradients.steps, updates.steps)]
        if "optimizer/learning_rate" not in history or len(steps) < self.patience or len(rejected_steps(history)):
            return
        if not (rate_at(history, steps) > 0).all():
            return
        yield self.finding(
            step=steps[0],
            detected_at=steps[self.patience - 1],
            where=("update_ratio",),
            message=f"gradients arrive, and the learning rate is {float(rate_at(history, steps[-1:])[0]):.3g}, but no "
            f"step has moved any parameter, {len(steps)} measurements in a row",
            evidence=[Evidence(name="measurements without an update", value=len(steps), limit=self.patience)],
            advice=self.idle_advice,
        )

    def _thawed(self, history: History, names: list[str]) -> bool:
        """Whether these were frozen until lately: the weights of what trains are measured, those of others are not."""
        if "weight_norm" not in history:
            return False
        table = history.layers("weight_norm")
        columns = [table.column(name).steps for name in names if name in table.layers]
        late = [steps for steps in columns if len(steps) < self.patience]
        return len(columns) < len(names) or bool(late)

    def _zeros_count(self, history: History) -> bool:
        """Whether a gradient of exactly zero is one that was cut off: no unit is dead or stuck, the run is not done."""
        for statistic in ("dead_units_lasting", "activation_zeros", "saturated_units"):
            if statistic in history and np.nanmax(np.nan_to_num(history.layers(statistic).values)) > 0.9:
                return False
        return "train/loss" not in history or not float(progress(history)[1][-1]) > self.done

    sick: ClassVar = (_cut(2), _cut(1, gradient=0.0))
    healthy: ClassVar = (
        _cut(0),
        _cut(2, spread=0.11),  # trained before
        _cut(2, trainable=False),  # frozen on purpose
        _cut(2, thawed=39),  # frozen until now
        _cut(2, widths=3),  # a head that nobody uses: what follows takes 64 inputs
        _cut(4),  # no gradient anywhere: not one layer's fault
    )


def _models(history: History) -> Iterator[dict[str, list[str]]]:
    """For each model its modules, in the order of their parameters, each with the names of its trainable parameters."""
    several = int(history.facts.get("models", 1)) > 1
    orphans = set(history.facts.get("not_in_optimizer", ()))
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, layer in history.architecture.items():
        if layer.kind == "parameter" and layer.trainable and name not in orphans:
            found[name.split(".")[0] if several else ""][name.rpartition(".")[0]].append(name)
    yield from found.values()


@remembered
def _reached(history: History, zeros_count: bool) -> frozenset[str]:
    """Parameters that have ever had a gradient; ``zeros_count``: other than zero."""
    table = history.layers("gradient_norm")
    measured = ~np.isnan(table.values)
    had = np.any(measured & (table.values != 0) if zeros_count else measured, axis=0)
    return frozenset(table.layers[i] for i in np.flatnonzero(had))


def _prefix(history: History, modules: dict[str, list[str]], zeros_count: bool) -> tuple[list[str], str | None]:
    """The modules without a gradient that come before all others, and the first one with a matrix and a gradient.

    What ran comes in the order of execution; what never ran (with gradients switched on) where it was defined.
    """
    reached = _reached(history, zeros_count)
    alive = {m: any(name in reached for name in names) for m, names in modules.items()}
    order = {m: max((history.architecture[name].order for name in names), default=-1) for m, names in modules.items()}
    ran = sorted((m for m in modules if order[m] >= 0), key=lambda m: order[m])
    living = next((m for m in ran if alive[m]), None)
    if living is None:
        return [], None
    names = list(modules)
    hidden = [m for m in names[: names.index(living)] if order[m] < 0 and not alive[m]]
    before = ran[: ran.index(living)]
    if any(alive[m] and order[m] < 0 for m in names[: names.index(living)]):
        return [], None  # a parameter of its own feeds something before
    first = next((m for m in ran if alive[m] and _matrix(history, modules[m]) is not None), None)
    return before or hidden, first


def _branch(history: History, modules: dict[str, list[str]], zeros_count: bool) -> tuple[list[str], str | None]:
    """Modules in a row without a gradient that ran beside others, and the module that takes both, side by side.

    It takes as many inputs as both put out together; what nobody uses it would not take.
    """
    reached = _reached(history, zeros_count)
    order = {m: max((history.architecture[name].order for name in names), default=-1) for m, names in modules.items()}
    ran = sorted((m for m in modules if order[m] >= 0), key=lambda m: order[m])
    alive = [any(name in reached for name in modules[m]) for m in ran]
    widths = [_width(history, modules[m]) for m in ran]
    for end in range(len(ran) - 1):
        if alive[end] or not alive[end + 1]:
            continue
        begin = end
        while begin > 0 and not alive[begin - 1]:
            begin -= 1
        beside = {width for width, lives in zip(widths, alive, strict=True) if lives and width > 1}
        for taking in range(end + 1, len(ran)):
            matrix = _matrix(history, modules[ran[taking]])
            if alive[taking] and matrix is not None and widths[end] > 1 and matrix.shape[1] - widths[end] in beside:
                return ran[begin : end + 1], ran[taking]
    return [], None


def _width(history: History, names: list[str]) -> int:
    """How many outputs a module has, 0 where it has no weights."""
    shapes = [history.architecture[name].shape for name in names]
    if any("weight_hh" in name for name in names):
        return max(shape[1] for name, shape in zip(names, shapes, strict=True) if "weight_hh" in name)
    return max((shape[0] for shape in shapes if shape), default=0)


def _matrix(history: History, names: list[str]) -> Layer | None:
    """The first weight of a module with two dimensions or more."""
    layers = (history.architecture[name] for name in names)
    return next((layer for layer in layers if len(layer.shape) > 1), None)


def _feeds(history: History, below: list[str], above: list[str]) -> bool:
    """Whether the outputs of one module can be the inputs of another: as many, or a part of them."""
    matrix = _matrix(history, above)
    widths = set()
    for name in below:
        shape = history.architecture[name].shape
        recurrent = "weight_hh" in name
        widths |= {shape[1] if recurrent else shape[0]} if shape and "weight_ih" not in name else set()
        if len(shape) == 2 and ("embed" in name.lower() or recurrent or _embeds(history, name)):
            widths.add(shape[1])
    if matrix is None:
        return False
    grouped = len(matrix.shape) > 2 and matrix.shape[1] == 1  # of a convolution of single channels
    inputs = matrix.shape[0] if grouped else matrix.shape[1]
    return any(width > 1 and inputs % width == 0 for width in widths)


def _embeds(history: History, name: str) -> bool:
    owner = history.architecture.get(name.rpartition(".")[0])
    return owner is not None and "Embedding" in owner.kind
