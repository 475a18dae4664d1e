"""Histograms of many layers in the same buckets: signed and logarithmic, four to each power of two."""

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST, LARGEST = -40, 40
"""Powers of two. What is smaller than the first is counted with zero, what is larger than the second at the end."""

EDGES = np.ldexp([1.0, 1.25, 1.5, 1.75] * (LARGEST - SMALLEST), np.repeat(np.arange(SMALLEST, LARGEST), 4))
EDGES = np.append(EDGES, 2.0**LARGEST)
"""Where the buckets of positive numbers begin and the last one ends; those of negative numbers mirror them."""

SIDE = len(EDGES) - 1
"""Buckets of positive numbers, and as many of negative ones; between them lies the one with zero."""

LIMITS = np.concatenate([-EDGES[-2::-1], EDGES])
"""Where each bucket ends, the most negative one first."""

Floats = NDArray[np.float32]


class Counted(NamedTuple):
    """Histograms of some layers' ``kind`` (``"weights"``, ``"gradients"``) at one step, of a sample of each.

    ``numbers`` is (layers, 4 + buckets): the smallest and the largest number, the sum, the sum of squares as a multiple
    of the square of the largest magnitude, and the counts. ``stands_for`` tells for each layer how many elements each
    one of its sample stands for.
    """

    kind: str
    layers: Sequence[str]
    stands_for: Sequence[float]
    numbers: Floats

    def only(self, names: Container[str]) -> "Counted":
        """The part of it that is about some layers."""
        rows = [i for i, layer in enumerate(self.layers) if layer in names]
        layers, stands_for = [self.layers[i] for i in rows], [self.stands_for[i] for i in rows]
        return Counted(self.kind, layers, stands_for, self.numbers[rows])
