"""Robust statistics that several rules share. All take plain arrays and hold for few values, outliers and NaN."""

import math
import re
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from trainmedic.diagnose.memo import remembered
from trainmedic.history import History

Array = NDArray[np.float64]
MAD_TO_SIGMA = 1.4826
"""A normal distribution's standard deviation by its median absolute deviation."""


def noise(values: Array) -> float:
    """Standard deviation of the noise on a curve, whatever its (locally straight) trend.

    From the median absolute second difference, which a straight trend does not enter: var(second difference) = 6 var.
    0 for fewer than 4 values.
    """
    values = values[np.isfinite(values)]
    if len(values) < 4:
        return 0.0
    return MAD_TO_SIGMA * float(np.median(np.abs(np.diff(values, 2)))) / 6**0.5


def preceding_median(values: Array, window: int) -> Array:
    """For each value the median of finite values before it: of the last full block of ``window``, or of all so far.

    Blocks instead of a sliding window: as robust, and linear in the length of a run. NaN where nothing precedes.
    """
    known = np.where(np.isfinite(values), values, np.nan)
    result = np.full(len(values), np.nan)
    early = known[: min(len(values), 2 * window)]
    if len(early):
        padded = np.concatenate([np.full(window, np.nan), early[:-1]])
        result[: len(early)] = medians(sliding_window_view(padded, window))
    blocks = len(values) // window
    later = np.arange(2 * window, len(values))
    if len(later):
        result[later] = medians(known[: blocks * window].reshape(blocks, window))[later // window - 1]
    return result


@remembered
def progress(history: History, name: str = "train/loss", span: int = 10) -> tuple[NDArray[np.int64], Array]:
    """How much of its first level a loss has come down by, at each of its steps; 0.5 is half, negative is worse.

    The first level is the lowest of: the first value (an explosion comes after it), the median of the first ``span``,
    and chance, where it is known (a start above it is one of bad weights, and to come down to it is to learn nothing).
    The present level is the median of the last ``span``, by blocks.
    """
    steps, values = history.series(name)
    start = float(np.fmin.reduce([*values[np.isfinite(values)][:1], median(values[:span])]))
    level = uniform_level(history)
    start = min(start, level) if start < 4 * level else start  # far above it may be a sum
    here = preceding_median(values, span)
    here[-1] = median(values[-span:])
    return steps, (start - here) / max(abs(start), np.finfo(float).tiny)


def uniform_level(history: History) -> float:
    """The cross-entropy of taking all classes for equally likely, infinite where that is not known."""
    classes = history.facts.get("classes")
    if history.facts.get("loss") not in ENTROPIES or history.facts.get("reduction", "mean") != "mean":
        return math.inf
    return math.log(classes) if isinstance(classes, int) and classes > 1 else math.inf


def equal_level(history: History) -> float:
    """The same, where a loss of two classes by one output counts too."""
    return math.log(2) if history.facts.get("loss") in BINARY else uniform_level(history)


ENTROPIES = ("CrossEntropyLoss", "cross_entropy", "NLLLoss", "nll_loss")
BINARY = ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits", "BCELoss", "binary_cross_entropy")
SQUARES = ("MSELoss", "mse_loss")
ABSOLUTES = ("L1Loss", "l1_loss")
NORMAL_ABSOLUTE = 0.8
"""Mean absolute value of a normal distribution of standard deviation 1: sqrt(2 / pi)."""


@remembered
def chance_level(history: History, until: float = math.inf) -> float | None:
    """The loss of who knows how targets are distributed, and nothing of the inputs; ``None`` where it cannot be told.

    Of classes the entropy of the labels seen (of all classes alike, where they were not counted), of yes and no the
    entropy of their share, of squared errors the variance of the targets, of absolute ones four fifths of their
    standard deviation. Only of losses that are means of one criterion, by what was measured up to step ``until``.
    """
    loss, classes = history.facts.get("loss"), history.facts.get("classes")
    if history.facts.get("reduction", "mean") != "mean":
        return None
    if loss in ENTROPIES and isinstance(classes, int) and classes > 1:
        shares = label_shares(history, until)
        return math.log(classes) if shares is None else float(-np.sum(shares * np.log(np.maximum(shares, 1e-12))))
    if loss in BINARY and _measured(history, "target/binary", until) == 1:
        share = min(max(_measured(history, "target/mean", until), 0.0), 1.0)
        return float(-sum(p * math.log(max(p, 1e-12)) for p in (share, 1 - share)))
    spread = target_spread(history, until)
    if not 0 < spread < 1e18:
        return None
    return spread**2 if loss in SQUARES else NORMAL_ABSOLUTE * spread if loss in ABSOLUTES else None


@remembered
def target_spread(history: History, until: float = math.inf) -> float:
    """Standard deviation of the targets, NaN where it is not known.

    Within batches, and, where these are too small to show it, of their means: the law of total variance.
    """
    within = _measured(history, "target/std", until)
    size = history.facts.get("batch_size")
    if not isinstance(size, int) or size > 32 or "target/mean" not in history or not within >= 0:
        return within
    steps, means = history.series("target/mean")
    means = means[(steps <= until) & np.isfinite(means)]
    own = history.series("target/std")
    inside = own.values[(own.steps <= until) & np.isfinite(own.values)]
    with np.errstate(all="ignore"):
        return float((np.mean(inside**2) + np.var(means)) ** 0.5) if len(means) > 10 and len(inside) else within


@remembered
def label_shares(history: History, until: float = math.inf) -> Array | None:
    """How often each class was asked for, 0 to 1; ``None`` where that was not counted."""
    if "label_share" not in history:
        return None
    table = history.layers("label_share")
    rows = table.values[table.steps <= until].astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < 1e-3)]
    return np.asarray(rows.mean(axis=0)) if len(rows) else None


@remembered
def reconstructs(history: History) -> bool:
    """Whether the targets are the inputs: then nothing about them is noise, and all of them can be explained."""
    pairs = (("input/std", "target/std"), ("input/min", "target/min"), ("input/max", "target/max"))
    known = [(_measured(history, a), _measured(history, b)) for a, b in pairs]
    spread = known[0][1]
    return spread > 0 and all(abs(a - b) < 0.1 * spread for a, b in known)


@remembered
def _measured(history: History, name: str, until: float = math.inf) -> float:
    if name not in history:
        return float("nan")
    steps, values = history.series(name)
    return median(values[steps <= until])


ADVERSARIES = re.compile(
    r"(?:^|[^a-z])(?:discriminator|generator|critic|actor|policy|reward|rewards|return|returns|loss_?[dg]|[dg]_?loss)"
    r"(?![a-z])",
    re.IGNORECASE,
)
"""Names that series have where players compete, or where an agent's own data moves the loss."""


@remembered
def adversarial(history: History) -> bool:
    """Whether players compete (several optimizers, losses of several players) or an agent makes its own data.

    Then a loss is no measure of progress.
    """
    optimizers = history.facts.get("optimizers", 1)
    if isinstance(optimizers, int) and optimizers > 1:
        return True
    return any(ADVERSARIES.search(name) for name in history.names())


CYCLES = ("CyclicLR", "OneCycleLR", "CosineAnnealingWarmRestarts")


def rate_at(history: History, steps: NDArray[np.int64]) -> Array:
    """The learning rate at each of ``steps``: the newest recorded until then; NaN where none is known."""
    if "optimizer/learning_rate" not in history:
        return np.full(len(steps), np.nan)
    known, rates = history.series("optimizer/learning_rate")
    place = np.searchsorted(known, steps, side="right") - 1
    return np.where(place >= 0, rates[np.maximum(place, 0)], np.nan)


@remembered
def update_size(history: History, until: float = math.inf) -> float | None:
    """|update| / |weight| of the weight matrices that move, the median over them and the newer half of the steps."""
    if "update_ratio" not in history:
        return None
    table = history.layers("update_ratio")
    layers = history.architecture
    columns = [i for i, name in enumerate(table.layers) if name in layers and len(layers[name].shape) >= 2]
    rows = int(np.searchsorted(table.steps, until, side="right"))
    recent = table.values[rows // 2 : rows][:, columns].astype(np.float64)
    moving = recent[np.isfinite(recent) & (recent > 0)]
    return float(np.median(moving)) if moving.size else None


@remembered
def never_moved_by(history: History, limit: float, until: float = math.inf) -> bool:
    """Whether |update| / |weight| stayed below ``limit`` in nine of ten measured steps; False where it is not known."""
    if "update_ratio" not in history:
        return False
    table = history.layers("update_ratio")
    layers = history.architecture
    columns = [i for i, name in enumerate(table.layers) if name in layers and len(layers[name].shape) >= 2]
    rows = int(np.searchsorted(table.steps, until, side="right"))
    sizes = table.values[:rows][:, columns].astype(np.float64)
    each = medians(np.where(sizes > 0, sizes, np.nan)) if columns else np.empty(0)
    each = each[np.isfinite(each)]
    return bool(len(each)) and float(np.quantile(each, 0.9)) < limit


def share_done(history: History, step: float) -> float | None:
    """Which share of its steps a run has done; ``None`` where its length is not known."""
    total = history.facts.get("total_steps")
    if not isinstance(total, int | float) or isinstance(total, bool) or not total > 0:
        return None
    return (step - history.first_step + 1) / total


MOST = 4_096
"""Values of a curve that are looked at at once."""


def thinned(values: Array) -> Array:
    """A curve by at most ``MOST`` of its values, evenly spread, counted back from the newest."""
    every = 1
    while len(values) > every * MOST:
        every *= 2
    return values[(len(values) - 1) % every :: every]


def looks(steps: NDArray[np.int64]) -> NDArray[np.intp]:
    """Places in a series at which it is judged: after each tenth that the run has become longer.

    They follow from the past alone, so that a run is judged after the fact as it would have been live; and they are
    few, so that cost stays bounded.
    """
    if not len(steps):
        return np.empty(0, dtype=np.intp)
    elapsed = steps - steps[0]
    powers = 1.1 ** np.arange(0, math.log(float(elapsed[-1]) + 1) / math.log(1.1) + 1)
    places = np.searchsorted(elapsed, np.concatenate([[0], np.ceil(powers)]))
    places = places[places < len(steps)]
    return np.unique(np.searchsorted(steps, steps[places], side="right") - 1)


def holds_since(judged: Callable[[int], object], steps: NDArray[np.int64]) -> int | None:
    """The look since which a judgement has held, without a break, until now; ``None`` where it does not hold now.

    ``judged(i)`` sees the values up to place ``i`` only. A healthy run costs one call.
    """
    end = len(steps) - 1
    if end < 0 or not judged(end):
        return None
    since = None
    for place in looks(steps)[::-1].tolist():
        if place != end and not judged(place):
            break
        since = place
    return since


def block_medians(values: Array, size: int) -> Array:
    """Medians of blocks of ``size`` values, the last of which ends with the newest; a rest at the start is left out."""
    count = len(values) // size
    return medians(values[len(values) - count * size :].reshape(count, size)) if count else np.empty(0)


def rejected_steps(history: History) -> NDArray[np.int64]:
    """Steps that the loss scaler or the medic did not take: they changed nothing."""
    if "optimizer/skipped" not in history:
        return np.empty(0, dtype=np.int64)
    steps, skipped = history.series("optimizer/skipped")
    return np.asarray(steps[skipped > 0])


def in_a_row(flags: NDArray[np.bool_], count: int) -> NDArray[np.bool_]:
    """Flags that end a run of at least ``count`` in a row."""
    return often(flags, count, count)


def often(flags: NDArray[np.bool_], count: int, among: int) -> NDArray[np.bool_]:
    """Flags that are at least the ``count``-th among the ``among`` newest."""
    total = np.cumsum(flags)
    before = np.concatenate([np.zeros(among, dtype=total.dtype), total])[: len(total)]
    return np.asarray(flags & (total - before >= count))


def medians(rows: Array) -> Array:
    """The median of each row's finite values (rows x values -> rows), NaN for rows without any."""
    if not rows.shape[1]:
        return np.full(len(rows), np.nan)
    ordered = np.sort(np.where(np.isfinite(rows), rows, np.nan), axis=1)  # NaN sorts last
    count = np.isfinite(ordered).sum(axis=1)
    row = np.arange(len(rows))
    middle = (ordered[row, np.maximum(count - 1, 0) // 2] + ordered[row, np.minimum(count // 2, rows.shape[1] - 1)]) / 2
    return np.where(count > 0, middle, np.nan)


def median(values: Array) -> float:
    """The median of the finite values, NaN if there are none."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")


def together(history: History, first: str, second: str) -> tuple[NDArray[np.int64], Array, Array]:
    """Two series at the steps that have both."""
    a, b = history.series(first), history.series(second)
    if np.array_equal(a.steps, b.steps) and (np.diff(a.steps) > 0).all():
        return a.steps, a.values, b.values
    steps, of_a, of_b = np.intersect1d(a.steps, b.steps, return_indices=True)
    return steps, a.values[of_a], b.values[of_b]


def least_of_newest(values: Array, window: int) -> Array:
    """For each value the smallest of it and those before it, ``window`` in all, NaN left out."""
    size, least = 1, values
    while 2 * size <= window:
        least, size = _with_earlier(least, size), 2 * size
    return _with_earlier(least, window - size)


def _with_earlier(values: Array, lag: int) -> Array:
    earlier = np.concatenate([np.full(min(lag, len(values)), np.nan), values[: max(0, len(values) - lag)]])
    return np.asarray(np.fmin(values, earlier))


def gone(curve: Array) -> tuple[float, float]:
    """What a curve has come down by from the third to the last quarter of it, and the standard error of that.

    Medians, and the standard error by the larger of the noise of neighbours and the spread of ten blocks around the
    medians, so that noise which lasts from value to value does not look like progress.
    """
    quarter = max(1, len(curve) // 4)
    third, last = curve[-2 * quarter : -quarter], curve[-quarter:]
    if len(curve) < 8:
        return 0.0, math.inf
    by_values = 1.25 * noise(curve[-2 * quarter :]) * (2 / quarter) ** 0.5
    parts = [block_medians(part, max(1, len(part) // 5)) for part in (third, last)]
    by_blocks = float(np.hypot(*(np.std(part, ddof=1) / len(part) ** 0.5 for part in parts)))
    return median(third) - median(last), max(by_values, by_blocks)


@remembered
def correct_by_chance(history: History, until: float) -> float:
    """Accuracy of always naming the commonest class, 0 to 1; NaN where labels were not counted."""
    shares = label_shares(history, until)
    return float(shares.max()) if shares is not None and len(shares) else float("nan")


def wrong(history: History, values: Array, until: float) -> tuple[Array, float] | None:
    """A curve of what is wrong until a step (thinned), and what of it the best constant answer gets wrong.

    The training loss, whose ``values`` until then are given. Where its chance is not known, the errors of training, if
    the loss stands where a cross-entropy of these labels would: else its outputs may be no scores of classes. ``None``
    where neither is known.
    """
    chance = chance_level(history, until)
    if chance is not None and chance > 0:
        return thinned(values), chance
    own, commonest = newest(history, "output/accuracy", until, share=1.0), correct_by_chance(history, until)
    shares = label_shares(history, until)
    if len(own) < 40 or shares is None or not commonest < 1:
        return None
    entropy = float(-np.sum(shares * np.log(np.maximum(shares, 1e-12))))
    alike = 0.85 * entropy < median(values[len(values) // 2 :]) < 1.2 * entropy
    return (thinned(1 - own), 1 - commonest) if alike else None


def newest(history: History, name: str, until: float, share: float = 0.5) -> Array:
    """The newer ``share`` of the finite values of a series up to a step; empty where there is none."""
    if name not in history:
        return np.empty(0)
    steps, values = history.series(name)
    values = values[: int(np.searchsorted(steps, until, side="right"))]
    return np.asarray(values[int(len(values) * (1 - share)) :][np.isfinite(values[int(len(values) * (1 - share)) :])])


@remembered
def beats_chance(history: History, until: float, *, trained: bool = True) -> bool:
    """Whether the accuracy, in training or on data apart, lies above that of the commonest class beyond doubt.

    Five standard errors; where it is not known of how many samples, five hundredths. ``trained=False``
    leaves the training's own out: samples can be learnt by heart. False where no accuracy is known.
    """
    chance = correct_by_chance(history, until)
    if not math.isfinite(chance):
        return False
    own = newest(history, "output/accuracy", until)
    size = history.facts.get("batch_size", 1)
    samples = min(size, 256) * len(own) if isinstance(size, int) and size > 0 else len(own)
    doubt = 5 * (chance * (1 - chance) / max(1, samples)) ** 0.5
    if trained and len(own) and float(own.mean()) > chance + doubt:
        return True
    apart = newest(history, "validation/accuracy", until, share=0.25)
    return bool(len(apart)) and float(apart.mean()) > chance + 0.05
