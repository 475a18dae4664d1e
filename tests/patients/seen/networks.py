"""Architectures once apart: residual nets, GRUs, vision transformers, mixers, 1-D convolutions and others."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """Blocks of two linear layers around which the signal also flows; ``norm`` before each block or not."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int, norm: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(self.block(width, norm) for _ in range(depth))

    @staticmethod
    def block(width: int, norm: bool = True) -> nn.Module:
        before = nn.LayerNorm(width) if norm else nn.Identity()
        return nn.Sequential(before, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) to (n, outputs)."""
        x = self.first(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """A residual CNN for images of 14 x 14."""

    def __init__(self, channels: int = 8, depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.ModuleList(self.block(channels) for _ in range(depth))
        self.head = nn.Linear(channels * 16, classes)

    @staticmethod
    def block(channels: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def features(self, x: Tensor) -> Tensor:
        """Images (n, 1, 14, 14) to (n, 16 * channels)."""
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return F.adaptive_avg_pool2d(x, 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class Reader(nn.Module):
    """A GRU that reads an image row by row and tells the class at the end."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(14, width, batch_first=True), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 14, 14) to logits."""
        read, _ = self.gru(x[:, 0])
        return self.head(read[:, -1])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with one head, written out; ``scaled`` by the root of the width or not."""

    def __init__(self, width: int, scaled: bool = True) -> None:
        super().__init__()
        self.mix, self.out, self.softmax = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Softmax(-1)
        self.scale = 1 / math.sqrt(width) if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, width) to the same shape."""
        query, key, value = self.mix(x).chunk(3, -1)
        return self.out(self.softmax(query @ key.transpose(1, 2) * self.scale) @ value)  # type: ignore[no-any-return]


class ViT(nn.Module):
    """A transformer over the rows of an image of 14 x 14."""

    def __init__(self, width: int = 32, depth: int = 2, drop: float = 0.0, classes: int = 10) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(14, width), nn.Parameter(0.02 * torch.randn(14, width))
        self.attention = nn.ModuleList(Attention(width) for _ in range(depth))
        self.mixing = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.drop, self.last, self.head = nn.Dropout(drop), nn.LayerNorm(width), nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, 1, 14, 14) to (n, width)."""
        x = self.embed(x[:, 0]) + self.places
        for norm, attention, mixing in zip(self.norms, self.attention, self.mixing, strict=True):
            x = x + self.drop(attention(norm(x)))
            x = x + self.drop(mixing(x))
        return self.last(x).mean(1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """Linear layers over rows and over columns in turn."""

    def __init__(self, depth: int = 3, width: int = 32, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(14, width), nn.Linear(14 * width, 10)
        self.across = nn.ModuleList(nn.Sequential(nn.Linear(14, 14), activation()) for _ in range(depth))
        self.along = nn.ModuleList(nn.Sequential(nn.Linear(width, width), activation()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 14, 14) to logits (n, 10)."""
        x = self.embed(x[:, 0])
        for across, along in zip(self.across, self.along, strict=True):
            x = along(across(x.transpose(1, 2)).transpose(1, 2))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def conv1d(
    depth: int = 3, channels: int = 16, activation: Callable[[], nn.Module] = nn.ReLU, norm: bool = False,
    classes: int = 10,
) -> nn.Module:  # fmt: skip
    """Convolutions over a signal of 40, at half its length from the second one on."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv1d(channels if i else 1, channels, 5, 2 if i == 1 else 1, 2)]
        layers += [*([nn.BatchNorm1d(channels)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (20 if depth > 1 else 40), classes))


class ConvAutoencoder(nn.Module):
    """Images of 14 x 14 to a code and back; the output goes through a sigmoid."""

    def __init__(self, code: int = 16, channels: int = 8, last: type[nn.Module] = nn.Sigmoid) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2, 1), nn.ELU(), nn.Flatten(), nn.Linear(49 * channels, code)
        )
        self.decoder = nn.Sequential(
            nn.Linear(code, 49 * channels),
            nn.ELU(),
            nn.Unflatten(1, (channels, 7, 7)),
            nn.ConvTranspose2d(channels, 1, 4, 2, 1),
            last(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


class VAE(nn.Module):
    """A variational autoencoder of images of 14 x 14."""

    def __init__(self, code: int = 8, width: int = 96) -> None:
        super().__init__()
        self.code = code
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(196, width), nn.SiLU(), nn.Linear(width, 2 * code))
        self.decoder = nn.Sequential(
            nn.Linear(code, width), nn.SiLU(), nn.Linear(width, 196), nn.Unflatten(1, (1, 14, 14))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images to reconstruction, mean and logarithm of the variance."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def vae_objective(weight: float) -> Callable[[nn.Module, Any], Tensor]:
    """Squared error + ``weight`` x KL divergence, both per image."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        made, mean, log_variance = model(batch[0])
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return (made - batch[1]).square().flatten(1).sum(1).mean() + weight * divergence  # type: ignore[no-any-return]

    return objective


class CharRNN(nn.Module):
    """A recurrent language model of characters."""

    def __init__(self, width: int = 48, cell: Callable[..., nn.Module] = nn.GRU) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(100, width), cell(width, width, batch_first=True)
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, 24) to logits (n, 100, 24)."""
        read, _ = self.rnn(self.words(x))
        return self.head(read).transpose(1, 2)  # type: ignore[no-any-return]


class Coordinates(nn.Module):
    """A photograph as a function of the place; ``waves``: frequencies that the place is seen through, or none."""

    def __init__(
        self, width: int = 64, depth: int = 3, waves: int = 16, activation: Callable[[], nn.Module] = nn.ReLU
    ) -> None:
        super().__init__()
        self.register_buffer("waves", 6 * torch.randn(2, waves) if waves else None)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else 2 * waves or 2, width), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Places (n, 2) to colours (n, 3)."""
        if self.waves is not None:
            x = torch.cat([(x @ self.waves).sin(), (x @ self.waves).cos()], 1)
        return self.layers(x)  # type: ignore[no-any-return]


def selu_net(inputs: int, outputs: int, width: int = 24, depth: int = 3) -> nn.Module:
    """A self-normalising net for tables."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), nn.SELU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))
