"""Data sets: diamonds, letters of fonts, hills, sunspots, the Bible, Python's sources, marks of lectures, quakes."""

import io
import keyword
import os
import subprocess
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.patients.training import Data, Missing, needed


def table(name: str) -> Any:
    """One of the data sets that come with R."""
    return needed("pydataset").data(name)


def standard(x: Tensor) -> Tensor:
    """Every column with mean 0 and standard deviation 1."""
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


def floats(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float32))


def codes(column: Any) -> Tensor:
    """The values of a column, numbered in their order."""
    return torch.tensor(np.unique(np.asarray(column, dtype=str), return_inverse=True)[1])


def columns(x: Tensor, classes: int) -> Tensor:
    """Numbers of classes as columns of 0.0 and 1.0."""
    return torch.nn.functional.one_hot(x, classes).float()


# -- tables ------------------------------------------------------------------------------------------------------------


@cache
def gems() -> Data:
    """Diamonds: 23 standardised inputs, the logarithm of the price standardised; 6,000 to train on, 1,000 held out."""
    rows = table("diamonds").sample(7_000, random_state=0)
    numbers = floats(rows[["carat", "depth", "table", "x", "y", "z"]])
    kinds = [columns(codes(rows[name]), count) for name, count in (("cut", 5), ("color", 7))]
    clarity = columns(codes(rows["clarity"]), 8)[:, :5]
    x = standard(torch.cat([numbers, *kinds, clarity], 1)).clamp(-5, 5)
    return Data.split(x, standard(floats(rows["price"]).log()[:, None]), 1_000)


@cache
def priced_gems() -> Data:
    """The same with prices in thousands of dollars, 0.3 to 18.8."""
    rows = table("diamonds").sample(7_000, random_state=0)
    data, price = gems(), floats(rows["price"])[:, None] / 1_000
    order = torch.randperm(7_000, generator=torch.Generator().manual_seed(0))
    return data._replace(y=price[order][:-1_000], val_y=price[order][-1_000:])


@cache
def gem_kinds() -> Data:
    """Diamonds as wide-and-deep nets read them: carat, then numbers of cut, colour, clarity; standardised log price."""
    rows = table("diamonds").sample(7_000, random_state=1)
    kinds = [codes(rows[name]).float()[:, None] for name in ("cut", "color", "clarity")]
    x = torch.cat([standard(floats(rows[["carat"]])), *kinds], 1)
    return Data.split(x, standard(floats(rows["price"]).log()[:, None]), 1_000)


@cache
def cuts() -> Data:
    """The cut of a diamond (five classes, the largest 40 %) from six standardised numbers; 6,000 to train on."""
    rows = table("diamonds").sample(7_000, random_state=2)
    x = floats(rows[["carat", "depth", "table", "x", "y", "z"]])
    shape = torch.stack([x[:, 3] / x[:, 4].clamp_min(1), x[:, 5] / x[:, 3].clamp_min(1)], 1)
    return Data.split(standard(torch.cat([x, shape], 1)).clamp(-5, 5), codes(rows["cut"]), 1_000)


@cache
def films() -> Data:
    """Films: standardised year, length, votes and genres (9 inputs), whether rated above 6.1; 8,000 to train on."""
    rows = table("movies").sample(9_000, random_state=0)
    genres = ["Action", "Animation", "Comedy", "Drama", "Documentary", "Romance"]
    numbers = [floats(rows["year"]), floats(rows["length"]).clamp(1, 300).log(), floats(rows["votes"]).log()]
    x = standard(torch.cat([torch.stack(numbers, 1), floats(rows[genres])], 1))
    return Data.split(x, (floats(rows["rating"]) > 6.1).long(), 1_000)


@cache
def cartoons() -> Data:
    """Whether a film is a cartoon (one in fifteen) from standardised year, length, votes, rating; 8,000 to train on."""
    rows = table("movies").sample(9_000, random_state=1)
    numbers = [floats(rows["year"]), floats(rows["length"]).clamp(1, 300).log(), floats(rows["votes"]).log()]
    x = standard(torch.stack([*numbers, floats(rows["rating"])], 1))
    return Data.split(x, torch.tensor(rows["Animation"].to_numpy()).long(), 1_000)


@cache
def quakes() -> Data:
    """Quakes near Fiji: standardised place, strength, stations; the standardised depth; 800 to train on."""
    rows = table("quakes")
    x = standard(floats(rows[["lat", "long", "mag", "stations"]]))
    return Data.split(x, standard(floats(rows[["depth"]])), 200)


@cache
def tissues() -> Data:
    """Nine measures of a biopsy in 0.1 to 1 (missing ones 0.1), two classes; 549 to train on, 150 held out."""
    rows = table("biopsy")
    x = floats(rows[[f"V{i}" for i in range(1, 10)]].fillna(1)) / 10
    return Data.split(x, codes(rows["class"]), 150)


@cache
def answers() -> Data:
    """25 answers of 1 to 6 to questions on one's character, standardised, missing ones 0; inputs are targets; 2,400."""
    rows = table("bfi").iloc[:, :25]
    x = standard(floats(rows.fillna(rows.mean())))
    return Data.split(x, x.clone(), 400)


@cache
def ratings() -> Data:
    """Who rated whose lectures (numbers below 2,972 and 1,128), and the mark, standardised; 30,000 to train on."""
    rows = table("InstEval").sample(32_000, random_state=0)
    x = torch.stack([codes(rows["s"]), codes(rows["d"])], 1)
    return Data.split(x, standard(floats(rows["y"])[:, None]), 2_000)


# -- pictures and series -----------------------------------------------------------------------------------------------

FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
         "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10",
         "cmb10", "cmtt10", "cmss10")  # fmt: skip


@cache
def letters() -> Data:
    """The letters a to z of fifteen faces, of random sizes and places: 1 x 16 x 16 in 0 to 1; 3,000 to train on."""
    fonts, images = needed("PIL.ImageFont"), needed("PIL.Image")
    folder = Path(needed("matplotlib").get_data_path()) / "fonts" / "ttf"
    known = {(face, size): fonts.truetype(folder / f"{face}.ttf", size) for face in FACES for size in (11, 13, 15)}
    draw, chance = needed("PIL.ImageDraw"), np.random.default_rng(0)
    pictures, labels = [], []
    for number in range(3_600):
        picture = images.new("L", (16, 16))
        face, size = FACES[chance.integers(len(FACES))], (11, 13, 15)[chance.integers(3)]
        place = 3 + chance.integers(0, 3), 7 + chance.integers(0, 3)
        draw.Draw(picture).text(place, chr(97 + number % 26), fill=255, font=known[face, size], anchor="lm")
        pictures.append(np.asarray(picture))
        labels.append(number % 26)
    x = torch.tensor(np.stack(pictures), dtype=torch.float32)[:, None] / 255
    return Data.split(x, torch.tensor(labels), 600)


@cache
def hills() -> Data:
    """Patches of 1 x 16 x 16 of a map of heights, standardised; inputs are their own targets; 1,600 to train on."""
    archive = Path(needed("matplotlib").get_data_path()) / "sample_data" / "jacksboro_fault_dem.npz"
    with np.load(archive) as known:
        heights = known["elevation"].astype(np.float32)
    view = np.lib.stride_tricks.sliding_window_view((heights - heights.mean()) / heights.std(), (16, 16))
    train, val = view[:260:7, ::8], view[280::12, ::10]
    x, held = (torch.tensor(part.reshape(-1, 1, 16, 16).copy()) for part in (train, val))
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return Data(x, x.clone(), held, held.clone()).first(1_600)


@cache
def volcano() -> Data:
    """A volcano's heights (standardised) as a function of the place (-1 to 1); 4,500 to train on, 807 held out."""
    heights = floats(table("volcano"))
    places = torch.cartesian_prod(*(torch.linspace(-1, 1, size) for size in heights.shape))
    return Data.split(places, standard(heights.reshape(-1, 1)), 807)


@cache
def suns() -> Data:
    """Sunspots of 48 months (1 x 48), standardised, and of the next month; 2,200 to train on, the last 500 held out."""
    spots = standard(floats(table("sunspots")["sunspots"]))
    windows = spots.unfold(0, 49, 1)
    x, y = windows[:, None, :48].contiguous(), windows[:, 48:].contiguous()
    return Data(x[:2_200], y[:2_200], x[-500:], y[-500:])


# -- text --------------------------------------------------------------------------------------------------------------

BIBLE = Path("/usr/lib/bible.data")
SOURCES = ("argparse", "ast", "bdb", "calendar", "cgi", "cmd", "codecs", "configparser", "csv", "difflib")
KINDS = 6
"""What a character of a program belongs to: nothing, name, keyword, number, text, comment; all else is nothing."""


@cache
def kinds() -> Data:
    """24 characters of a program (numbers below 128), and of each the kind of token it stands in; 2,400 to train on."""
    folder = Path(os.__file__).parent
    x, y = [], []
    for name in SOURCES:
        path = folder / f"{name}.py"
        if path.exists():
            text = path.read_text(encoding="utf-8")[:24_000]
            text = text[: text.rfind("\n\n\n")]
            x += [min(ord(letter), 127) for letter in text]
            y += _kinds_of(text)
    count = len(x) // 24
    shape = [torch.tensor(values)[: count * 24].view(-1, 24) for values in (x, y)]
    return Data.split(shape[0], shape[1], 400).first(2_400)


def _kinds_of(text: str) -> list[int]:
    """The kind of each character."""
    starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
    kinds = [0] * len(text)
    known = {tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.COMMENT: 5}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            kind = known.get(token.type, 0)
            if token.type == tokenize.NAME:
                kind = 2 if keyword.iskeyword(token.string) else 1
            start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
            kinds[start:end] = [kind] * (end - start) if kind else kinds[start:end]
    except (tokenize.TokenError, IndentationError):
        pass  # a text that was cut: what came before counts
    return kinds


@cache
def program() -> Data:
    """16 words of Python's own sources and those that follow, 300 words known; 5,000 to train on, 400 held out."""
    words: list[str] = []
    for name in ("argparse", "ast", "calendar", "configparser", "datetime", "decimal", "difflib", "doctest"):
        path = Path(os.__file__).parent / f"{name}.py"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        words += "".join(c if c.isalnum() else f" {c} " for c in text).split()
    return _followed(words, 16, 400, 5_000)


@cache
def genesis() -> Data:
    """20 words of the Bible's first books and those that follow, 300 words known; 4,000 to train on, 300 held out."""
    return _followed(" ".join(_bible()[:4_000]).split(), 20, 300, 4_000)


def _followed(words: list[str], length: int, held_out: int, count: int) -> Data:
    """Sequences of so many words and of those that follow; numbers tell how common, 0 is rare."""
    known = {word: number for number, (word, _) in enumerate(Counter(words).most_common(299), 1)}
    tokens = torch.tensor([known.get(word, 0) for word in words])
    size = (len(tokens) - 1) // length * length
    x, y = (tokens[shift : shift + size].view(-1, length) for shift in (0, 1))
    return Data.split(x, y, held_out).first(count)


@cache
def _bible() -> list[str]:
    """Its verses, in lower case, by Debian's reader."""
    if not BIBLE.exists():
        raise Missing(f"needs Debian's package bible-kjv-text ({BIBLE})")
    told = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    verses = (line.partition(" ")[2].lower() for line in told.splitlines())
    return ["".join(letter if letter.isalpha() else " " for letter in verse) for verse in verses]


@cache
def testaments() -> Data:
    """Bags of up to 16 of 2,000 words of a verse (0 for none), and whether it is a new one; 6,000 to train on."""
    verses = [verse.split() for verse in _bible()]
    known = {w: n for n, (w, _) in enumerate(Counter(w for v in verses for w in v).most_common(1_999), 1)}
    bags = [([known.get(word, 0) for word in verse] + [0] * 16)[:16] for verse in verses]
    new = torch.arange(len(verses)) >= 23_145
    rows = torch.cat([(~new).nonzero()[::7, 0], new.nonzero()[::2, 0]])
    return Data.split(torch.tensor(bags)[rows], new.long()[rows], 1_000).first(6_000)


WORDS = Path("/usr/share/dict/words")


@cache
def spellings() -> Data:
    """Twelve letters of a word (0 for none), and the same letters in reverse; 5,000 to train on, 500 held out."""
    chosen = _words()[::11][:5_500]
    rows = torch.tensor([([ord(c) - 96 for c in word] + [0] * 12)[:12] for word in chosen])
    back = torch.tensor([([ord(c) - 96 for c in word[::-1]] + [0] * 12)[:12] for word in chosen])
    return Data.split(rows, back, 500)


@cache
def proper_names() -> Data:
    """Twelve letters of a word in lower case (0 for none), and whether it is a name (one in seven); 6,000 to train."""
    words = [word for word in _lines() if word.isascii() and word.isalpha() and 3 < len(word) <= 12][::9]
    rows = torch.tensor([([ord(c) - 96 for c in word.lower()] + [0] * 12)[:12] for word in words])
    return Data.split(rows, torch.tensor([int(word[0].isupper()) for word in words]), 800).first(6_000)


def _words() -> list[str]:
    return [word for word in _lines() if word.isascii() and word.isalpha() and word.islower() and len(word) <= 12]


@cache
def _lines() -> list[str]:
    if not WORDS.exists():
        raise Missing(f"needs Debian's package wamerican ({WORDS})")
    return WORDS.read_text(encoding="utf-8").splitlines()
