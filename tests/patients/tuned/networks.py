"""Architectures of the tuned half: perceptrons, plain CNNs, LSTMs, a small GPT, autoencoders."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, norm: Any = None, drop: float = 0.0) -> nn.Module:
    """Linear layers with what belongs between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), *([norm(after)] if norm else []), activation()]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def cnn(channels: int = 8, *, norm: bool = True, classes: int = 10) -> nn.Module:
    """Two convolutions on images of 8 x 8."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, channels, 3, padding=1),
        *([nn.BatchNorm2d(channels)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        *([nn.BatchNorm2d(2 * channels)] if norm else []),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * channels, classes),
    )


def deep_cnn(depth: int, activation: Callable[[], nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    """As many convolutions of the same width in a row, without pooling between them."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for i in range(depth):
        layers += [nn.Conv2d(8 if i else 1, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


class RowReader(nn.Module):
    """An LSTM that reads an image of 8 x 8 row by row, and tells the class at the end."""

    def __init__(self, width: int = 32, layers: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, width, layers, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 64) to logits (n, 10)."""
        read, _ = self.lstm(x.view(-1, 8, 8))
        return self.head(read[:, -1])  # type: ignore[no-any-return]


class PixelReader(nn.Module):
    """A recurrent net that reads the same image ``pixels`` by pixels."""

    def __init__(self, width: int = 32, cell: Callable[..., nn.Module] = nn.LSTM, pixels: int = 1) -> None:
        super().__init__()
        self.pixels, self.rnn = pixels, cell(pixels, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 64) to logits (n, 10)."""
        read, _ = self.rnn(x.view(len(x), -1, self.pixels))
        return self.head(read[:, -1])  # type: ignore[no-any-return]


class GPT(nn.Module):
    """A language model of characters: causal attention, pre-norm."""

    def __init__(self, width: int = 32, layers: int = 1, drop: float = 0.0, words: int = 100) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(32, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, drop, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, 32) to logits (n, 100, 32)."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.words(x) + self.places.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(hidden, mask=mask, is_causal=True))).transpose(1, 2)  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """64 numbers through a bottleneck and back."""

    def __init__(self, code: int = 12, width: int = 48, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.encoder = mlp(64, width, code, activation=activation)
        self.decoder = mlp(code, width, 64, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (n, 64) to patches (n, 64)."""
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


class TopK(nn.Module):
    """Keeps the ``k`` largest units of each sample: sparse by design."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        """(n, units) to the same shape."""
        kept = x.topk(self.k, 1)
        return torch.zeros_like(x).scatter(1, kept.indices, kept.values.relu())
