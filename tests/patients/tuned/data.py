"""Data sets of the tuned half: digits, breast cancer, diabetes, the GPL's text, patches of a photograph."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from tests.patients.training import Data, Missing, needed


@cache
def digits() -> Data:
    """Images of 8 x 8 in 0 to 1, as rows of 64; ten classes, 1,347 to train on."""
    pixels, labels = needed("sklearn.datasets").load_digits(return_X_y=True)
    return Data.split(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels), 450)


@cache
def cancer() -> Data:
    """30 standardised measures of a tumour; two classes, 419 to train on."""
    measures, labels = needed("sklearn.datasets").load_breast_cancer(return_X_y=True)
    x = torch.tensor((measures - measures.mean(0)) / measures.std(0), dtype=torch.float32)
    return Data.split(x, torch.tensor(labels), 150)


def as_floats(data: Data) -> Data:
    """Two classes as losses of a single output want them: a column of 0.0 and 1.0."""
    return data.targets(lambda y: y[:, None].float())


@cache
def raw_cancer() -> Data:
    """The same as it comes: measures from 0.001 to 4,000."""
    measures, labels = needed("sklearn.datasets").load_breast_cancer(return_X_y=True)
    return Data.split(torch.tensor(measures, dtype=torch.float32), torch.tensor(labels), 150)


@cache
def diabetes() -> Data:
    """Ten standardised inputs and a standardised target; 342 to train on."""
    data = raw_diabetes()
    return data.targets(lambda y: (y - data.y.mean()) / data.y.std())


@cache
def raw_diabetes() -> Data:
    """Targets as they come, 25 to 346."""
    inputs, progress = needed("sklearn.datasets").load_diabetes(return_X_y=True, scaled=False)
    x = torch.tensor((inputs - inputs.mean(0)) / inputs.std(0), dtype=torch.float32)
    return Data.split(x, torch.tensor(progress, dtype=torch.float32)[:, None], 100)


TEXT = Path("/usr/share/common-licenses/GPL-3")
LENGTH = 32


@cache
def gpl() -> Data:
    """Sequences of 32 characters and the characters that follow; the last tenth of the text to validate on."""
    if not TEXT.exists():
        raise Missing(f"needs {TEXT}")
    text = TEXT.read_text(encoding="utf-8")
    known = sorted(set(text))
    tokens = torch.tensor([known.index(letter) for letter in text])
    x, y = (tokens[shift : shift + (len(tokens) - 1) // LENGTH * LENGTH].view(-1, LENGTH) for shift in (0, 1))
    held_out = len(x) // 10
    return Data(x[:-held_out], y[:-held_out], x[-held_out:], y[-held_out:])


@cache
def china() -> Data:
    """Patches of 8 x 8 grey pixels of a photograph, 2,400 to train on; inputs are their own targets."""
    needed("PIL")
    grey = needed("sklearn.datasets").load_sample_image("china.jpg").mean(2)[:424, :640] / 255
    patches = np.lib.stride_tricks.sliding_window_view(grey, (8, 8))[::8, ::8].reshape(-1, 64)
    x = torch.tensor(patches - patches.mean(), dtype=torch.float32) / float(patches.std())
    return Data.split(x, x.clone(), 400).first(2_400)
