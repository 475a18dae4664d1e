"""A layer map as a PNG image for TensorBoard: labelled axes, a colour bar, and where findings and treatments began."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trainmedic.history import Array
from trainmedic.reports.layermap import FIRST_CODE, LAST_CODE, NOT_FINITE, ZERO, LayerMap, colours
from trainmedic.reports.wording import number, printable

WIDTH, HEIGHT = 640, 460
"""Twice the width of TensorBoard's small images, so that these can be read too."""
LEFT, TOP, RIGHT, BOTTOM = 176, 72, 14, 46
PAPER, INK, GREY = (255, 255, 255), (27, 33, 41), (86, 96, 109)
EMPTY, EXACT_ZERO, BROKEN = (228, 232, 236), (0, 0, 0), (229, 18, 125)
FINDING, TREATMENT = (214, 40, 40), (20, 120, 70)
SIZE = 18
"""Height of letters, in pixels."""


class Mark(NamedTuple):
    """A step to mark, and whether something was found there or done."""

    step: int
    treatment: bool = False


def draw(drawn: LayerMap, marks: Sequence[Mark] = ()) -> bytes:
    """The map as PNG, ``WIDTH`` x ``HEIGHT``."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SIZE)
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    cells = Image.fromarray(_stretched(drawn, width))
    image.paste(cells.resize((width, height), Image.Resampling.NEAREST), (LEFT, TOP))
    for mark in marks:
        _mark(pen, _x(drawn, mark.step), mark.treatment)
    _title(pen, image, drawn, font)
    _layers(pen, drawn, font, height)
    _steps(pen, drawn, font)
    with io.BytesIO() as file:
        image.quantize(128, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)
        return file.getvalue()


def paint(codes: Any) -> Any:
    """Codes as colours, in one more dimension of three (red, green, blue)."""
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in colours()], dtype=np.float64)
    share = np.clip((codes.astype(np.float64) - FIRST_CODE) / (LAST_CODE - FIRST_CODE), 0, 1) * (len(stops) - 1)
    at = np.minimum(share.astype(int), len(stops) - 2)
    painted = stops[at] + (stops[at + 1] - stops[at]) * (share - at)[..., None]
    for code, colour in ((0, EMPTY), (ZERO, EXACT_ZERO), (NOT_FINITE, BROKEN)):
        painted[codes == code] = colour
    return np.round(painted).astype(np.uint8)


def _stretched(drawn: LayerMap, width: int) -> Any:
    """The painted cells with one column a pixel: each holds from its first step until the next, holes stay empty."""
    first, last = int(drawn.steps[0]), max(drawn.last, int(drawn.steps[0]) + 1)
    steps = first + (np.arange(width) + 0.5) / width * (last + 1 - first)
    at = np.clip(np.searchsorted(drawn.steps, steps, side="right") - 1, 0, None)
    codes = _fewer(drawn.shown, HEIGHT - TOP - BOTTOM)[:, at]
    for before, after in drawn.gaps:
        codes[:, (steps >= before + 1) & (steps < after)] = 0
    return paint(codes)


def _fewer(codes: Any, most: int) -> Any:
    """At most ``most`` rows: where neighbouring layers share one, the cell that is farthest from its layer's middle.

    One that is not finite comes before any other.
    """
    if len(codes) <= most:
        return codes
    middle = np.median(codes.astype(np.float64), axis=1, keepdims=True)
    weight = np.where(codes == 0, -1.0, np.abs(codes - middle))
    weight[codes == NOT_FINITE] = np.inf
    groups = np.array_split(np.arange(len(codes)), most)
    picked = [group[np.argmax(weight[group], axis=0)] for group in groups]
    return codes[np.array(picked), np.arange(codes.shape[1])]


def _x(drawn: LayerMap, step: float) -> float:
    first, last = float(drawn.steps[0]), max(drawn.last, int(drawn.steps[0]) + 1)
    share = (step - first) / (last + 1 - first)
    return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT - 1)


def _mark(pen: Any, x: float, treatment: bool) -> None:
    bottom = HEIGHT - BOTTOM
    colour = TREATMENT if treatment else FINDING
    pen.line([(x, TOP), (x, bottom)], fill=PAPER, width=4)
    pen.line([(x, TOP), (x, bottom)], fill=colour, width=2)
    if treatment:
        pen.polygon([(x, bottom + 2), (x + 5, bottom + 7), (x, bottom + 12), (x - 5, bottom + 7)], fill=colour)
    else:
        pen.polygon([(x - 5, bottom + 11), (x + 5, bottom + 11), (x, bottom + 2)], fill=colour)


def _title(pen: Any, image: Any, drawn: LayerMap, font: Any) -> None:
    from PIL import Image

    pen.text((10, 8), printable(drawn.title) + (", logarithmic" if drawn.log else ""), fill=INK, font=font)
    low, high = (number(float(f"{10**end:.3g}") if drawn.log else end) for end in (drawn.low, drawn.high))
    x = WIDTH - RIGHT
    for code, text in ((NOT_FINITE, "not finite"), (ZERO, "zero"), (0, "not measured")):
        if (drawn.shown == code).any() and (code != ZERO or drawn.log):
            x -= int(pen.textlength(text, font=font))
            pen.text((x, 40), text, fill=GREY, font=font)
            x -= 20
            pen.rectangle([x, 44, x + 13, 57], fill=tuple(paint(np.array([[code]], dtype=np.uint16))[0, 0].tolist()))
            x -= 16
    pen.text((10, 40), low, fill=GREY, font=font)
    left = 18 + int(pen.textlength(low, font=font))
    bar = paint(np.linspace(FIRST_CODE, LAST_CODE, 120).astype(np.uint16)[None, :])
    image.paste(Image.fromarray(bar).resize((120, 13)), (left, 44))
    pen.text((left + 128, 40), high, fill=GREY, font=font)


def _layers(pen: Any, drawn: LayerMap, font: Any, height: int) -> None:
    row = height / len(drawn.layers)
    every = -(-(SIZE + 2) // row) if row < SIZE + 2 else 1
    for i in range(0, len(drawn.layers), int(every)):
        name = printable(drawn.layers[i])[-200:]
        shown = name
        while pen.textlength(shown, font=font) > LEFT - 24:  # the end of a name says most
            name = name[2:]
            shown = f"...{name}"
        x = LEFT - 8 - pen.textlength(shown, font=font)
        pen.text((x, TOP + (i + 0.5) * row - SIZE / 2 - 1), shown, fill=GREY, font=font)


def _steps(pen: Any, drawn: LayerMap, font: Any) -> None:
    for step in _round_steps(float(drawn.steps[0]), float(max(drawn.last, drawn.steps[0] + 1))):
        text = f"{step:,.0f}"
        length = pen.textlength(text, font=font)
        x = min(_x(drawn, step) - length / 2, WIDTH - 4 - length)
        pen.text((x, HEIGHT - BOTTOM + 14), text, fill=GREY, font=font)


def _round_steps(first: float, last: float) -> Array:
    size = max((last - first) / 4, 1.0)
    unit = 10 ** np.floor(np.log10(size))
    unit *= next(times for times in (1, 2, 5, 10) if times * unit >= size)
    return np.arange(np.ceil(first / unit) * unit, last + 0.5, unit)
