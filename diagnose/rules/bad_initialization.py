"""TM303: weights drawn so small, so large or so alike that the first layers cannot be trained."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import course_of, gains, matrices, moved
from trainmedic.diagnose.learnt import learnt, level
from trainmedic.diagnose.robust import ABSOLUTES, SQUARES, uniform_level
from trainmedic.history import History, Layer, LayerTable

_CLASSES = {"classes": 10, "loss": "CrossEntropyLoss", "reduction": "mean"}


def _stack(losses: list[float], std: float, signal: float, **statistics: float) -> History:
    """An example: four layers of 64 units; ``signal`` is what each multiplies the spread of its input by."""
    values: dict[str, Any] = {}
    layers = []
    for i in range(4):
        values[f"fc{i}__activation_batch_std"] = [signal ** (i + 1)] * len(losses)
        values[f"fc{i}.weight__weight_std"] = [std] * len(losses)
        values |= {f"fc{i}.weight__{name}": [value] * len(losses) for name, value in statistics.items()}
        layers += [Layer(f"fc{i}", "Linear", i, (64,)), Layer(f"fc{i}.weight", "parameter", i, (64, 64))]
    return History.of(train_loss=losses, layers=layers, facts=_CLASSES, **values)


class BadInitialization(Rule):
    """At the first steps the weights are outside of every usual law, and signals die, explode or are all alike.

    Why it is bad: what reaches the last layer, or comes back to the first, is noise or nothing; equal units get equal
    gradients and stay one unit for ever.
    Usual causes: a fixed standard deviation whatever the width; constants; a gain for another activation; weights
    copied from another architecture.
    Formula: gain = standard deviation x sqrt(fan) of each weight matrix, as first measured. More than half of them
    below `faint` by the larger fan, and what samples differ by shrinks to `collapse` of what it was, from the first
    layer to a later one; or more than half above `wild` by the smaller fan, and it grows by `grown`, the first loss is
    above `sure` times chance, an activation starts with `flat` of its outputs saturated, or they are a recurrent
    layer's and nothing is learnt. Or more than half of the matrices, none of them zero, have `alike` of their units
    equal. Or two or more are exactly zero for `zero` measured steps, and nothing was learnt, or more than half of them
    (or half, the first one among them) after the first step, and nothing was learnt in `wait` losses, nor `works` of
    the task since. Or, whatever the weights, the first loss, before any step, is above `over_chance` times chance, and
    what samples differ by grows by `explosion`, or (where no parameter is frozen) it is above chance still after `wait`
    losses, while inputs are within `scaled` and less than `works` of the task is learnt. Chance is ln(classes), or what
    outputs of zero get (and three standard errors of that in one batch). An error where the loss has come down by less
    than `learnt` after `wait` losses.
    Remedies: reinitialize, insert-batchnorm, clip-gradients, lower-learning-rate.
    Known limits: weights are first measured after the first step. Where that step moved most of them by a large part of
    their size, only the first forward pass counts. Biases, embeddings and single layers out of law are not judged.
    Source: Glorot and Bengio 2010; He et al. 2015, arXiv:1502.01852: gains of 1 and 1.41 keep the variance; PyTorch's
    own is 0.58. Two thirds of the smallest of them, and not quite twice the largest, leave room for other laws.
    """

    code: ClassVar[str] = "TM303"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.INITIALIZATION
    needs: ClassVar[tuple[str, ...]] = ("weight_std|equal_units",)
    remedies: ClassVar[tuple[str, ...]] = (
        "reinitialize",
        "insert-batchnorm",
        "clip-gradients",
        "lower-learning-rate",
    )
    # it is seen before the rate has done anything, so where both are seen it comes first
    explains: ClassVar[tuple[str, ...]] = (
        "vanishing-gradient",
        "exploding-gradient",
        "dead-relu",
        "saturated-activation",
        "non-finite",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "collapsed-output",
        "divergence",
        "loss-spike",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that weights were drawn with a fixed spread, or set to a constant. "
        "Do this: draw them by their fan, nn.init.kaiming_normal_(w, nonlinearity='relu') for ReLU, "
        "nn.init.xavier_normal_(w) otherwise. Otherwise check (a) each layer: w.std() * w[0].numel() ** 0.5 should "
        "be 0.5 to 1.5; (b) code that runs after the model is built: model.apply(...), "
        "load_state_dict(strict=False); (c) the scale of the inputs: x.std()."
    )

    faint: float = Field(0.4, gt=0, description="gain, a ratio (two thirds of PyTorch's own 0.58, the smallest in use)")
    collapse: float = Field(
        1e-3, gt=0, lt=1, description="ratio of spreads (what samples differ by is lost in the biases)"
    )
    wild: float = Field(2.5, gt=0, description="gain, a ratio (1.8 times He's 1.41, so that ten layers make it 300)")
    explosion: float = Field(30.0, gt=1, description="ratio of spreads (no law that keeps variance comes near)")
    over_chance: float = Field(3.0, gt=1, description="first loss over ln(classes), a ratio (sure of what is wrong)")
    grown: float = Field(
        10.0,
        gt=1,
        description="ratio of spreads that unlawful weights must show (what a deep net of usual ones may lose)",
    )
    sure: float = Field(
        2.0, gt=1, description="first loss over chance that they must show, a ratio (logits of 3 or more)"
    )
    flat: float = Field(0.5, gt=0, le=1, description="share of an activation's outputs on its flat part, 0 to 1 (half)")
    alike: float = Field(0.9, gt=0, le=1, description="share of a layer's units, 0 to 1 (nearly all)")
    zero: int = Field(20, ge=2, description="measured steps (a layer at zero on purpose moves at the first)")
    learnt: float = Field(0.05, gt=0, lt=1, description="share of the first loss, 0 to 1 (below it nothing was learnt)")
    works: float = Field(0.5, gt=0, le=1, description="share of the task that is learnt, from which on it works (half)")
    scaled: float = Field(10.0, gt=1, description="root mean square of the largest feature (as unnormalized-input)")
    wait: int = Field(50, ge=10, description="losses (a rough start may take some)")

    def check(self, history: History) -> Iterator[Finding]:
        found = self._alike(history) or self._out_of_law(history) or self._blown_up(history) or self._zero(history)
        found = found or self._far_off(history)
        if found is None:
            return
        step, where, message, evidence = found
        yield self.finding(
            step=history.first_step,
            detected_at=step,
            where=where,
            severity=Severity.ERROR if self._harmed(history) else Severity.WARNING,
            message=message,
            evidence=evidence,
        )

    def _out_of_law(self, history: History) -> tuple[int, list[str], str, list[Evidence]] | None:
        if "weight_std" not in history:
            return None
        step, found = gains(history)
        found = {name: both for name, both in found.items() if both[1] > 0}  # zero is so on purpose
        if len(found) < 2:
            return None
        if _torn(history, step):  # what is known of the weights is what the first steps have made of them
            return None
        small, large = ([both[side] for both in found.values()] for side in (1, 0))
        ordered = sorted(found, key=lambda name: found[name][1])
        if sorted(small)[len(small) // 2] < self.faint:
            ratio, at, layers = _spread(history, lowest=True)
            if ratio < self.collapse:
                gain = sorted(small)[len(small) // 2]
                message = (
                    f"weights are drawn {gain:.2g} / sqrt(fan), and what samples differ by shrinks {1 / ratio:.2g}-fold"
                )
                evidence = [
                    Evidence(name="standard deviation of weights x sqrt(fan)", value=gain, limit=self.faint),
                    Evidence(
                        name=f"spread over samples, {layers[1]} over {layers[0]}", value=ratio, limit=self.collapse
                    ),
                ]
                return max(step, at), ordered[:5], message, evidence
        gain = sorted(large)[(len(large) - 1) // 2]
        if gain > self.wild:
            effect = self._effect(history, [name for name, both in found.items() if both[0] > self.wild])
            if effect is not None:
                at, seen, told = effect
                first = Evidence(name="standard deviation of weights x sqrt(fan)", value=gain, limit=self.wild)
                message = f"weights are drawn {gain:.2g} / sqrt(fan), and {seen}"
                return max(step, at), ordered[::-1][:5], message, [first, told]
        return None

    def _blown_up(self, history: History) -> tuple[int, list[str], str, list[Evidence]] | None:
        """A first forward pass, before any step, that explodes through depth and is sure of what is wrong."""
        ratio, at, layers = _spread(history, lowest=False)
        guess = of_nothing(history)
        if at != history.first_step or not ratio > self.explosion or "train/loss" not in history:
            return None
        start = float(history.series("train/loss").values[0])
        if not self.over_chance * guess < start < np.inf:
            return None
        message = (
            f"what samples differ by grows {ratio:.2g}-fold through the layers, and the loss starts at {start:.3g}"
        )
        name = f"spread over samples, {layers[1]} over {layers[0]}"
        evidence = [
            Evidence(name=name, value=ratio, limit=self.explosion),
            Evidence(name="first loss", value=start, limit=self.over_chance * guess),
        ]
        return at, [layers[1]], message, evidence

    def _effect(self, history: History, found: list[str]) -> tuple[int, str, Evidence] | None:
        """What weights that are too large do at the start: the step at which it is seen, in words, in numbers."""
        ratio, at, layers = _spread(history, lowest=False)
        if ratio > self.grown:
            name = f"spread over samples, {layers[1]} over {layers[0]}"
            seen = f"what samples differ by grows {ratio:.2g}-fold"
            return at, seen, Evidence(name=name, value=ratio, limit=self.grown)
        if "train/loss" in history:
            steps, losses = history.series("train/loss")
            if self.sure * of_nothing(history) < losses[0] < np.inf:
                limit = self.sure * of_nothing(history)
                return (
                    int(steps[0]),
                    f"the loss starts at {losses[0]:.3g}",
                    Evidence(name="first loss", value=losses[0], limit=limit),
                )
        if "saturated_outputs" in history:
            at, layer, share = _first(history.layers("saturated_outputs"))
            if share > self.flat:
                return (
                    at,
                    f"{100 * share:.0f} % of the outputs of {layer} are saturated",
                    Evidence(name=f"saturated outputs of {layer}", value=100 * share, limit=100 * self.flat, unit="%"),
                )
        waited = len(history.series("train/loss").steps) >= self.wait if "train/loss" in history else False
        nothing = self._harmed(history) or (waited and learnt(history) < self.learnt)
        if nothing and any(_recurrent(history, name) for name in found):
            down = 100 * float(course_of(history).progress[-1])
            told = Evidence(name="loss come down", value=down, limit=100 * self.learnt, unit="%")
            at = int(history.series("train/loss").steps[self.wait - 1])
            return at, "a recurrent layer, whose gates and states are at their ends, has learnt nothing", told
        return None

    def _far_off(self, history: History) -> tuple[int, list[str], str, list[Evidence]] | None:
        """A first loss, before any step, far above that of knowing nothing, and long no way back to it."""
        if "train/loss" not in history or learnt(history) > self.works or _partly_frozen(history):
            return None
        if "input/feature_scale_max" in history and level(history, "input/feature_scale_max") > self.scaled:
            return None  # the inputs are far off, not the weights
        run, guess = course_of(history), of_nothing(history)
        start, since = float(run.losses[0]), int(np.searchsorted(run.places, self.wait - 1))
        if since >= len(run) or not self.over_chance * guess < start < np.inf:
            return None
        later = float(run.level[since])
        if not later > guess:
            return None
        message = (
            f"the loss starts at {start:.3g}, where knowing nothing gives {guess:.3g}, and {self.wait} losses later it "
            f"is at {later:.3g}"
        )
        evidence = [
            Evidence(name="first loss", value=start, limit=self.over_chance * guess),
            Evidence(name=f"loss after {self.wait}", value=later, limit=guess),
        ]
        return int(run.steps[since]), ["train/loss"], message, evidence

    def _alike(self, history: History) -> tuple[int, list[str], str, list[Evidence]] | None:
        if "equal_units" not in history or "weight_norm" not in history:
            return None
        table, norms = history.layers("equal_units"), history.layers("weight_norm")
        sizes = {name: both for name, *both in zip(norms.layers, *norms.first(), strict=True)}
        steps, shares = table.first()
        judged, step = 0, -1
        hit: dict[str, float] = {}
        for i in matrices(history, table).tolist():
            name = table.layers[i]
            if math.prod(history.architecture[name].shape[1:]) < 4 or np.isnan(shares[i]) or name not in sizes:
                continue
            judged += 1
            since, size = sizes[name]
            if shares[i] >= self.alike and size > 0:
                hit[name] = float(shares[i])
                step = max(step, int(steps[i]), int(since))
        if len(hit) < 2 or 2 * len(hit) <= judged:
            return None
        message = f"nearly all units of {len(hit)} of {judged} weight matrices are equal to another: they stay one unit"
        limit = 100 * self.alike
        return (
            step,
            list(hit),
            message,
            [
                Evidence(name=f"equal units of {name}", value=100 * share, limit=limit, unit="%")
                for name, share in list(hit.items())[:5]
            ],
        )

    def _zero(self, history: History) -> tuple[int, list[str], str, list[Evidence]] | None:
        if "weight_norm" not in history or "train/loss" not in history:
            return None
        table = history.layers("weight_norm")
        if len(table.steps) < self.zero:
            return None
        columns = matrices(history, table)
        rows = table.values[:, columns]
        still, until = columns[(rows == 0).all(axis=0)], self.zero
        if len(still) < 2 or not self._nothing_learnt(history, self.zero):
            still, until = columns[rows[0] == 0], self.wait  # one by one they come alive, too late
            known = [x for x in history.architecture.values() if x.kind == "parameter" and len(x.shape) > 1]
            first = bool(known) and min(known, key=lambda x: x.order).name in [table.layers[i] for i in still]
            if len(still) < 2 or 2 * len(still) + first <= len(known) or not self._held_up(history):
                return None
        names = [table.layers[i] for i in still]
        message = f"{len(still)} weight matrices were exactly zero, and no gradient got through them"
        evidence = [Evidence(name="weight matrices that stayed at zero", value=len(still), limit=1)]
        return int(table.steps[min(until, len(table.steps)) - 1]), names, message, evidence

    def _nothing_learnt(self, history: History, wait: int) -> bool:
        if "train/loss" not in history:
            return False
        course = course_of(history)
        return bool(len(course)) and course.places[-1] + 1 >= wait and not course.progress[-1] >= self.learnt

    def _held_up(self, history: History) -> bool:
        """Whether nothing was learnt in the first ``wait`` losses, and the task is not learnt since."""
        course = course_of(history)
        then = int(np.searchsorted(course.places, self.wait - 1))
        return then < len(course) and not course.progress[then] >= self.learnt and not learnt(history) > self.works

    def _harmed(self, history: History) -> bool:
        return self._nothing_learnt(history, self.wait)

    sick: ClassVar = (
        _stack([2.3] * 60, std=0.015, signal=0.06),
        _stack([40.0, 30.0, 20.0] + [3.0] * 60, std=0.4, signal=3.2),
        # the first step is so large that the weights are no longer what was drawn
        _stack([2e5, 7e9] + [float("nan")] * 60, std=0.4, signal=3.2, update_ratio=2.0),
        _stack([2.31] * 60, std=1e-4, signal=0.9, equal_units=1.0, weight_norm=3.2),
    )
    healthy: ClassVar = (
        _stack([2.3 * 0.97**i for i in range(60)], std=0.18, signal=1.0),
        # PyTorch's own law without normalisation: each layer loses a half or more, and it trains
        _stack([2.3 * 0.98**i for i in range(60)], std=0.072, signal=0.2),
        # a small spread, as language models have it, with norms that make up for it
        _stack([2.3 * 0.97**i for i in range(60)], std=0.02, signal=0.9),
        # large weights behind norms
        _stack([2.3 * 0.97**i for i in range(60)], std=0.5, signal=1.1),
    )


def _partly_frozen(history: History) -> bool:
    """Whether some parameters stay as they are, as where a trained model is turned to another task."""
    return any(layer.kind == "parameter" and not layer.trainable for layer in history.architecture.values())


def _recurrent(history: History, name: str) -> bool:
    owner = history.architecture.get(name.rpartition(".")[0])
    return owner is not None and owner.kind.removesuffix("Cell") in ("RNN", "LSTM", "GRU")


def of_nothing(history: History) -> float:
    """The loss of outputs that say nothing: all classes alike, or zero for every target; infinite where not known.

    The squares of n normal targets have a mean with a relative standard error of sqrt(2 / n): three of them are added.
    """
    loss, guess = history.facts.get("loss"), uniform_level(history)
    if not (loss in (*SQUARES, *ABSOLUTES) and history.facts.get("reduction", "mean") == "mean"):
        return guess
    mean, spread = level(history, "target/mean"), level(history, "target/std")
    batch = history.facts.get("batch_size")
    doubt = 3 * (2 / batch) ** 0.5 if isinstance(batch, int) and batch > 0 else 0.0  # the first batch may be unusual
    size = (mean**2 + spread**2) * (1 + doubt)
    if not 0 < size < 1e18:
        return guess
    return size if loss in SQUARES else size**0.5


def _torn(history: History, step: int) -> bool:
    """Whether the first steps moved most weights by a large part of their size: what was measured is their doing."""
    if "update_ratio" not in history:
        return False
    steps, updates = moved(history)
    early = updates[(steps <= step) & np.isfinite(updates)]
    return bool(early.sum() > 0.5)


def _first(table: LayerTable) -> tuple[int, str, float]:
    """The layer with the largest first measured value, that step and that value."""
    steps, values = table.first()
    if np.isnan(values).all():
        return 0, "", -np.inf
    i = int(np.nanargmax(values))
    return int(steps[i]), table.layers[i], float(values[i])


def _spread(history: History, *, lowest: bool) -> tuple[float, int, tuple[str, str]]:
    """What samples differ by in a later layer over the first, at the first measured step: the extreme one.

    With the step by which it was measured, and both layers. 1 where it is not known.
    """
    if "activation_batch_std" not in history:
        return 1.0, 0, ("", "")
    table = history.layers("activation_batch_std")
    weighted = {name.rpartition(".")[0] for name, layer in history.architecture.items() if len(layer.shape) > 1}
    known = [
        (history.architecture[layer].order, layer)
        for layer in table.layers
        if layer in weighted and layer in history.architecture and history.architecture[layer].order >= 0
    ]
    if len(known) < 2:
        return 1.0, 0, ("", "")
    names = [layer for _, layer in sorted(known)]
    place = {layer: i for i, layer in enumerate(table.layers)}
    steps, first = (both[[place[name] for name in names]] for both in table.first())
    if np.isnan(first).any() or not 0 < first[0] < np.inf:
        return 1.0, 0, ("", "")
    with np.errstate(all="ignore"):
        ratios = first[1:] / first[0]
    ratios = np.where(np.isfinite(ratios) & (ratios > 0), ratios, 1.0)  # exactly zero is dead or so on purpose
    i = int(np.argmin(ratios) if lowest else np.argmax(ratios))
    return float(ratios[i]), int(steps[i + 1]), (names[0], names[i + 1])
