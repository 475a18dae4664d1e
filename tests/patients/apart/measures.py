"""Data sets: letters, diamonds, computers, ball players, voters, sunspots, a volcano, verses, programs."""

import inspect
import io
import keyword
import re
import shutil
import subprocess
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.patients.training import Data, Missing, needed


def table(name: str) -> Any:
    """One of R's data sets, as a frame."""
    return needed("pydataset").data(name)


def columns(frame: Any, names: Iterable[str]) -> Tensor:
    """Columns of numbers: (rows, names)."""
    return torch.tensor(frame[list(names)].to_numpy(dtype=np.float32))


def standardised(x: Tensor) -> Tensor:
    """Each column with mean 0 and standard deviation 1."""
    return (x - x.mean(0)) / x.std(0)


def standard(data: Data) -> Data:
    """The same with inputs standardised by those to train on."""
    mean, spread = data.x.mean(0), data.x.std(0)
    return data.inputs(lambda x: (x - mean) / spread)


# -- images ------------------------------------------------------------------------------------------------------------

FONTS = Path("/usr/share/fonts/truetype")
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@cache
def letters() -> Data:
    """Capitals of 1 x 16 x 16 in 0 to 1, in many fonts, sizes and places; 26 classes, 2,400 to train on."""
    images = [_drawn(letter, str(font), size) for font in _fonts() for size in (12, 14, 16) for letter in CAPITALS]
    x = torch.tensor(np.stack(images), dtype=torch.float32)[:, None] / 255
    generator = torch.Generator().manual_seed(1)
    places = torch.randint(-1, 2, (len(x), 2), generator=generator).tolist()
    x = torch.stack([image.roll(place, (1, 2)) for image, place in zip(x, places, strict=True)])
    return Data.split(x, torch.arange(len(x)) % len(CAPITALS), 500).first(2_400)


def _fonts() -> list[Path]:
    found = sorted(path for folder in ("dejavu", "liberation") for path in (FONTS / folder).glob("*.ttf"))
    if len(found) < 30:
        raise Missing(f"needs the fonts DejaVu and Liberation ({FONTS})")
    return found


def _drawn(letter: str, font: str, size: int) -> np.ndarray:
    image = needed("PIL.Image").new("L", (16, 16))
    pen = needed("PIL.ImageDraw").Draw(image)
    pen.text((8, 8), letter, 255, needed("PIL.ImageFont").truetype(font, size), anchor="mm")
    return np.asarray(image)


@cache
def volcano() -> Data:
    """Heights of Maunga Whau: places (-1 to 1, two) to a standardised height; 4,307 places to train on."""
    heights = torch.tensor(table("volcano").to_numpy(dtype=np.float32))
    places = torch.cartesian_prod(*(torch.linspace(-1, 1, count) for count in heights.shape))
    return Data.split(places, standardised(heights.flatten()[:, None]), 1_000)


# -- tables ------------------------------------------------------------------------------------------------------------

CUTS = ("Fair", "Good", "Very Good", "Premium", "Ideal")
CLARITIES = ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF")


@cache
def diamonds() -> Data:
    """Six standardised measures, then numbers of cut (5), colour (7) and clarity (8); the standardised logarithm of
    the price to tell; 4,000 to train on."""
    frame = table("diamonds").iloc[::10]
    measures = standardised(columns(frame, ("carat", "depth", "table", "x", "y", "z"))).clamp(-5, 5)
    grades = [
        [CUTS.index(cut), "DEFGHIJ".index(color), CLARITIES.index(clarity)]
        for cut, color, clarity in zip(frame["cut"], frame["color"], frame["clarity"], strict=True)
    ]
    x = torch.cat([measures, torch.tensor(grades, dtype=torch.float32)], 1)
    return Data.split(x, standardised(columns(frame, ["price"]).log()), 1_000).first(4_000)


@cache
def raw_computers() -> Data:
    """Nine measures as they come (0 to 2,100) and a standardised price; 5,000 to train on."""
    frame = table("Computers")
    numbers = columns(frame, ("speed", "hd", "ram", "screen", "ads", "trend"))
    answers = torch.tensor((frame[["cd", "multi", "premium"]] == "yes").to_numpy(dtype=np.float32))
    return Data.split(torch.cat([numbers, answers], 1), standardised(columns(frame, ["price"])), 1_259)


@cache
def computers() -> Data:
    """The same with standardised inputs."""
    return standard(raw_computers())


PLAYED = ("year", "g", "ab", "h", "X2b", "X3b", "hr", "bb", "sh", "sb")


@cache
def raw_baseball() -> Data:
    """Ten counts of a player's season as they come, the year first (1871 to 2007, counts to 700), and the standardised
    number of runs; 4,000 to train on."""
    frame = table("baseball").dropna(subset=["sh", "sb"]).iloc[::4]
    return Data.split(columns(frame, PLAYED), standardised(columns(frame, ["r"])), 1_000).first(4_000)


@cache
def baseball() -> Data:
    """The same with standardised inputs."""
    return standard(raw_baseball())


VOTES = ("N", "Y", "U", "A")


@cache
def unanswered_chile() -> Data:
    """Voters of Chile: population, age, income and support, each standardised over those who answered, two answers yes
    or no, NaN where there was none; how they will vote, four classes; 2,032 to train on."""
    frame = table("Chile").dropna(subset=["vote"])
    numbers = columns(frame, ("population", "age", "income", "statusquo"))
    known = [column[~column.isnan()] for column in numbers.T]
    numbers = (numbers - torch.stack([k.mean() for k in known])) / torch.stack([k.std() for k in known])
    taught = [
        [float(sex == "F"), float(school == "PS")] for sex, school in zip(frame["sex"], frame["education"], strict=True)
    ]
    votes = torch.tensor([VOTES.index(vote) for vote in frame["vote"]])
    return Data.split(torch.cat([numbers, torch.tensor(taught)], 1), votes, 500)


@cache
def chile() -> Data:
    """The same with the mean for those who did not answer."""
    return unanswered_chile().inputs(lambda x: x.nan_to_num(0.0))


# -- sequences ---------------------------------------------------------------------------------------------------------

WINDOW, AHEAD = 40, 12


@cache
def raw_sunspots() -> Data:
    """40 months of sunspot numbers (0 to 254) as 1 x 40, and the mean of the following year; 2,200 to train on."""
    numbers = columns(table("sunspots"), ["sunspots"])[:, 0]
    windows = numbers.unfold(0, WINDOW + AHEAD, 1)
    x, y = windows[:, None, :WINDOW], windows[:, WINDOW:].mean(1, keepdim=True)
    return Data(x[:2_200].contiguous(), y[:2_200], x[2_300:].contiguous(), y[2_300:])


@cache
def sunspots() -> Data:
    """The same, standardised."""
    data = raw_sunspots()
    mean, spread = data.x.mean(), data.x.std()
    return data.inputs(lambda x: (x - mean) / spread).targets(lambda y: (y - mean) / spread)


BOOKS = ("Lev", "Psa", "Isa", "Mat", "1Chr")
WORDS, LONG = 800, 16


def verses_of(*books: str) -> list[tuple[str, list[str]]]:
    """Book and words of each verse of the King James Bible, in order."""
    if shutil.which("bible") is None:
        raise Missing("needs Debian's package bible-kjv")
    text = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True).stdout
    found = (re.match(r"(\w+?)\d+:\d+ (.*)", line) for line in text.splitlines())
    every = [(match[1], re.findall(r"[a-z]+", match[2].lower())) for match in found if match]
    return [(book, words) for book, words in every if not books or book in books]


def frequent(lists: Iterable[list[str]], count: int) -> dict[str, int]:
    """The most frequent words, numbered from 2 on: 0 stands for nothing, 1 for another word."""
    counted = Counter(word for words in lists for word in words)
    return {word: number for number, (word, _) in enumerate(counted.most_common(count - 2), 2)}


@cache
def verses() -> Data:
    """Verses as 16 numbers of words below 800 (0: nothing follows, 1: a rare word), and the book, five classes; 3,000
    to train on."""
    pairs = verses_of(*BOOKS)
    known = frequent((words for _, words in pairs), WORDS)
    rows = [([known.get(word, 1) for word in words[:LONG]] + [0] * LONG)[:LONG] for _, words in pairs]
    return Data.split(torch.tensor(rows), torch.tensor([BOOKS.index(book) for book, _ in pairs]), 600).first(3_000)


KINDS = ("between", "name", "keyword", "number", "string", "operator", "comment")
LETTERS = 24


@cache
def programs() -> Data:
    """24 characters of Python's own library as numbers below 128, and for each the kind of token that it belongs to,
    seven classes; 2,000 to train on."""
    text = "\n".join(inspect.getsource(module) for module in (textwrap, shutil, tokenize))
    text = "".join(letter if ord(letter) < 128 else "?" for letter in text)
    kinds = _kinds(text)
    x = torch.tensor([ord(letter) for letter in text[: len(text) // LETTERS * LETTERS]]).view(-1, LETTERS)
    y = torch.tensor(kinds[: x.numel()]).view(-1, LETTERS)
    return Data.split(x, y, 300).first(2_000)


def _kinds(text: str) -> list[int]:
    """The kind of each character."""
    starts = np.cumsum([0, *(len(line) for line in text.splitlines(keepends=True))])
    kinds = np.zeros(len(text), dtype=np.int64)
    of = {tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.OP: 5, tokenize.COMMENT: 6}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = 1 + keyword.iskeyword(token.string) if token.type == tokenize.NAME else of.get(token.type, 0)
        kinds[starts[token.start[0] - 1] + token.start[1] : starts[token.end[0] - 1] + token.end[1]] = kind
    return kinds.tolist()
