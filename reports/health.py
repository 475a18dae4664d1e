"""The dashboard "Health" for TensorBoard's Custom Scalars: which scalars it shows, and their layout."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainmedic.history import SERIES
from trainmedic.reports.picture import PERCENTILES

KEPT = ("train/", "validation/", "optimizer/", "time/", "memory/", "gradient/norm")
LAYERS = {"gradient_norm": "layers/gradient_norm_log10", "update_ratio": "layers/update_over_weight_log10"}
"""Layer statistics whose percentiles are scalars, and the tags of these. They span decades, hence the logarithm."""
FLOOR = 1e-12
"""What is smaller, zero included, is shown as this: zero has no logarithm, and less than this moves nothing."""
LEAST_LAYERS = 3
MARKS = "medic/began"
"""Of each illness and remedy one point, at the loss of the step where it began: a dot on the curve of the loss."""


def shown(name: str) -> bool:
    """Whether a series becomes a scalar: the losses and metrics, and what is looked at most of what the probe records.

    The rest of what the probe records is in the record, the page and the tab "Medic".
    """
    return name not in SERIES or name.startswith(KEPT)


def percentiles(layers: Mapping[str, Mapping[Any, float]]) -> dict[str, float]:
    """Scalars that sum up one step's layers: tag -> decimal logarithm of a percentile."""
    found: dict[str, float] = {}
    for statistic, tag in LAYERS.items():
        values = [value for value in layers.get(statistic, {}).values() if math.isfinite(value)]
        if len(values) >= LEAST_LAYERS:
            logs = np.log10(np.maximum(np.percentile(values, PERCENTILES), FLOOR))
            found.update({f"{tag}/p{p}": float(value) for p, value in zip(PERCENTILES, logs, strict=True)})
    return found


def layout() -> Any:
    """The layout as the message that the plugin reads."""
    from tensorboard.plugins.custom_scalar import layout_pb2  # type: ignore[import-untyped]

    def lines(title: str, *tags: str) -> Any:
        return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))

    def band(title: str, tag: str) -> Any:
        low, middle, high = (f"{tag}/p{percentile}" for percentile in PERCENTILES)
        ends = layout_pb2.MarginChartContent.Series(value=middle, lower=low, upper=high)
        return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[ends]))

    charts = [
        lines(
            "Loss, and where findings and treatments began", r"^train/loss$", r"^validation/(.+/)?loss$", f"^{MARKS}/"
        ),
        lines("Gradient norm of the whole model", r"^gradient/norm$"),
        band("Gradient norm of the layers, log10: median, p5 to p95", LAYERS["gradient_norm"]),
        band("Update / weight of the layers, log10: median, p5 to p95", LAYERS["update_ratio"]),
        lines("Learning rate", r"^optimizer/learning_rate"),
        lines("Seconds of a step, and of waiting for data", r"^time/"),
        lines("Findings and treatments so far", r"^medic/findings$", r"^medic/treatments$"),
    ]
    return layout_pb2.Layout(version=0, category=[layout_pb2.Category(title="Health", chart=charts)])
