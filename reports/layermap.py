"""A layer statistic as a map, layers x steps: few columns, coded so that zero, broken and unmeasured stay apart."""

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import Array, History
from trainmedic.reports import thin

ZERO, NOT_FINITE, FIRST_CODE, LAST_CODE = 1, 2, 3, 65_535
"""How a cell of a map is coded in 16 bits: 0 not measured, these two, then evenly from the lowest to the highest."""


class Statistic(NamedTuple):
    """How a layer statistic is shown: title, whether on a logarithmic scale, and what counts its non-finite cells."""

    title: str
    log: bool
    nonfinite: str = ""


MAPS: dict[str, Statistic] = {
    "gradient_norm": Statistic("Gradient norm", True, "gradient_nonfinite"),
    "update_ratio": Statistic("Update / weight", True, "weight_nonfinite"),
    "dead_units_lasting": Statistic("Dead units", False),
    "saturated_units": Statistic("Saturated units", False),
    "activation_std": Statistic("Activation spread", True, "activation_nonfinite"),
    "activation_batch_std": Statistic("Activation spread over samples", True, "activation_nonfinite"),
    "activation_zeros": Statistic("Zero activations", False, "activation_nonfinite"),
    "activation_max": Statistic("Largest activation", True, "activation_nonfinite"),
    "weight_norm": Statistic("Weight norm", True, "weight_nonfinite"),
    "gradient_cosine": Statistic("Gradient direction kept (cosine)", False, "gradient_nonfinite"),
    "gradient_zeros": Statistic("Zero gradients", False, "gradient_nonfinite"),
    "predicted_share": Statistic("Share of predictions, per class", False),
    "label_share": Statistic("Share of labels, per class", False),
    "batchnorm_movement": Statistic("Batch norm: movement of the mean", True),
}
"""The layer maps, in order of importance. What is not listed is in the record alone."""


class LayerMap(NamedTuple):
    """``shown`` and ``other`` are codes, layers x columns: of each cell the end that is more unusual, and the other.

    ``steps`` holds the first step of each column and ``last`` the last one; between the two steps of one of ``gaps``
    nothing was recorded. ``low`` and ``high`` are what the lowest and the highest code stand for, with ``log`` as
    decimal logarithms.
    """

    statistic: str
    title: str
    log: bool
    low: float
    high: float
    layers: list[str]
    steps: NDArray[np.int64]
    last: int
    gaps: list[tuple[int, int]]
    shown: NDArray[np.uint16]
    other: NDArray[np.uint16]


def layer_map(history: History, statistic: str, columns: int, rows: Sequence[int] | None = None) -> LayerMap:
    """A layer statistic of ``history`` (of its layers ``rows``, all unless given) in at most ``columns`` columns."""
    table = history.layers(statistic)
    rows = range(len(table.layers)) if rows is None else rows
    known = MAPS.get(statistic) or Statistic(statistic, wants_log([table.values.astype(np.float64)]))
    found = thin.cells(table, columns, rows)
    shown, other = (found.on_log_scale() if known.log else found).shown()
    finite = np.concatenate([shown[np.isfinite(shown)], other[np.isfinite(other)]])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    broken = _not_finite(history, known.nonfinite, [table.layers[row] for row in rows], found.steps)
    codes, others = (_codes(values, low, high, known.log) for values in (shown, other))
    codes[broken] = others[broken] = NOT_FINITE
    return LayerMap(
        statistic=statistic,
        title=known.title,
        log=known.log,
        low=low,
        high=high,
        layers=[table.layers[row] for row in rows],
        steps=found.steps,
        last=found.last,
        gaps=[(int(table.steps[hole]), int(table.steps[hole + 1])) for hole in thin.gaps(table.steps)],
        shown=codes,
        other=others,
    )


def _codes(values: Array, low: float, high: float, log: bool) -> NDArray[np.uint16]:
    span = (high - low) or 1.0
    with np.errstate(invalid="ignore"):
        scaled = FIRST_CODE + np.round((values - low) / span * (LAST_CODE - FIRST_CODE))
    coded = np.where(np.isfinite(values), scaled, 0)
    coded[np.isneginf(values)] = ZERO if log else NOT_FINITE
    coded[np.isposinf(values)] = NOT_FINITE
    return coded.astype(np.uint16)


def _not_finite(history: History, statistic: str, layers: Sequence[str], steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which cells held a NaN or an infinity, as the table that counts them has it."""
    marked = np.zeros((len(layers), len(steps)), dtype=bool)
    if not statistic or statistic not in history:
        return marked
    table = history.layers(statistic)
    at = {layer: i for i, layer in enumerate(table.layers)}
    row, column = np.nonzero(np.nan_to_num(table.values) > 0)
    where = np.clip(np.searchsorted(steps, table.steps[row], side="right") - 1, 0, len(steps) - 1)
    target = {at[layer]: i for i, layer in enumerate(layers) if layer in at}
    for layer, place in zip(column.tolist(), where.tolist(), strict=True):
        if layer in target:
            marked[target[layer], place] = True
    return marked


def wants_log(curves: Sequence[Array]) -> bool:
    """Whether no value is below zero, and those above it range over more than two decades."""
    finite = np.concatenate([values[np.isfinite(values)] for values in curves])
    above = finite[finite > 0]
    return bool(len(above) and finite.min() >= 0 and above.max() > 100 * above.min())


def colours() -> list[str]:
    """Ten colours of viridis, from low to high: as bright as the value is high, also in grey (matplotlib, CC0)."""
    return list(json.loads(files("trainmedic.reports").joinpath("assets/viridis.json").read_text(encoding="utf-8")))
