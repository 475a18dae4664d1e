"""Series under a log's own names put into a history: known ones under ours, those of single layers into tables."""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import History
from trainmedic.readers.names import layer_of

Numbers = tuple[str, NDArray[np.int64], NDArray[np.float64]]


def fill(history: History, series: Iterable[Numbers], known: Mapping[str, str]) -> None:
    """Add (name, steps, values) of each series; ``known`` gives our names for those of the log.

    In the tables of layers a NaN means that nothing was measured: what is not finite is counted in one of its own.
    """
    tables: dict[str, list[Numbers]] = {}
    for name, steps, values in series:
        single = layer_of(name) if name not in known else None
        if single is None:
            history.add_series(known.get(name, name), steps, values)
        else:
            tables.setdefault(single[0], []).append((single[1], steps, values))
    for statistic, columns in tables.items():
        history.add_layers(statistic, columns)
        wrong = [(layer, steps, (~np.isfinite(values)).astype(np.float64)) for layer, steps, values in columns]
        if any(values.any() for _, _, values in wrong):
            history.add_layers(statistic.replace("_norm", "_nonfinite"), wrong)
