"""Snapshots from readings: what follows from other numbers is derived here, off the device."""

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from trainmedic.history import Snapshot
from trainmedic.hooks.reading import Row

RECENT = 16
"""Steps whose gradient norms are kept for every parameter, measured or not."""
EXTREMES = {"activation_max", "dead_samples", "dead_units_lasting"}
"""Statistics of which, when a module ran several times in a step, the largest counts; of others the mean does."""


class Assembling:
    """Makes snapshots, and keeps the per-parameter gradient norms of the newest steps.

    When a gradient is not finite they are recorded too, so that the origin can be read from the first bad step, and
    what led to it from the steps before, though none of them was measured.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, list[Row]]] = deque(maxlen=RECENT)

    def snapshots(self, step: int, rows: list[Row], values: dict[str, float], measured: bool) -> list[Snapshot]:
        """The snapshot of a step; before it, where its gradients went bad, those of earlier steps."""
        snapshot = Snapshot(step, values)
        norms = [row for row in rows if row.statistic == "gradient_norm"]
        bad = self._gradients(snapshot, norms)
        for row in rows:
            if row.layers == ("",):
                values[row.statistic] = row.values[0]
        if not math.isfinite(values.get("gradient/clipped", 0.0)):
            del values["gradient/clipped"]  # all gradients are zero, or one is not finite
        if measured:
            snapshot.layers = _tables(rows)
            _derive(snapshot.layers)
        elif not bad:
            self._recent.append((step, norms))
            return [snapshot]
        table = _by_name(norms)
        snapshot.layers["gradient_norm"] = table
        snapshot.layers["gradient_nonfinite"] = {name: float(not math.isfinite(value)) for name, value in table.items()}
        if not bad:
            return [snapshot]
        earlier = [Snapshot(at, layers={"gradient_norm": _by_name(given)}) for at, given in self._recent]
        self._recent.clear()
        return [*earlier, snapshot]

    @staticmethod
    def _gradients(snapshot: Snapshot, norms: list[Row]) -> bool:
        """The norm of all gradients together, and how many are not finite; whether any is not."""
        given = norms[0].values if len(norms) == 1 else list(_by_name(norms).values())
        if not given:
            return False
        total = math.hypot(*given)
        bad = 0 if math.isfinite(total) else sum(not math.isfinite(norm) for norm in given)
        snapshot.values["gradient/norm"] = total
        snapshot.values["gradient/nonfinite"] = float(bad)
        return bad > 0


def _by_name(rows: Sequence[Row]) -> dict[str, float]:
    return {name: value for row in rows for name, value in zip(row.layers, row.values, strict=True)}


def _tables(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Statistic -> layer -> number, gradient norms left out."""
    tables: dict[str, dict[str, list[float]]] = {}
    for statistic, layers, numbers in rows:
        if layers != ("",) and statistic != "gradient_norm":
            _add(tables.setdefault(statistic, {}), layers, numbers)
    return {statistic: _joined(statistic, table) for statistic, table in tables.items()}


def _add(table: dict[str, list[float]], layers: Sequence[str], numbers: list[float]) -> None:
    for layer, number in zip(layers, numbers, strict=True):
        table.setdefault(layer, []).append(number)


def _joined(statistic: str, table: dict[str, list[float]]) -> dict[str, float]:
    """One number per layer, of all calls within the step."""
    if all(len(numbers) == 1 for numbers in table.values()):
        return {layer: numbers[0] for layer, numbers in table.items()}
    if statistic in EXTREMES:
        return {layer: float(np.max(numbers)) for layer, numbers in table.items()}
    return {layer: float(np.mean(numbers)) for layer, numbers in table.items()}


def _derive(layers: dict[str, dict[str, float]]) -> None:
    """What is not finite is counted in tables of its own; ratios to zero say nothing."""
    for name, source in (("weight_nonfinite", "weight_norm"), ("activation_nonfinite", "activation_max")):
        if source in layers:
            layers[name] = {layer: float(not math.isfinite(value)) for layer, value in layers[source].items()}
    for name in ("update_ratio", "gradient_cosine"):
        if name in layers:
            layers[name] = {layer: value for layer, value in layers[name].items() if math.isfinite(value)}
    for name in [name for name, row in layers.items() if not row]:
        del layers[name]
