"""What histograms of a log say: statistics of layers where the name tells whose they are, else series of their own."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import History
from trainmedic.readers.crc32c import Integers

GRADIENT = re.compile(r"(?:grads?|gradients?)[/.:-](.+)|(.+)[/._:](?:grads?|gradients?)", re.IGNORECASE)
ACTIVATION = re.compile(r"activations?[/.:-](.+)|(.+)[/._:]activations?", re.IGNORECASE)
WEIGHT = re.compile(
    r"(?:weights?|params?|parameters?)[/:](.+)|(.+[./](?:weight|bias|kernel|gamma|beta)(?:_\d+)?)", re.IGNORECASE
)
BEHIND = re.compile(r"/(?:histogram|values)(?:_\d+)?$")
"""What Keras and TensorFlow put behind the name of what they draw."""
FAINTEST = 1e-6
"""Share of the mean square that a variance must have: below, its difference from the square of the mean is rounding."""
MOST_CELLS = 1 << 26

Array = NDArray[np.float64]


class Histograms(NamedTuple):
    """One row for each histogram: its tag and step, and count, sum, sum of squares and extremes of what it shows."""

    tags: Integers
    steps: Integers
    number: Array
    total: Array
    squares: Array
    low: Array
    high: Array

    @classmethod
    def joined(cls, parts: Iterable["Histograms"]) -> "Histograms":
        """All rows of all parts."""
        columns = zip(*parts, strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def where(self, rows: NDArray[np.bool_] | Integers) -> "Histograms":
        """The chosen rows."""
        return Histograms(*(column[rows] for column in self))  # type: ignore[arg-type]

    def by_tag(self) -> Iterator[tuple[int, "Histograms"]]:
        """The rows of each tag, the tag that comes first in the log first, as the layers come in most."""
        order = np.argsort(self.tags, kind="stable")
        tags, starts = np.unique(self.tags[order], return_index=True)
        groups = np.split(order, starts[1:])
        for place in np.argsort([group[0] for group in groups if len(group)]).tolist():
            yield int(tags[place]), self.where(groups[place])


NOTHING = Histograms(np.empty(0, np.int64), np.empty(0, np.int64), *(np.empty(0) for _ in range(5)))


def of_buckets(rows: Array) -> tuple[float, float, float, float, float]:
    """Count, sum, sum of squares and extremes of buckets, (n, 3): left, right and count; each as at its middle."""
    filled = rows[rows[:, 2] > 0]
    if not len(filled):
        return 0.0, 0.0, 0.0, 0.0, 0.0
    left, right, count = filled.T
    with np.errstate(all="ignore"):  # of any numbers at all
        middle = left / 2 + right / 2
        whole = float(count.sum()), float(middle @ count), float(middle**2 @ count)
    return *whole, float(left.min()), float(right.max())


def add_to(history: History, names: list[str], found: Histograms) -> list[str]:
    """Put histograms into a history; what is to be noted. ``names`` are those of the tags."""
    found = found.where((found.number > 0) & np.isfinite(found.number))
    measured: dict[str, list[tuple[str, Integers, Array]]] = {}
    for tag, rows in found.by_tag():
        for statistic, layer, values in _statistics(names[tag], rows):
            measured.setdefault(statistic, []).append((layer, rows.steps, values))
    notes = []
    for statistic, columns in measured.items():
        if not statistic:
            for name, steps, values in columns:
                if name not in history:
                    history.add_series(name, steps, values)
        elif sum(len(steps) for _, steps, _ in columns) * len(columns) > MOST_CELLS:
            notes.append(f"{statistic}: more steps and layers than are read from histograms")
        else:
            history.add_layers(statistic, columns)
    return notes


def _statistics(tag: str, rows: Histograms) -> Iterator[tuple[str, str, Array]]:
    """(statistic, layer, values) that histograms of one tag say; without a statistic it is a series of that name."""
    with np.errstate(all="ignore"):  # of any numbers at all
        mean = rows.total / rows.number
        square = rows.squares / rows.number
        variance = square - mean**2
        spread = np.sqrt(np.where(variance < FAINTEST * square, np.nan, np.maximum(variance, 0)))
    name = BEHIND.sub("", tag)
    for kind in (GRADIENT, ACTIVATION, WEIGHT):
        told = kind.fullmatch(name)
        layer = (told[1] or told[2]) if told else ""
        if not layer:
            continue
        if kind is GRADIENT:
            yield "gradient_norm", layer, np.sqrt(np.maximum(rows.squares, 0))
        elif kind is WEIGHT:
            yield "weight_norm", layer, np.sqrt(np.maximum(rows.squares, 0))
            yield "weight_std", layer, spread
        else:
            yield "activation_mean", layer, mean
            yield "activation_std", layer, spread
            yield "activation_max", layer, np.maximum(np.abs(rows.low), np.abs(rows.high))
        return
    known = ~np.isnan(spread)
    yield "", f"{tag}/mean", mean
    if known.all():
        yield "", f"{tag}/std", spread
