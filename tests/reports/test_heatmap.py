"""Heat maps: what they show is what was measured."""

import io
import math
from typing import Any

import numpy as np
from PIL import Image

from trainmedic.history import History
from trainmedic.reports import heatmap
from trainmedic.reports.layermap import NOT_FINITE, layer_map


def pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def at(image: Any, row: float, column: float) -> tuple[int, ...]:
    """The colour at a place within the map, both from 0 to 1."""
    height = heatmap.HEIGHT - heatmap.TOP - heatmap.BOTTOM
    width = heatmap.WIDTH - heatmap.LEFT - heatmap.RIGHT
    return tuple(image[round(heatmap.TOP + row * height), round(heatmap.LEFT + column * width)].tolist())


def close(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 24


def test_cells_have_their_colours() -> None:
    history = History.of(
        a__gradient_norm=[1.0, 1e-6, 1e-6, 1e-6],
        b__gradient_norm=[0.0, math.nan, 1e-3, 1.0],
        b__gradient_nonfinite=[0.0, 0.0, 1.0, 0.0],
    )
    image = pixels(heatmap.draw(layer_map(history, "gradient_norm", 100)))
    assert image.shape == (heatmap.HEIGHT, heatmap.WIDTH, 3)
    assert close(at(image, 0.25, 0.1), (253, 231, 37))
    assert close(at(image, 0.25, 0.4), (68, 1, 84))
    assert close(at(image, 0.75, 0.1), heatmap.EXACT_ZERO)
    assert close(at(image, 0.75, 0.4), heatmap.EMPTY)
    assert close(at(image, 0.75, 0.6), heatmap.BROKEN)


def test_marks_stand_at_their_steps() -> None:
    drawn = layer_map(History.of(a__activation_zeros=[0.5] * 100), "activation_zeros", 100)
    image = pixels(heatmap.draw(drawn, [heatmap.Mark(50), heatmap.Mark(75, treatment=True)]))
    near = np.linspace(-0.006, 0.006, 7)
    assert any(close(at(image, 0.5, 0.5 + away), heatmap.FINDING) for away in near)
    assert any(close(at(image, 0.5, 0.75 + away), heatmap.TREATMENT) for away in near)
    assert not any(close(at(image, 0.5, 0.3 + away), heatmap.FINDING) for away in near)


def test_one_broken_layer_of_thousands_is_seen() -> None:
    codes = np.full((5_000, 3), 1_000, dtype=np.uint16)
    codes[1_234, 1] = NOT_FINITE
    codes[4_000, 2] = 60_000
    fewer = heatmap._fewer(codes, 400)
    assert fewer.shape == (400, 3)
    assert (fewer == NOT_FINITE).sum() == 1
    assert (fewer == 60_000).sum() == 1


def test_hostile_and_long_names_can_be_drawn() -> None:
    history = History.of(steps=[0], **{"x" * 3_000 + "\x1b\u202e__gradient_norm": [1.0]})
    assert heatmap.draw(layer_map(history, "gradient_norm", 10)).startswith(b"\x89PNG")
