"""How much of the task a run has learnt, and which weights nobody has trained: what rules on data and wiring share."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trainmedic.diagnose.memo import remembered
from trainmedic.diagnose.robust import (
    ABSOLUTES,
    BINARY,
    ENTROPIES,
    SQUARES,
    Array,
    chance_level,
    median,
    preceding_median,
)
from trainmedic.history import History, Layer, Series

SPAN = 10
"""Values that are judged together: their median."""
FEW = 8
"""Samples of a batch, below which its loss is that of single samples."""
SAMPLES = 200
"""Samples whose accuracy is judged, at least: one that is right by a half is known to a thirtieth."""
FEWEST = 16
"""Elements of a matrix whose spread is known to a ninth."""
ENOUGH = 64
"""Elements of all matrices that must be known: those of another law are told from this one."""
ALIKE = 0.05
"""Spread of outputs over samples, in spreads of the targets (or in logits), below which nothing has been learnt."""


@remembered
def level(history: History, name: str) -> float:
    """The median of a series, NaN where there is none."""
    return median(history.series(name).values) if name in history else float("nan")


@remembered
def shares(history: History) -> dict[str, float]:
    """The mean share of each class among the labels seen so far; empty where labels are not known."""
    if "label_share" not in history:
        return {}
    table = history.layers("label_share")
    values = np.where(np.isfinite(table.values) & (np.abs(table.values) <= 1), table.values, np.nan).astype(np.float64)
    seen = np.isfinite(values).sum(axis=0)
    means = np.nansum(values, axis=0) / np.maximum(seen, 1)
    return {name: float(mean) for name, mean, count in zip(table.layers, means, seen, strict=True) if count}


def chance(history: History) -> float:
    """The loss of who knows how targets are distributed, and nothing of the inputs; NaN where that is not known."""
    found = chance_level(history)
    return float("nan") if found is None else found


@remembered
def skill(history: History, sigmas: float = 0.0) -> list[Series]:
    """Shares of the task that were learnt, by what of it can be told: 0 is what chance knows, 1 all, less is worse.

    By the loss against :func:`chance`, and by the accuracy on training batches against always naming the commonest
    class. Medians of ``SPAN`` losses and means of as many accuracies or more before each step, so that no value depends
    on later ones. Empty if neither is known. An accuracy counts as ``sigmas`` standard errors lower: small batches beat
    the commonest class by chance.
    """
    known = []
    guess = chance(history)
    if guess > 0 and "train/loss" in history:
        steps, values = history.series("train/loss")
        size = history.facts.get("batch_size")
        few = isinstance(size, int) and size < FEW  # losses of few samples are skewed: their median is not their level
        here = _preceding_mean(values, _span(history), np.inf) if few else preceding_median(values, SPAN)
        gone = 1 - here / guess
        known.append(Series(steps, np.where(gone <= 1, gone, np.nan)))  # below its floor a loss tells nothing
    classes = history.facts.get("classes")
    if "output/accuracy" in history and isinstance(classes, int) and classes > 1:
        commonest = max([1 / classes, *shares(history).values()])
        if commonest < 1:
            steps, values = history.series("output/accuracy")
            doubt = sigmas * _doubt(history, commonest)
            known.append(Series(steps, (_preceding_mean(values, _span(history)) - commonest - doubt) / (1 - commonest)))
    return known


def _doubt(history: History, rate: float) -> float:
    """Standard error of the mean of as many accuracies, each the share of a batch that is right at this rate."""
    return float((rate * (1 - rate) / (_span(history) * _batch(history))) ** 0.5)


def _batch(history: History) -> int:
    size = history.facts.get("batch_size")
    return size if isinstance(size, int) and size > 0 else 1


def _span(history: History) -> int:
    """Accuracies that are judged together: ``SPAN``, or as many as hold ``SAMPLES`` samples."""
    return max(SPAN, -(-SAMPLES // _batch(history)))


def _preceding_mean(values: Array, window: int, most: float = 1.0) -> Array:
    """For each value the mean of the finite ones before it, of ``window`` at most; NaN where nothing precedes.

    Values beyond ``most`` are left out.
    """
    known = np.isfinite(values) & (np.abs(values) <= most)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(known, values, 0.0), known))
    end = np.arange(len(values))
    begin = np.maximum(end - window, 0)
    with np.errstate(invalid="ignore"):
        return np.asarray((sums[end] - sums[begin]) / (counts[end] - counts[begin]))


@remembered
def alike(history: History) -> NDArray[np.int64]:
    """Measured steps whose outputs differ so little from sample to sample that nothing can have been learnt yet.

    Outputs of spread s explain at most 2 s / t of targets of spread t: ``ALIKE`` is a tenth of the task. Logits that
    differ by so much move a cross-entropy by as little.
    """
    loss = history.facts.get("loss")
    if "output/batch_std" not in history:
        return np.empty(0, dtype=np.int64)
    scale = 1.0 if loss in (*ENTROPIES, *BINARY[:2]) else level(history, "target/std")
    if loss not in (*ENTROPIES, *BINARY[:2], *SQUARES, *ABSOLUTES) or not 0 < scale < math.inf:
        return np.empty(0, dtype=np.int64)
    steps, spread = history.series("output/batch_std")
    return steps[(spread >= 0) & (spread < ALIKE * scale)]


@remembered
def learnt(history: History) -> float:
    """The largest of what :func:`skill` tells at the end; NaN where it tells nothing."""
    return max((float(values[-1]) for _, values in skill(history) if np.isfinite(values[-1])), default=float("nan"))


@remembered
def known_apart(history: History) -> float:
    """The share of the task that the newest accuracy on data apart shows, NaN where there is none.

    0 is to always name the commonest class, 1 all.
    """
    commonest, accuracy = max(shares(history).values(), default=1.0), np.empty(0)
    if "validation/accuracy" in history:
        accuracy = history.series("validation/accuracy").values
    if not commonest < 1 or not len(accuracy) or not 0 <= accuracy[-1] <= 1:
        return float("nan")
    return float((accuracy[-1] - commonest) / (1 - commonest))


def untrained(history: History, names: Iterable[str]) -> bool:
    """Whether weights are still as a library draws them: by the standard deviation of their elements at the start.

    That of n elements has a relative standard error of sqrt(0.2 / n) where they are uniform, sqrt(0.5 / n) where they
    are normal. Each matrix must lie within 3.5 of torch's own default, or, if there are several, of the laws of He,
    Glorot or LeCun, or 0.02; and the mean of their squares, over n matrices, within three standard errors of the 1 that
    chance gives (1 + 3 sqrt(2 / n)). Weights that were trained elsewhere do not. Norms tell more than that: they start
    as ones and zeros, and no training leaves all of them there.
    """
    if "weight_std" not in history:
        return False
    names = list(names)
    table = history.layers("weight_std")
    spreads = dict(zip(table.layers, table.first()[1].tolist(), strict=True))
    norms = [spreads.get(name, math.nan) for name in names if _of_norm(history, name)]
    if any(spread > 0 for spread in norms):
        return False
    usual: list[float] = []
    other: list[float] = []
    elements = 0
    for name in names:
        layer = history.architecture.get(name)
        spread = spreads.get(name, math.nan)
        if layer is None or not _matrix(layer) or not math.isfinite(spread):
            continue
        default, others = _drawn(history, layer)
        size = min(float(math.prod(layer.shape)), 4_096.0)
        by_default = min(abs(spread / law - 1) / (0.2 / size) ** 0.5 for law in default)
        by_law = min(abs(spread / law - 1) / (0.5 / size) ** 0.5 for law in others)
        (usual if by_default <= by_law else other).append(min(by_default, by_law))
        elements += math.prod(layer.shape)
    deviations = np.array(usual + other)
    if (elements < ENOUGH and not norms) or (not usual and len(other) < 2) or deviations.max() > 3.5:
        return False
    return bool(np.square(deviations).mean() <= 1 + 3 * (2 / len(deviations)) ** 0.5)


def _matrix(layer: Layer) -> bool:
    """Whether this is a matrix or a kernel, of enough elements; not the lengths of one (weight norm: n x 1 x 1)."""
    lengths = len(layer.shape) > 2 and math.prod(layer.shape[1:]) == 1
    return len(layer.shape) > 1 and not lengths and math.prod(layer.shape) >= FEWEST


def _of_norm(history: History, name: str) -> bool:
    """Whether this is a scale or a shift of a norm with several channels."""
    owner, layer = history.architecture.get(name.rpartition(".")[0]), history.architecture.get(name)
    return owner is not None and "Norm" in owner.kind and layer is not None and len(layer.shape) == 1 < layer.shape[0]


def _drawn(history: History, layer: Layer) -> tuple[list[float], list[float]]:
    """Standard deviations of a fresh weight: by torch's defaults, and by the laws that people use instead."""
    owner = history.architecture.get(layer.name.rpartition(".")[0])
    kind = owner.kind if owner is not None else ""
    inputs = float(math.prod(layer.shape[1:]))
    outputs = layer.shape[0] * inputs / max(layer.shape[1], 1)
    laws = [(2 / inputs) ** 0.5, (2 / (inputs + outputs)) ** 0.5, inputs**-0.5, 0.02]
    if "Embedding" in kind:
        return [1.0], laws
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}.get(kind.removesuffix("Cell"))
    if gates:
        return [(3 * layer.shape[0] / gates) ** -0.5], laws
    attention = [(2 / (inputs + outputs)) ** 0.5] if "in_proj_weight" in layer.name else []
    return [(3 * inputs) ** -0.5, *attention], laws
