"""The record of a run: plain numbers in step order, and the only thing that rules see.

A ``History`` holds four things:

- **series**: one number per step at run level (``"train/loss"``, ``"gradient/norm"``). A NaN was really seen.
- **layer tables**: one per statistic (``"gradient_norm"``), steps x layers. A NaN in a table means "not measured";
  values that were measured and are not finite are counted in tables of their own (``"gradient_nonfinite"``).
- **architecture**: the table of layers, in order of execution.
- **facts**: what the run was given (optimizer, schedule, loss, classes, clipping, precision, versions).

The names that the live probe writes are listed in ``SERIES`` and ``STATISTICS``; readers map a log's own names onto
them and keep what they do not know under its own name.
"""

import io
import json
import operator
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from trainmedic.buckets import Counted
from trainmedic.errors import UnreadableError, UsageError, nearest

SERIES: dict[str, str] = {
    "train/loss": "loss of the training batches, as the user logged it",
    "validation/loss": "loss on data that is not trained on",
    "gradient/norm": "2-norm of all gradients together, before clipping, without the loss scale",
    "gradient/nonfinite": "parameters whose gradient holds a NaN or an infinity",
    "gradient/clipped": "by what the gradients were multiplied between the backward pass and the step; 1: not clipped",
    "gradient/carried": "share of a gradient that was there before the step's first backward pass: 0 after zero_grad",
    "gradient/signal": "squared norm of the true gradient, estimated from micro-batches; average it over many steps",
    "gradient/noise": "variance of a micro-batch's gradient, likewise; noise / signal: noise scale in micro-batches",
    "optimizer/learning_rate": "learning rate of the first parameter group (others: .../1, .../2)",
    "optimizer/skipped": "1 where the loss scaler, or the medic, rejected the step",
    "optimizer/loss_scale": "scale of the loss in mixed precision",
    "time/step": "seconds from one step to the next",
    "time/data": "seconds spent waiting for the loader in that step",
    "memory/host": "resident memory of the process in bytes",
    "memory/device": "bytes that tensors hold on CUDA devices, every tenth step",
    "input/mean": "mean of what the first layer with weights takes",
    "input/std": "its standard deviation",
    "input/min": "its smallest element",
    "input/max": "its largest element",
    "input/feature_scale": "median over features of their root mean square, constant ones left out",
    "input/feature_scale_max": "the largest of them",
    "input/constant_features": "share of features that do not vary in the batch, 0 to 1",
    "output/mean": "mean of what the criterion takes, or else of what the model puts out",
    "output/std": "its standard deviation",
    "output/min": "its smallest element",
    "output/max": "its largest element",
    "output/batch_std": "standard deviation over the samples of a batch, root mean square over the outputs",
    "output/row_sum": "mean over samples of the sum over classes",
    "output/row_sum_error": "largest distance of such a sum from 1: 0 where outputs are probabilities",
    "output/log_sum_exp": "largest |log sum exp| over classes: 0 where outputs are log-probabilities",
    "output/accuracy": "share of samples whose largest score is at the label, of those looked at",
    "target/mean": "mean of what outputs are held against, where it is not a class",
    "target/std": "its standard deviation",
    "target/min": "its smallest element",
    "target/max": "its largest element",
    "target/binary": "share of targets that are 0 or 1",
    "target/same_shape": "1 where output and target have one shape, else 0",
}
"""Run-level series with a fixed meaning; other metrics are ``train/<metric>`` and ``validation/<metric>``."""

STATISTICS: dict[str, str] = {
    "gradient_norm": "per parameter: 2-norm of its gradient, before clipping, without the loss scale",
    "gradient_mean_abs": "per parameter: mean absolute gradient, on at most 4,096 elements",
    "gradient_zeros": "per parameter: share of gradient elements that are exactly zero, 0 to 1, on the same elements",
    "gradient_cosine": "per parameter: cosine between its gradients of this step and of the one before, likewise",
    "gradient_nonfinite": "per parameter: 1 where its gradient holds a NaN or an infinity, else 0",
    "weight_norm": "per parameter: 2-norm",
    "weight_std": "per parameter: standard deviation of its elements, on at most 4,096, now and then",
    "equal_units": "per weight: share of units (slices along the first dimension) equal to another, now and then",
    "weight_nonfinite": "per parameter: 1 where it holds a NaN or an infinity, else 0",
    "update_ratio": "per parameter: |update| / |weight| as the optimizer really made it, on at most 4,096 elements",
    "activation_mean": "per module: mean of the output",
    "activation_std": "per module: standard deviation of the output",
    "activation_batch_std": "per module: standard deviation over the samples of a batch, root mean square over outputs",
    "activation_max": "per module: largest absolute output",
    "activation_zeros": "per module: share of outputs that are exactly zero, 0 to 1",
    "saturated_units": "per sigmoid, tanh or softmax: share of units on the flat part for 95 % of the samples",
    "saturated_outputs": "per sigmoid, tanh or softmax: share of outputs on the flat part",
    "batchnorm_training": "per batch norm: 1 in training mode, 0 in evaluation mode",
    "batchnorm_values": "per batch norm: values per channel that its means were taken of",
    "batchnorm_movement": "per batch norm: |change of the running mean| since measured last, in standard deviations",
    "label_share": "per class: share of the batch's labels",
    "predicted_share": "per class: share of the batch's predictions",
    "activation_nonfinite": "per module: 1 where its output holds a NaN or an infinity, else 0",
    "dead_units_lasting": "per rectifier: share of units silent for each of the last `facts['dead_after']` samples",
    "dead_samples": "per rectifier: samples its units have been watched for so far",
}
"""Layer statistics that the live probe writes."""

Array = NDArray[np.float64]


class Series(NamedTuple):
    """Values of one quantity: ``steps`` (n, int64, ascending) and ``values`` (n, float64)."""

    steps: NDArray[np.int64]
    values: Array


class LayerTable(NamedTuple):
    """One statistic of many layers: ``values`` is steps x layers, NaN where a layer was not measured."""

    steps: NDArray[np.int64]
    layers: tuple[str, ...]
    values: NDArray[np.float32]

    def latest(self) -> list[tuple[str, float]]:
        """Each layer with its newest measured value, layers never measured left out."""
        values = LayerTable(self.steps[::-1], self.layers, self.values[::-1]).first()[1]
        return [(layer, float(value)) for layer, value in zip(self.layers, values, strict=True) if value == value]

    def first(self, since: int = 0) -> tuple[NDArray[np.int64], Array]:
        """Per layer the step and the value of its first measurement from row ``since`` on; NaN where there is none."""
        rows = self.values[since:]
        if not len(rows):
            return np.zeros(len(self.layers), dtype=np.int64), np.full(len(self.layers), np.nan)
        place = np.argmax(~np.isnan(rows), axis=0)
        return self.steps[since + place], rows[place, np.arange(rows.shape[1])].astype(np.float64)

    def column(self, layer: str) -> Series:
        """The measured values of one layer."""
        values = self.values[:, self.layers.index(layer)].astype(np.float64)
        measured = ~np.isnan(values)
        return Series(self.steps[measured], values[measured])


@dataclass(frozen=True)
class Layer:
    """One row of the table of layers: a module, or (kind ``"parameter"``) one of its parameters.

    ``order`` counts first executions in the forward pass from 0; -1 where it was never seen to run. ``shape`` is that
    of the parameter, or of one sample of the module's output. ``activation`` names the non-linearity that a module
    applies (``"relu"``, ``"sigmoid"``), where that is known.
    """

    name: str
    kind: str = ""
    order: int = -1
    shape: tuple[int, ...] = ()
    trainable: bool = True
    activation: str | None = None


@dataclass
class Snapshot:
    """One step's plain numbers, as the probe hands them over. No tensors."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    histograms: list[Counted] = field(default_factory=list)  # for the event file; not recorded


FIRST = 64
"""Rows at the start of a recording that are never thinned: how a run began is what later steps are compared with."""


class _Rows:
    """Rows of numbers in step order that stay within ``limit``: first and newer half as recorded, between them thinned.

    Thinning takes, of the older half, the rows that were thinned least often, so that all of it keeps about the same
    resolution, however long the run. Of a single column, every eight values become four: the smallest, the largest,
    the first that is not finite, and what else there is room for, each at its own step. Of several columns, every four
    rows become two, with the smallest and the largest value of each column; the steps are the first and the last of the
    four. So an extreme is never averaged away, and stays where it was as precisely as that part is still recorded.
    """

    def __init__(self, columns: Sequence[str], dtype: type, limit: int | None) -> None:
        self.columns: dict[str, int] = {c: i for i, c in enumerate(columns)}
        self.limit = limit
        self.count = 0
        self._steps = np.empty(16, dtype=np.int64)
        self._values: NDArray[Any] = np.full((16, len(columns)), np.nan, dtype=dtype)
        self._thinned = np.zeros(16, dtype=np.uint8)  # how often each row was

    @property
    def steps(self) -> NDArray[np.int64]:
        return self._steps[: self.count]

    @property
    def values(self) -> NDArray[Any]:
        return self._values[: self.count]

    def append(self, step: int, row: Mapping[str, float]) -> None:
        for column in row:
            if column not in self.columns:
                self.columns[column] = len(self.columns)
        if len(self.columns) > self._values.shape[1]:
            self._grow(len(self._steps), max(len(self.columns), 2 * self._values.shape[1]))
        if self.limit is not None and self.count >= self.limit:
            self._thin()
        if self.count == len(self._steps):
            self._grow(max(16, 2 * self.count), self._values.shape[1])
        at = self.count
        if at and step < self._steps[at - 1]:  # a late value, such as a validation logged for an earlier step
            at = int(np.searchsorted(self.steps, step, side="right"))
            for array in (self._steps, self._values, self._thinned):
                array[at + 1 : self.count + 1] = array[at : self.count].copy()
        self._steps[at] = step
        self._thinned[at] = 0
        self._values[at] = np.nan
        with np.errstate(over="ignore"):
            for column, value in row.items():
                self._values[at, self.columns[column]] = value
        self.count += 1

    def append_one(self, step: int, value: float) -> None:
        """:meth:`append` for a single column, in a fraction of its time."""
        at = self.count
        if at == len(self._steps) or at == self.limit or (at and step < self._steps[at - 1]):
            self.append(step, dict.fromkeys(self.columns, value))
            return
        self._steps[at] = step
        self._values[at, 0] = value
        self._thinned[at] = 0
        self.count = at + 1

    def append_several(self, steps: Sequence[int], values: Sequence[float]) -> None:
        """:meth:`append` for several values of a single column; in one piece where they are in order and have room."""
        at, end = self.count, self.count + len(steps)
        ordered = all(map(operator.le, steps, steps[1:])) and (not at or steps[0] >= self._steps[at - 1])
        if not ordered or end > len(self._steps) or (self.limit is not None and end > self.limit):
            for step, value in zip(steps, values, strict=True):
                self.append_one(step, value)
            return
        self._steps[at:end] = steps
        self._values[at:end, 0] = values
        self._thinned[at:end] = 0
        self.count = end

    def fill(self, steps: Iterable[int], values: NDArray[Any]) -> None:
        """Take whole arrays at once; sorted by step, in the given order within one step."""
        as_steps = np.asarray(steps, dtype=np.int64)
        if values.shape[:1] != as_steps.shape or values.size != len(as_steps) * len(self.columns):
            raise ValueError(f"{len(as_steps)} steps and {len(self.columns)} columns, but values of {values.shape}")
        order = np.argsort(as_steps, kind="stable")
        self._steps = as_steps[order]
        self._values = np.array(values.reshape(len(as_steps), len(self.columns))[order], dtype=self._values.dtype)
        self._thinned = np.zeros(len(as_steps), dtype=np.uint8)
        self.count = len(as_steps)

    def since(self, step: int) -> "_Rows":
        """The rows from ``step`` on, without a limit. Shares memory; what is added to it is its own."""
        part = _Rows(list(self.columns), self._values.dtype.type, None)
        rows = slice(int(np.searchsorted(self.steps, step, side="left")), self.count)
        part._steps, part._thinned = self._steps[rows], self._thinned[rows]
        part._values = self._values[rows, : len(self.columns)]
        part.count = len(part._steps)
        return part

    def without(self, columns: Sequence[int], first: int, last: float) -> "_Rows":
        """A copy in which these columns are empty in these steps; rows in which nothing is left are gone."""
        part = _Rows(list(self.columns), self._values.dtype.type, None)
        values, within = self.values[:, : len(self.columns)].copy(), (self.steps >= first) & (self.steps <= last)
        for column in columns:
            values[within, column] = np.nan
        kept = ~within | (len(columns) < len(self.columns))
        part._steps, part._thinned, part._values = self.steps[kept], self._thinned[: self.count][kept], values[kept]
        part.count = len(part._steps)
        return part

    def _grow(self, rows: int, columns: int) -> None:
        steps, values, thinned = self._steps, self._values, self._thinned
        self._steps = np.empty(rows, dtype=np.int64)
        self._thinned = np.zeros(rows, dtype=np.uint8)
        self._values = np.full((rows, columns), np.nan, dtype=values.dtype)
        self._steps[: self.count], self._thinned[: self.count] = steps[: self.count], thinned[: self.count]
        self._values[: self.count, : values.shape[1]] = values[: self.count]

    def _thin(self) -> None:
        rows = self._thinned_least()
        kept = self._extremes(rows) if self._values.shape[1] == 1 else self._merged(rows)
        self._thinned[kept] += 1
        stays = np.ones(self.count, dtype=bool)
        stays[rows], stays[kept] = False, True
        left = int(stays.sum())
        for array in (self._steps, self._values, self._thinned):
            array[:left] = array[: self.count][stays]
        self.count = left

    def _thinned_least(self) -> NDArray[np.intp]:
        """Rows of the older half that were thinned least often, where they are enough to be worth it; times eight."""
        times = self._thinned[FIRST : self.count // 2]
        counts = np.bincount(times)
        level = int(np.argmax(counts >= max(8, len(times) // 64)))
        rows = np.flatnonzero(times == level)
        return rows[: len(rows) // 8 * 8] + FIRST

    def _extremes(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of every eight rows of a single column the four that matter most."""
        groups = rows.reshape(-1, 8)
        values = self._values[groups, 0]
        finite = np.isfinite(values)
        each = np.arange(len(groups))
        worth = np.where(finite, 0, 1)
        worth[each, np.argmin(np.where(finite, values, np.inf), axis=1)] += 2
        worth[each, np.argmax(np.where(finite, values, -np.inf), axis=1)] += 2
        worth[each, np.argmin(finite, axis=1)] += 2
        best = np.argsort(-worth, axis=1, kind="stable")[:, :4]
        return groups[each[:, None], best].reshape(-1)

    def _merged(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Put the smallest values of every four rows into the first of them, and the largest into the last."""
        groups = rows.reshape(-1, 4)
        values = self._values[groups]
        self._values[groups[:, 0]] = np.fmin.reduce(values, axis=1)
        self._values[groups[:, 3]] = np.fmax.reduce(values, axis=1)
        return groups[:, [0, 3]].reshape(-1)


class History:
    """What was recorded of one run.

    ``bounded=True`` keeps a live recording within a fixed size (about 20 MB for 300 layers, whatever its length):
    the newest values in full, older ones thinned without losing extremes. What is read from a log is kept whole.

    ``lines`` is (2, n) where the log has lines: steps, ascending, and the line, from 1, that first tells of each. It
    belongs to the log and is not saved.
    """

    FORMAT = "trainmedic-history-1"
    SERIES_LIMIT = 16_384
    TABLE_LIMIT = 1_024
    LATE = 1_024

    def __init__(self, *, bounded: bool = False) -> None:
        self.bounded = bounded
        self.facts: dict[str, Any] = {}
        self.architecture: dict[str, Layer] = {}
        self.lines: NDArray[np.int64] | None = None
        self._taken: dict[str, _Rows] = {}
        self._late: dict[str, tuple[list[int], list[float]]] = {}  # values that are not yet among their series' rows
        self._room = self.LATE
        self._tables: dict[str, _Rows] = {}

    @property
    def _series(self) -> dict[str, _Rows]:
        """All series, with what was added lately: a step's few numbers are put in their places when someone asks."""
        if self._late:
            late, self._late, self._room = self._late, {}, self.LATE
            for name, (steps, values) in late.items():
                rows = self._taken.get(name)
                if rows is None:
                    rows = self._taken[name] = _Rows([name], np.float64, self.SERIES_LIMIT if self.bounded else None)
                rows.append_several(steps, values)
        return self._taken

    # -- writing -------------------------------------------------------------------------------------------------

    def add(self, name: str, step: int, value: float) -> None:
        """Record one value of one series."""
        late = self._late.get(name)
        if late is None:
            late = self._late[name] = [], []
        late[0].append(step)
        late[1].append(value)
        self._room -= 1
        if not self._room:
            _ = self._series

    def add_series(self, name: str, steps: Iterable[int], values: Iterable[float]) -> None:
        """Record a whole series at once (as readers do); ``steps`` and ``values`` have equal length."""
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        rows = self._series[name] = _Rows([name], np.float64, None)
        rows.fill(steps if isinstance(steps, np.ndarray) else list(steps), array)

    def add_layers(
        self, statistic: str, columns: Iterable[tuple[str, NDArray[np.int64], NDArray[np.floating[Any]]]]
    ) -> None:
        """Record one statistic of many layers at once (as readers do): name, steps and values of each.

        Of several values of a layer at one step the last one counts.
        """
        columns = list(columns)
        layers = list(dict.fromkeys(layer for layer, _, _ in columns))
        steps = np.unique(np.concatenate([steps for _, steps, _ in columns])) if columns else np.empty(0, np.int64)
        values = np.full((len(steps), len(layers)), np.nan, dtype=np.float32)
        for layer, at, measured in columns:
            with np.errstate(over="ignore"):
                values[np.searchsorted(steps, at), layers.index(layer)] = measured
        rows = self._tables[statistic] = _Rows(layers, np.float32, None)
        rows.fill(steps, values)

    def record(self, snapshot: Snapshot) -> None:
        """Record one step's numbers."""
        for name, value in snapshot.values.items():
            self.add(name, snapshot.step, value)
        for statistic, row in snapshot.layers.items():
            if not row:
                continue
            rows = self._tables.get(statistic)
            if rows is None:
                limit = self.TABLE_LIMIT if self.bounded else None
                rows = self._tables[statistic] = _Rows(list(row), np.float32, limit)
            rows.append(snapshot.step, row)

    def drop_after(self, step: int) -> None:
        """Forget everything recorded after ``step``: a rewound run has not lived those steps."""
        for rows in (*self._series.values(), *self._tables.values()):
            rows.count = int(np.searchsorted(rows.steps, step, side="right"))

    # -- reading -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all series."""
        return [name for name, rows in self._series.items() if rows.count]

    def statistics(self) -> list[str]:
        """Names of all layer tables."""
        return [name for name, rows in self._tables.items() if rows.count]

    def __contains__(self, name: object) -> bool:
        rows = self._series.get(name) or self._tables.get(name)  # type: ignore[call-overload]
        return rows is not None and rows.count > 0

    def series(self, name: str) -> Series:
        """Steps and values of one series; ``KeyError`` with the nearest known name otherwise."""
        if name not in self._series or not self._series[name].count:
            raise KeyError(f"no series {name!r} in this history{nearest(name, self.names())}")
        rows = self._series[name]
        return Series(rows.steps, rows.values[:, 0])

    def layers(self, statistic: str) -> LayerTable:
        """One statistic of all layers, as steps x layers; ``KeyError`` with the nearest known name otherwise."""
        if statistic not in self._tables or not self._tables[statistic].count:
            raise KeyError(f"no statistic {statistic!r} in this history{nearest(statistic, self.statistics())}")
        rows = self._tables[statistic]
        return LayerTable(rows.steps, tuple(rows.columns), rows.values[:, : len(rows.columns)])

    @property
    def first_step(self) -> int:
        """The first recorded step, 0 in an empty history."""
        return int(min((rows.steps[0] for rows in self._all() if rows.count), default=0))

    @property
    def last_step(self) -> int:
        """The last recorded step, 0 in an empty history."""
        return int(max((rows.steps[-1] for rows in self._all() if rows.count), default=0))

    def line_of(self, step: int) -> int | None:
        """The line of the log that first tells of ``step``, or of the last step before it; ``None`` without lines."""
        if self.lines is None:
            return None
        at = int(np.searchsorted(self.lines[0], step, side="right")) - 1
        return int(self.lines[1, at]) if at >= 0 else None

    def since(self, step: int) -> "History":
        """The part of this history from ``step`` on, sharing the facts and the table of layers."""
        part = History()
        part.facts, part.architecture = self.facts, self.architecture
        for source, target in ((self._series, part._series), (self._tables, part._tables)):
            target.update({name: rows.since(step) for name, rows in source.items()})
        return part

    def without(self, hidden: Callable[[str], bool], first: int, last: float) -> "History":
        """This history as if series and layers of a ``hidden`` name had not been measured from ``first`` to ``last``.

        Shares the facts, the table of layers, and all numbers that stay.
        """
        part = self.since(self.first_step)
        for source in (part._series, part._tables):
            for name, rows in source.items():
                columns = [i for column, i in rows.columns.items() if hidden(column)]
                if columns:
                    source[name] = rows.without(columns, first, last)
        return part

    def without_series(self) -> "History":
        """A history that shares everything with this one but the series, of which it has none."""
        part = History()
        part.facts, part.architecture, part.lines = self.facts, self.architecture, self.lines
        part._tables = self._tables
        return part

    def copy(self) -> "History":
        """All of this as it is now, with arrays of its own: for work beside the recording."""
        taken = self.since(self.first_step)
        taken.bounded = self.bounded
        taken.facts, taken.architecture = dict(self.facts), dict(self.architecture)
        for rows in taken._all():
            rows._steps, rows._values, rows._thinned = rows._steps.copy(), rows._values.copy(), rows._thinned.copy()
        return taken

    def _all(self) -> list[_Rows]:
        return [*self._series.values(), *self._tables.values()]

    # -- examples, files -----------------------------------------------------------------------------------------

    @classmethod
    def of(
        cls,
        *,
        steps: Iterable[int] | None = None,
        facts: Mapping[str, Any] | None = None,
        layers: Iterable[Layer] = (),
        **values: Iterable[float],
    ) -> Self:
        """A small history written by hand, for examples and tests.

        ``train_loss=[...]`` is the series ``train/loss`` (the first ``_`` becomes ``/``);
        ``fc1__gradient_norm=[...]`` is layer ``fc1`` of the table ``gradient_norm``. Steps count from 0 unless given.
        """
        history = cls()
        given_steps = None if steps is None else list(steps)
        history.facts.update(facts or {})
        history.architecture.update({layer.name: layer for layer in layers})
        tables: dict[str, dict[str, list[float]]] = {}
        for key, given in values.items():
            column = list(given)
            layer, double, statistic = key.partition("__")
            if not double:
                at = given_steps if given_steps is not None else list(range(len(column)))
                history.add_series(key.replace("_", "/", 1), at[: len(column)], column)
                continue
            tables.setdefault(statistic, {})[layer] = column
            if layer not in history.architecture:
                history.architecture[layer] = Layer(layer, order=len(history.architecture))
        for statistic, table in tables.items():
            length = max(map(len, tables[statistic].values()))
            at = given_steps if given_steps is not None else list(range(length))
            for row in range(length):
                here = {layer: column[row] for layer, column in table.items() if row < len(column)}
                history.record(Snapshot(at[row], layers={statistic: here}))
        return history

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the history to one ``.npz`` file, whole or not at all (written beside it, then renamed)."""
        path = Path(path)
        arrays: dict[str, NDArray[Any]] = {}
        header: dict[str, Any] = {
            "format": self.FORMAT,
            "bounded": self.bounded,
            "facts": self.facts,
            "architecture": [asdict(layer) for layer in self.architecture.values()],
            "series": self.names(),
            "tables": {name: list(self._tables[name].columns) for name in self.statistics()},
        }
        arrays["header"] = np.frombuffer(json.dumps(header, default=_plain).encode(), dtype=np.uint8)
        for kind, names, source in (("s", self.names(), self._series), ("t", self.statistics(), self._tables)):
            for i, name in enumerate(names):
                rows = source[name]
                arrays[f"{kind}{i}_steps"] = rows.steps
                arrays[f"{kind}{i}_values"] = rows.values[:, : len(rows.columns)]
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote; ``UnreadableError`` for anything else. Loads no pickle."""
        try:
            content = Path(path).read_bytes()
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(1 << 30, 200 * len(content)):
                raise ValueError(f"it unpacks to {unpacked} bytes")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return cls._from_arrays({name: arrays[name] for name in arrays.files})
        except Exception as error:  # whatever a broken or hostile file sets off, it is the file that is wrong
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnreadableError(f"{path}: not a trainmedic history: {reason}") from error

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        header = json.loads(arrays["header"].tobytes()) if "header" in arrays else None
        if not isinstance(header, dict) or not isinstance(header.get("facts"), dict):
            raise ValueError("it has no header")
        if header.get("format") != cls.FORMAT:
            raise ValueError(f"format {header.get('format')!r:.60}, this version reads {cls.FORMAT!r}")
        history = cls(bounded=bool(header["bounded"]))
        history.facts = header["facts"]
        for entry in header["architecture"]:
            layer = _layer_from(entry)
            history.architecture[layer.name] = layer
        for i, name in enumerate(map(str, header["series"])):
            rows = _Rows([name], np.float64, cls.SERIES_LIMIT if history.bounded else None)
            rows.fill(arrays[f"s{i}_steps"], arrays[f"s{i}_values"])
            history._series[name] = rows
        for i, (name, columns) in enumerate(header["tables"].items()):
            rows = _Rows([str(column) for column in columns], np.float32, cls.TABLE_LIMIT if history.bounded else None)
            rows.fill(arrays[f"t{i}_steps"], arrays[f"t{i}_values"])
            history._tables[name] = rows
        return history

    def __repr__(self) -> str:
        return (
            f"History(steps {self.first_step}..{self.last_step}, {len(self.names())} series, "
            f"{len(self.statistics())} statistics of {len(self.architecture)} layers)"
        )


def _plain(value: object) -> Any:
    """A fact as JSON can hold it: numpy's values as Python's, anything else as its text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _layer_from(entry: Mapping[str, Any]) -> Layer:
    """A row of the table of layers as a file has it: right types whatever it holds, unknown fields ignored."""
    activation = entry.get("activation")
    return Layer(
        name=str(entry["name"]),
        kind=str(entry.get("kind", "")),
        order=int(entry.get("order", -1)),
        shape=tuple(int(size) for size in entry.get("shape", ())),
        trainable=bool(entry.get("trainable", True)),
        activation=None if activation is None else str(activation),
    )


def check_step(step: object) -> int:
    """``step`` as an int; ``UsageError`` when it is not a whole number from 0 on."""
    if isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise UsageError(f"step must be a whole number, but got {step!r}")
    if step < 0:
        raise UsageError(f"step must not be negative, but got {step}")
    return int(step)
