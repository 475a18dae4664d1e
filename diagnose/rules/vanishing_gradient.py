"""TM201: gradients die on the way to the first layers."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule
from trainmedic.diagnose.course import gains, streak
from trainmedic.diagnose.learnt import alike
from trainmedic.diagnose.robust import Array, in_a_row, median, medians, progress
from trainmedic.history import History, Layer


def _deep(
    losses: list[float], norm: Callable[[int], float], frozen: int = 0, update: Callable[[int], float] | None = None
) -> History:
    """An example: eight layers, each with the same gradient norm (and update over weight) at every step."""
    values: dict[str, Any] = {f"fc{i}.weight__gradient_norm": [norm(i)] * len(losses) for i in range(8)}
    if update:
        values |= {f"fc{i}.weight__update_ratio": [update(i)] * len(losses) for i in range(8)}
    layers = [Layer(f"fc{i}.weight", "parameter", i, (8, 8), trainable=i >= frozen) for i in range(8)]
    return History.of(train_loss=losses, layers=layers, **values)


class VanishingGradient(Rule):
    """Gradients of the first layers are orders of magnitude smaller than those of the last, and the run stands still.

    Why it is bad: the first layers do not learn, and the last ones learn from features that are noise.
    Usual causes: many sigmoid or tanh layers in a row; weights drawn too small for the depth; a long unrolled recurrent
    net; no normalisation and no residual paths.
    Formula: r = |g| / sqrt(elements), of each weight matrix of one model in the order of execution or of the bias
    beside it, whichever is larger (that is what arrives at a layer, however small the signal that it multiplies);
    log10(median of r over the last quarter of the layers, at most three / median over the first) above `decades`, in
    `patience` measurements in a row, `steps` steps or more after the start (half of them, where the loss has come down
    by less than `nothing`), and not `healing`, while (1) the loss has come down by less than `still` of its first
    level; or (2) the gradients were dead all through the second half of the
    run, and the loss has come down by less than `still` in it (what comes down before is what the last layers learn
    alone, such as the mean); or (3) the weights of the first layers move by less than `resolution` of themselves, and
    those of the last a thousand times as fast. Besides, in a run that has come down by less than `still` after
    twice `steps`: an nn.RNN over T steps whose recurrent weights have a gain (standard deviation x sqrt(width), about
    their spectral radius, the most that a tanh lets through) that to the power of T - 1 is below `resolution`. Where
    outputs hardly differ between samples (by a twentieth of the targets' spread, or of a logit), what the loss was then
    counts as its first level: a constant is not learnt. Silent once the loss has come down by `works` and still does,
    or by `done`, or the gradients of the first layers are back and were not dead, while the run stood still, for half
    of it.
    Remedies: insert-batchnorm, reinitialize, replace-activation, insert-residual, replace-recurrent,
    swap-optimizer.
    Known limits: needs the training loss and at least `least_layers` weight matrices with a gradient; layers whose
    gradient is exactly zero are not vanishing but cut off. How gradients die on the way back through time, within one
    recurrent layer, is not measured but told by its weights. Without biases, weights drawn too small give all layers
    equally small gradients.
    Source: Glorot and Bengio 2010; He et al. 2015, arXiv:1502.01852. A sigmoid's derivative is at most 1/4, so five
    in a row lose three decades; nets that train stay within two.
    """

    code: ClassVar[str] = "TM201"
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("gradient_norm", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = (
        "insert-batchnorm",
        "reinitialize",
        "replace-activation",
        "insert-residual",
        "replace-recurrent",
        "swap-optimizer",
    )
    # dead units give no gradient at all: where a small one arrives, signals have shrunk until all inputs look alike
    explains: ClassVar[tuple[str, ...]] = (
        "dead-relu",
        "collapsed-output",
        "learning-rate-too-low",
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means too many saturating activations in a row, or weights drawn too small. "
        "Do this: put a batch or layer norm before each activation, or use ReLU with He's initialisation. "
        "Otherwise check (a) the spread of each layer's output at the first step, output.std(): it should stay near 1; "
        "(b) a path around each block: x = x + block(x); (c) for recurrent nets: nn.LSTM or nn.GRU in place of nn.RNN."
    )

    decades: float = Field(
        3.0,
        gt=0,
        description="loss of gradient from the last quarter to the first, powers of ten (five sigmoids: 4**5)",
    )
    still: float = Field(
        0.1, gt=0, lt=1, description="share of its first level that the loss has not come down by (noise stays below)"
    )
    works: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of its first level after which the run works as it is (half of it is learnt)",
    )
    done: float = Field(
        0.9, gt=0, le=1, description="share of its first level, after which a flat loss is a run that has converged"
    )
    resolution: float = Field(
        6e-8, ge=0, lt=1, description="update over weight that single precision rounds away (2**-24, IEEE 754)"
    )
    steps: int = Field(50, ge=1, description="steps after the start (an ordinary start, warming up, may stand still)")
    nothing: float = Field(
        0.02, gt=0, lt=1, description="share of its first level that, not come down by, tells in half of these steps"
    )
    patience: int = Field(10, ge=1, description="measurements in a row (batches differ)")
    healing: float = Field(
        0.15,
        gt=0,
        description="fall of that loss of gradient since half time, powers of ten (a last layer that began at zero and "
        "grows step by step gains 0.3, log10 of 2)",
    )
    least_layers: int = Field(4, ge=2, description="weight matrices that a model must have (one for each quarter)")

    def check(self, history: History) -> Iterator[Finding]:
        loss_steps, come_down = _come_down(history)
        if not len(loss_steps) or come_down[-1] > self.done:
            return
        if come_down[-1] > self.works and not self._flat(loss_steps, come_down, np.array([-1]))[0]:
            return
        found = False
        for layers in _stacks(history):
            if len(layers) >= self.least_layers:
                for finding in self._stack(history, layers, loss_steps, come_down):
                    found = True
                    yield finding
        if not found:
            yield from self._through_time(history, loss_steps, come_down)

    def _through_time(self, history: History, steps: NDArray[np.int64], come_down: Array) -> Iterator[Finding]:
        """Simple recurrent layers over so many steps that nothing gets through, in a run that has learnt nothing."""
        standing = streak(come_down < self.still)
        late = steps - steps[0] >= 2 * self.steps
        if standing is None or not late[-1] or "weight_std" not in history:
            return
        at = int(steps[max(standing, int(np.argmax(late)))])
        for name, (keeps, _) in gains(history)[1].items():
            owner = history.architecture.get(name.rpartition(".")[0])
            if owner is None or owner.kind != "RNN" or "weight_hh" not in name or len(owner.shape) < 2:
                continue
            left = float(keeps) ** max(owner.shape[0] - 1, 0)
            down = 100 * max(0.0, float(come_down[-1]))
            if 0 < left < self.resolution:
                yield self.finding(
                    step=steps[0],
                    detected_at=at,
                    where=[name],
                    message=f"{owner.name} keeps {keeps:.2g} of a gradient per step back in time, {left:.2g} over all "
                    f"{owner.shape[0]}, and the loss has come down by {down:.0f} %",
                    evidence=[
                        Evidence(
                            name="gradient left at the first step of a sequence", value=left, limit=self.resolution
                        )
                    ],
                    confidence=0.7,
                )
                return

    def _stack(
        self, history: History, layers: list[Layer], loss_steps: NDArray[np.int64], come_down: Array
    ) -> Iterator[Finding]:
        steps, sizes = _profile(history, layers)
        quarter = max(1, len(layers) // 4)
        lost = _lost(sizes, self.least_layers)
        here = np.searchsorted(loss_steps, steps, side="right") - 1
        with np.errstate(invalid="ignore"):
            dies = lost > self.decades
        began = np.maximum.accumulate(np.where(dies, 0, np.arange(len(dies)) + 1))  # per row, where its spell began
        since = steps[np.minimum(began, len(steps) - 1)]
        flat = self._flat(loss_steps, come_down, np.maximum(here, 0)) & (steps - since >= (steps - loss_steps[0]) / 2)
        stands = (come_down[np.maximum(here, 0)] < self.still) | flat | self._starved(history, layers, steps)
        nothing = (come_down[np.maximum(here, 0)] < self.nothing) & (steps >= steps[0] + self.steps // 2)
        late = (here >= 0) & ((steps >= steps[0] + self.steps) | nothing)
        ends = np.flatnonzero(in_a_row(dies, self.patience) & stands & late)
        over = np.median(dies[-self.patience :]) < 1
        if not len(ends) or (over and 2 * np.sum(dies & stands) < len(dies)):  # never, or no longer
            return
        found = next((end for end in ends.tolist() if not self._heals(lost[began[end] : end + 1])), None)
        if found is None:
            return
        end, onset = int(found), int(began[found])
        weakest = np.argsort(sizes[end], kind="stable")  # NaN last
        factor = 10 ** float(np.median(lost[onset : end + 1]))
        yield self.finding(
            step=steps[onset],
            detected_at=steps[end],
            where=[layers[i].name for i in weakest[: max(quarter, 1)]],
            message=f"gradients of the first layers are {factor:.3g} times smaller than those of the last, "
            f"and the loss has come down by {100 * max(0.0, float(come_down[here[end]])):.0f} %",
            evidence=[
                Evidence(name="gradient, last over first layers", value=factor, limit=10**self.decades),
                Evidence(
                    name="loss come down", value=100 * float(come_down[here[end]]), limit=100 * self.still, unit="%"
                ),
            ],
        )

    def _flat(self, steps: NDArray[np.int64], come_down: Array, at: NDArray[np.intp]) -> NDArray[np.bool_]:
        """At which of these places next to nothing of the loss has gone since half time, long after the start."""
        half = np.searchsorted(steps, (steps[at] + steps[0]) // 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            gone = (come_down[at] - come_down[half]) / (1 - come_down[half])
        return np.asarray((gone < self.still) & (steps[at] - steps[0] >= 2 * self.steps))

    def _heals(self, lost: Array) -> bool:
        """Whether the gap is closing by itself: it is smaller now than at half time."""
        half = lost[: max(self.patience, (len(lost) + 1) // 2)]
        return median(half[-self.patience :]) - median(lost[-self.patience :]) > self.healing

    def _starved(self, history: History, layers: list[Layer], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """At which steps the weights of the first layers, and only they, move by less than can be represented."""
        if "update_ratio" not in history:
            return np.zeros(len(steps), dtype=bool)
        table = history.layers("update_ratio")
        names = [layer.name for layer in layers if layer.name in table.layers]
        quarter = len(names) // 4
        if not quarter:
            return np.zeros(len(steps), dtype=bool)
        ratios = table.values[:, [table.layers.index(name) for name in names]].astype(np.float64)
        first, last = medians(ratios[:, :quarter]), medians(ratios[:, -quarter:])
        with np.errstate(invalid="ignore"):
            starved = (first < self.resolution) & (last > 1e3 * self.resolution)
        return np.isin(steps, table.steps[starved])

    sick: ClassVar = (
        _deep([2.3] * 80, lambda i: 10.0 ** (i - 8)),
        # the last layers learn what they can without the first ones
        _deep(list(np.linspace(2.3, 1.8, 80)), lambda i: 10.0 ** (i - 8), update=lambda i: 10.0 ** (i - 10)),
        # a regression: the last layer has learnt the mean of the targets
        _deep([*np.linspace(9.0, 2.0, 60), *[2.0] * 90], lambda i: 10.0 ** (i - 8), update=lambda i: 1e-3),
    )
    healthy: ClassVar = (
        _deep([2.3] * 10 + [1e-6] * 70, lambda i: 1e-9),  # converged: all gradients have become small together
        _deep([2.3] * 80, lambda i: 10.0 ** ((i - 8) / 4)),  # a small ratio that every deep net has
        _deep(list(np.linspace(2.3, 0.3, 80)), lambda i: 10.0 ** (i - 8)),  # a large ratio in a run that learns
        _deep([2.3] * 80, lambda i: 1e-9 if i < 6 else 1.0, frozen=6),  # frozen on purpose
        # slow, but it learns: an adaptive optimizer makes up for the ratio
        _deep(list(np.linspace(2.3, 1.8, 80)), lambda i: 10.0 ** (i - 8), update=lambda i: 1e-3),
    )


def _come_down(history: History) -> tuple[NDArray[np.int64], Array]:
    """Progress of the loss, counted from what it was while all outputs were alike, where that is known and lower."""
    steps, come_down = progress(history)
    level = 1 - median(come_down[np.isin(steps, alike(history))])
    return (steps, 1 - (1 - come_down) / level) if 0 < level < 1 else (steps, come_down)


def _stacks(history: History) -> list[list[Layer]]:
    """The trainable weight matrices that ran and have gradients, in the order of execution, per model."""
    table = history.layers("gradient_norm")
    several = int(history.facts.get("models", 1)) > 1
    stacks: dict[str, list[Layer]] = defaultdict(list)
    for name in table.layers:
        layer = history.architecture.get(name)
        if layer is None or layer.kind != "parameter" or not layer.trainable or len(layer.shape) < 2 or layer.order < 0:
            continue
        owner = history.architecture.get(name.rpartition(".")[0])
        if owner is not None and "Embedding" in owner.kind:
            continue  # only the rows of the batch's own words have a gradient
        stacks[name.split(".")[0] if several else ""].append(layer)
    return [sorted(stack, key=lambda layer: layer.order) for stack in stacks.values()]


def _profile(history: History, layers: list[Layer]) -> tuple[NDArray[np.int64], Array]:
    """Root mean square gradients that arrive at each layer (measured steps x layers), NaN where there is none."""
    table = history.layers("gradient_norm")
    column = {name: i for i, name in enumerate(table.layers)}
    biases: dict[str, list[Layer]] = defaultdict(list)
    for name, layer in history.architecture.items():
        module, _, own = name.rpartition(".")
        if own.startswith("bias") and name in column:
            biases[module].append(layer)
    groups = [[layer, *biases[layer.name.rpartition(".")[0]]] for layer in layers]
    every = [one for group in groups for one in group]
    elements = np.array([max(1.0, math.prod(one.shape)) for one in every])
    each = table.values[:, [column[one.name] for one in every]] / elements**0.5
    starts = np.cumsum([0, *map(len, groups[:-1])])
    sizes = np.fmax.reduceat(each, starts, axis=1) if len(every) else np.full((len(table.steps), 0), np.nan)
    sizes[~(np.isfinite(sizes) & (sizes > 0))] = np.nan
    return table.steps, sizes


def _lost(sizes: Array, least: int) -> Array:
    """Powers of ten by which gradients shrink from the last to the first of the layers that have one."""
    known = ~np.isnan(sizes)
    count, place = known.sum(axis=1)[:, None], np.cumsum(known, axis=1)
    quarter = np.clip(count // 4, 1, 3)
    first = medians(np.where(known & (place <= quarter), sizes, np.nan))
    last = medians(np.where(known & (place > count - quarter), sizes, np.nan))
    return np.where(count[:, 0] >= least, np.log10(last) - np.log10(first), np.nan)
