"""TM305: the output no longer depends on the input."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule
from trainmedic.diagnose.course import streak
from trainmedic.diagnose.learnt import learnt, level
from trainmedic.diagnose.robust import Array, median
from trainmedic.history import History, Layer, Series


def _same(spread: list[float], size: float = 1.0, loss: float = 0.7) -> History:
    """An example: outputs of this size that differ by so much from sample to sample."""
    count = len(spread)
    return History.of(
        train_loss=[loss] * count, output_batch_std=spread, output_min=[size] * count, output_max=[size] * count
    )


def _autoencoder(code: list[float]) -> History:
    """An example: 32 features through a code of 4 that differs by so much from sample to sample, and noise of 1."""
    layers, values = [], dict[str, Any]()
    for i, (inputs, outputs) in enumerate([(32, 16), (16, 4), (4, 16), (16, 32)]):
        layers += [Layer(f"fc{i}", "Linear", i, (outputs,)), Layer(f"fc{i}.weight", "parameter", i, (outputs, inputs))]
        values[f"fc{i}__activation_batch_std"] = code if i == 1 else [0.5] * len(code)
        values[f"fc{i}.weight__weight_norm"] = [4.0] * len(code)
    return History.of(train_loss=[10.0] * len(code), output_batch_std=[0.1] * len(code), layers=layers, **values)


class CollapsedOutput(Rule):
    """Whatever the input, the output is the same, or a hundredth is left of what it differed by, or it is all noise.

    Why it is bad: nothing can be learnt from a constant; the gradient of all that lies before it is zero.
    Usual causes: softmax over a single output; a rectifier after the last layer whose units died; a step that was far
    too large and killed or saturated all units; a loss that only pulls outputs together; inputs masked or multiplied
    away; weights decayed to nothing; a divergence that weighs too much in a variational autoencoder.
    Formula: s = standard deviation over the samples of a batch, root mean square over the outputs; s at most
    `resolution` times the largest output, or `faded` times both that and the largest s before, where targets differ by
    more; or, of the narrowest layer, the spread that it can cause in the layer that takes nothing else (s times its
    weights' norm times sqrt(inputs / outputs)) is below `drowned` of what that one has, and half of what it was at the
    start; in each of the last `patience` measurements (but for `odd`), while the loss is not zero and no more than
    `works` of the task has been learnt.
    Remedies: normalize-inputs, insert-batchnorm, reinitialize, find-learning-rate, lower-learning-rate.
    Known limits: batches of one sample show nothing. An output that varies by noise alone has not collapsed in this
    sense where the noise is added elsewhere than behind the narrowest layer (dropout); nor has one that follows the
    input by a hair (see vanishing-gradient). A last layer that starts at zero passes within `patience`.
    Source: single precision resolves 6e-8 of a value (IEEE 754); the spread of outputs over inputs is a check of
    TheDeepChecker, there with a limit of 1e-3 at the start.
    """

    code: ClassVar[str] = "TM305"
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("output/batch_std|activation_batch_std",)
    remedies: ClassVar[tuple[str, ...]] = (
        "normalize-inputs",
        "insert-batchnorm",
        "reinitialize",
        "find-learning-rate",
        "lower-learning-rate",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "not-learning",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means a last activation that cannot vary (softmax over one output, a dead rectifier), or a step "
        "that was far too large. "
        "Do this: take the activation out of the last layer, and use a loss that takes raw outputs. Otherwise check "
        "(a) where samples become the same: layer(x).std(0) of each layer in turn; (b) that the inputs differ when "
        "they enter the model: x.std(0); (c) whether it happens at a tenth of the learning rate, with warm-up."
    )

    code_advice: ClassVar[str] = (
        "Usually means that the divergence of a variational autoencoder weighs too much, so that the decoder has "
        "learnt to do without the code (posterior collapse). "
        "Do this: lower its weight, or let it rise from nothing over the first epochs; sum both terms over the same "
        "elements. Otherwise check (a) the divergence itself: near zero it says that the code holds nothing; (b) that "
        "the decoder cannot do the task alone; (c) the noise that is added: its size beside code.std(0)."
    )

    resolution: float = Field(
        1e-6, gt=0, lt=1, description="spread over samples, share of the largest output (rounding errors of 16 sums)"
    )
    faded: float = Field(
        0.01, gt=0, lt=1, description="spread over samples, share of its largest and of the size (a hundredth is left)"
    )
    patience: int = Field(10, ge=2, description="measurements in a row (a last layer may start at zero)")
    odd: int = Field(2, ge=0, description="of them may be otherwise (a step at next to no loss throws outputs about)")
    drowned: float = Field(
        0.1, gt=0, lt=1, description="spread that the code can cause over that of what follows (1 % of the variance)"
    )
    works: float = Field(0.5, gt=0, le=1, description="share of the task that is learnt, from which on it works (half)")

    def check(self, history: History) -> Iterator[Finding]:
        found = self._constant(history) if "output/batch_std" in history else None
        found = found or self._drowned(history)
        if found is not None:
            yield found

    def _constant(self, history: History) -> Finding | None:
        """Outputs that are the same for every sample, or nearly so."""
        steps, spread = history.series("output/batch_std")
        size = np.maximum(_at(history, "output/min", steps), _at(history, "output/max", steps))
        with np.errstate(invalid="ignore"):
            same = (spread >= 0) & (spread <= self.resolution * size) | self._faded(history, spread, size)
        among = np.convolve(same, np.ones(self.patience))[: len(same)]
        since = streak(among >= self.patience - self.odd) if len(same) >= self.patience else None
        if since is None or self._content(history):
            return None
        seen = max(since, self.patience - 1)
        onset = seen - self.patience + 1
        now = float(spread[-1])
        constant = now <= self.resolution * float(size[-1])
        limit = self.resolution if constant else self.faded
        what = "the same for every sample" if constant else f"differs by {now:.2g} between the samples"
        return self.finding(
            step=steps[onset],
            detected_at=steps[seen],
            where=["output/batch_std"],
            message=f"the output is {float(size[-1]):.3g} in size and {what} of a batch, "
            f"{len(steps) - onset} measurements in a row",
            evidence=[
                Evidence(name="spread over samples", value=now, limit=limit * float(size[-1])),
                Evidence(name="measurements in a row", value=len(steps) - onset, limit=self.patience),
            ],
        )

    def _drowned(self, history: History) -> Finding | None:
        """A code that is pulled together until the noise, or whatever is added to it, is all that gets on."""
        known = _code(history)
        if known is None or len(known.steps) < 2 * self.patience or self._content(history):
            return None
        first = median(known.share[:3])
        with np.errstate(invalid="ignore"):
            sick = (known.share < self.drowned) & (known.share < first / 2)
        since = streak(sick)
        if since is None or len(sick) - since < self.patience:
            return None
        now = float(known.share[-1])
        return self.finding(
            step=known.steps[since],
            detected_at=known.steps[max(since + self.patience, 2 * self.patience) - 1],
            where=[known.layer],
            message=f"what {known.layer} makes of its input can account for {100 * now:.2g} % at most of what "
            f"{known.following} puts out: the rest is noise, or comes from elsewhere",
            evidence=[
                Evidence(
                    name=f"share of {known.following} that comes from the code, at most", value=now, limit=self.drowned
                ),
                Evidence(name="the same at the start", value=first),
            ],
            advice=self.code_advice,
        )

    def _faded(self, history: History, spread: Array, size: Array) -> NDArray[np.bool_]:
        """Where next to nothing is left of how outputs differed at first, beside their size and what is asked for."""
        first = np.fmax.accumulate(np.where(np.isfinite(spread), spread, 0.0))
        mean, wanted = (level(history, f"target/{name}") for name in ("mean", "std"))
        constant = wanted <= self.faded * abs(mean)  # what is asked for hardly differs itself
        with np.errstate(invalid="ignore"):
            return np.asarray((spread <= self.faded * first) & (spread <= self.faded * size) & (not constant))

    def _content(self, history: History) -> bool:
        """Whether a constant is all that is asked for, or the run learns all the same."""
        if "train/loss" in history:
            recent = median(history.series("train/loss").values[-self.patience :])
            if not abs(recent) > np.finfo(np.float32).tiny:  # zero, or no number
                return True
        return learnt(history) > self.works

    sick: ClassVar = (
        _same([0.0] * 40),
        _same([1.0] * 20 + [1e-9] * 30),
        _same([0.2 * 0.9**i for i in range(90)]),  # nothing pushes apart what is pulled together
        _autoencoder([0.04 * 0.9**i for i in range(60)]),
    )
    healthy: ClassVar = (
        _same([0.01] * 40),
        _same([0.0] * 5 + [0.1] * 40),  # a last layer that starts at zero
        _same([0.0] * 40, loss=0.0),  # a constant is right
        _same([1e-4] * 40, size=10.0),  # an untrained deep net: faint, but not constant
        _same([1.0] * 20 + [0.0] * 3),
        _same([0.2] * 10 + [0.02] * 50),  # most of what differed was noise
        _autoencoder([0.04 + 0.02 * i for i in range(60)]),
    )


class _Code(NamedTuple):
    """The narrowest layer, the one that takes it, and which share of that one's spread over samples it can cause."""

    layer: str
    following: str
    steps: NDArray[np.int64]
    share: Array


def _code(history: History) -> _Code | None:
    """The code of an autoencoder, by its shape; ``None`` where there is none, or a norm stretches it.

    |W x| <= |W| |x|: outputs of spread s, root mean square over n of them, come of inputs of a spread of at least
    s sqrt(n) / (|W| sqrt(inputs)).
    """
    if "activation_batch_std" not in history or "weight_norm" not in history:
        return None
    layers = history.architecture
    ran = [layer for name, layer in layers.items() if layer.order >= 0 and layer.shape and f"{name}.weight" in layers]
    ran = sorted((x for x in ran if len(layers[f"{x.name}.weight"].shape) > 1), key=lambda layer: layer.order)
    sizes = [math.prod(layer.shape) for layer in ran]
    if len(ran) < 3 or not min(sizes[:-1]) < sizes[-1]:
        return None
    code = [layer for layer, size in zip(ran[:-1], sizes, strict=False) if size == min(sizes[:-1])]
    following = ran[ran.index(code[-1]) + 1]
    weight = layers[f"{following.name}.weight"]
    between = [layer.kind for layer in layers.values() if code[-1].order < layer.order < following.order]
    if weight.shape[1] > code[-1].shape[0] or "Transpose" in following.kind or any("Norm" in kind for kind in between):
        return None
    spreads, norms = history.layers("activation_batch_std"), history.layers("weight_norm")
    if not {following.name, *(layer.name for layer in code)} <= set(spreads.layers) or weight.name not in norms.layers:
        return None
    steps, spread = spreads.column(following.name)
    largest = np.fmax.reduce([_column(spreads.column(layer.name), steps) for layer in code])
    gain = _column(norms.column(weight.name), steps) * (math.prod(weight.shape[1:]) / weight.shape[0]) ** 0.5
    with np.errstate(all="ignore"):
        return _Code(code[0].name, following.name, steps, gain * largest / spread)


def _column(series: Series, steps: NDArray[np.int64]) -> Array:
    """The newest value up to each step; NaN before the first."""
    if not len(series.steps):
        return np.full(len(steps), np.nan)
    place = np.searchsorted(series.steps, steps, side="right") - 1
    return np.where(place >= 0, series.values[np.maximum(place, 0)], np.nan)


def _at(history: History, name: str, steps: NDArray[np.int64]) -> Array:
    """Absolute values of a series at given steps, NaN where it has none."""
    if name not in history:
        return np.full(len(steps), np.nan)
    known, values = history.series(name)
    place = np.minimum(np.searchsorted(known, steps), len(known) - 1)
    return np.where(known[place] == steps, np.abs(values[place]), np.nan)
