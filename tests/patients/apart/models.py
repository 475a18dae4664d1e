"""Architectures: U-Net, dilated and dense convolutions, highways, sets, maxout, gates, graphs, sequences, mixtures"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -- pictures ----------------------------------------------------------------------------------------------------------


def block(inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
    """A convolution, batch norm, SiLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class UNet(nn.Module):
    """Down twice and up again, with the finer maps handed across; adds its output to the picture, or not."""

    def __init__(self, width: int = 6, norm: bool = True) -> None:
        super().__init__()
        self.down = nn.ModuleList([self.stage(1, width, norm), self.stage(width, 2 * width, norm)])
        self.bottom = self.stage(2 * width, 2 * width, norm)
        self.up = nn.ModuleList([self.stage(4 * width, width, norm), self.stage(2 * width, width, norm)])
        self.last = nn.Conv2d(width, 1, 1)

    @staticmethod
    def stage(inputs: int, outputs: int, norm: bool) -> nn.Module:
        if norm:
            return block(inputs, outputs)
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 16, 16) to the same shape."""
        fine = self.down[0](x)
        coarse = self.down[1](F.avg_pool2d(fine, 2))
        bottom = F.interpolate(self.bottom(F.avg_pool2d(coarse, 2)), scale_factor=2)
        up = F.interpolate(self.up[0](torch.cat([bottom, coarse], 1)), scale_factor=2)
        return self.last(self.up[1](torch.cat([up, fine], 1)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Every convolution sees the outputs of all before it."""

    def __init__(self, growth: int = 5, depth: int = 3, classes: int = 26) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, growth, 3, 2, 1), nn.ReLU())
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(growth * (i + 1)), nn.ReLU(), nn.Conv2d(growth * (i + 1), growth, 3, padding=1)
            )
            for i in range(depth)
        )
        self.head = nn.Linear(growth * (depth + 1) * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 1, 16, 16) to logits."""
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


def mobile(width: int = 12, classes: int = 26) -> nn.Module:
    """Convolutions of single channels, and of single places, in turn."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU6(),
        *(layer for _ in range(2) for layer in (
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU6(),
        )),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * width, classes),
    )  # fmt: skip


class Squeeze(nn.Module):
    """Scales each channel by what the whole picture says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x.mean((2, 3)))[:, :, None, None]  # type: ignore[no-any-return]


def squeezed(width: int = 9, classes: int = 26) -> nn.Module:
    """Convolutions with group norm, whose channels are squeezed and excited."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 2, 1), nn.GroupNorm(3, width), nn.SiLU(), Squeeze(width),
        nn.Conv2d(width, 2 * width, 3, 1, 1), nn.GroupNorm(3, 2 * width), nn.SiLU(), Squeeze(2 * width),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32 * width, classes),
    )  # fmt: skip


class Perceiver(nn.Module):
    """A few latent vectors look at the rows of a picture, and tell the class."""

    def __init__(self, width: int = 24, latents: int = 4, classes: int = 26) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(16, width), nn.Parameter(0.1 * torch.randn(32, width))
        self.latents = nn.Parameter(0.5 * torch.randn(latents, width))
        self.look = nn.MultiheadAttention(width, 4, batch_first=True)
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width * latents, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (n, 1, 16, 16) to logits: rows and columns are the tokens."""
        seen = self.embed(torch.cat([x[:, 0], x[:, 0].transpose(1, 2)], 1)) + self.places
        latents = self.latents.expand(len(x), -1, -1)
        latents = latents + self.look(latents, seen, seen, need_weights=False)[0]
        return self.head(self.norm(latents + self.think(latents)).flatten(1))  # type: ignore[no-any-return]


class Siamese(nn.Module):
    """Pictures to places on a sphere; ``head`` tells the class from there."""

    def __init__(self, width: int = 12, code: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * width, code),
        )  # fmt: skip
        self.head = nn.Linear(code, 26)

    def code(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.code(x))  # type: ignore[no-any-return]


# -- tables ------------------------------------------------------------------------------------------------------------


class Highway(nn.Module):
    """Layers each of whose units is let past or made anew, as a gate says."""

    def __init__(self, inputs: int, outputs: int, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            open_ = gate(x).sigmoid()
            x = open_ * layer(x).relu() + (1 - open_) * x
        return self.last(x)  # type: ignore[no-any-return]


class Maxout(nn.Module):
    """The largest of ``pieces`` linear functions."""

    def __init__(self, inputs: int, outputs: int, pieces: int = 3) -> None:
        super().__init__()
        self.pieces, self.linear = pieces, nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.pieces)).amax(2)  # type: ignore[no-any-return]


def maxout(inputs: int, outputs: int, width: int = 24, drop: float = 0.0) -> nn.Module:
    """Two maxout layers."""
    return nn.Sequential(
        Maxout(inputs, width), nn.Dropout(drop), Maxout(width, width), nn.Dropout(drop), nn.Linear(width, outputs)
    )


def gated(inputs: int, outputs: int, width: int = 32, depth: int = 2) -> nn.Module:
    """Linear layers half of whose units gate the other half."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, 2 * width), nn.GLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class RootNorm(nn.Module):
    """RMSNorm, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()  # type: ignore[no-any-return]


def swish(inputs: int, outputs: int, width: int = 48, depth: int = 3) -> nn.Module:
    """Linear layers with RMSNorm and SiLU."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), RootNorm(width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class WideDeep(nn.Module):
    """Tables of vectors for the kinds of a diamond, a line and a net."""

    def __init__(self, width: int = 32, code: int = 4) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, code) for count in (5, 7, 8))
        self.wide = nn.Linear(1, 1)
        self.deep = nn.Sequential(nn.Linear(1 + 3 * code, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1 number + 3 kinds) to (n, 1)."""
        kinds = [table(x[:, i + 1].long()) for i, table in enumerate(self.tables)]
        return self.wide(x[:, :1]) + self.deep(torch.cat([x[:, :1], *kinds], 1))  # type: ignore[no-any-return]


class Factors(nn.Module):
    """Who marks whom, by the product of two vectors and two leanings."""

    def __init__(self, code: int = 8, scale: float = 0.1) -> None:
        super().__init__()
        self.who, self.whom = nn.Embedding(2_972, code), nn.Embedding(1_128, code)
        self.strict, self.liked = nn.Embedding(2_972, 1), nn.Embedding(1_128, 1)
        for table in (self.who, self.whom, self.strict, self.liked):
            nn.init.normal_(table.weight, std=scale)

    def forward(self, x: Tensor) -> Tensor:
        """Numbers (n, 2) to marks (n, 1)."""
        who, whom = x[:, 0], x[:, 1]
        fit = (self.who(who) * self.whom(whom)).sum(1, keepdim=True)
        return fit + self.strict(who) + self.liked(whom)  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """Several normal distributions for one number: mean of all first, then weights, means, log deviations."""

    def __init__(self, inputs: int, parts: int = 4, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 3 * parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weights, means, spreads = self.head(self.body(x)).chunk(3, 1)
        weights = weights.log_softmax(1)
        return (weights.exp() * means).sum(1, keepdim=True), weights, means, spreads


def likelihood(model: nn.Module, batch: Any) -> Tensor:
    """The negative logarithm of what a mixture gives to the targets."""
    _, weights, means, spreads = model(batch[0])
    normal = torch.distributions.Normal(means, spreads.exp() + 1e-2)
    return -torch.logsumexp(weights + normal.log_prob(batch[1]), 1).mean()


class Coupling(nn.Module):
    """Half of the numbers tells how the other half is shifted and scaled."""

    def __init__(self, width: int, even: bool) -> None:
        super().__init__()
        self.register_buffer("kept", (torch.arange(width) % 2 == int(even)).float())
        self.net = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 2 * width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers changed, and the logarithm of how much room they take."""
        scale, shift = self.net(x * self.kept).chunk(2, 1)
        scale = torch.tanh(scale) * (1 - self.kept)
        return x * scale.exp() + shift * (1 - self.kept), scale.sum(1)


class Flow(nn.Module):
    """A normalising flow: couplings in a row."""

    def __init__(self, width: int = 25, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Coupling(width, i % 2 == 0) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of the density of each row."""
        total = torch.zeros(len(x))
        for layer in self.layers:
            x, room = layer(x)
            total = total + room
        return total - 0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


def denoiser(width: int = 25, hidden: int = 64) -> nn.Module:
    """A net that gives back what noise has hidden."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
        nn.Linear(hidden, width),
    )  # fmt: skip


class Bumps(nn.Module):
    """Radial basis functions: bells at places that are learnt."""

    def __init__(self, inputs: int, outputs: int, count: int = 64, width: float = 0.3) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(count, inputs) * 2 - 1)
        self.narrow = nn.Parameter(torch.full((count,), -math.log(width)))
        self.last = nn.Linear(count, outputs)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x[:, None] - self.centres).square().sum(2)
        return self.last(torch.exp(-distance * (2 * self.narrow).exp()))  # type: ignore[no-any-return]


class Fourier(nn.Module):
    """Places seen through waves of random directions, then a net."""

    def __init__(self, waves: int = 24, scale: float = 3.0, width: int = 48) -> None:
        super().__init__()
        self.register_buffer("waves", scale * torch.randn(2, waves))
        self.net = nn.Sequential(
            nn.Linear(2 * waves, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = x @ self.waves  # type: ignore[operator]
        return self.net(torch.cat([seen.sin(), seen.cos()], 1))  # type: ignore[no-any-return]


class Neighbours(nn.Module):
    """Graph convolutions: each row is mixed with the rows that are nearest to it in its first two numbers."""

    def __init__(self, inputs: int, width: int = 32, nearest: int = 8) -> None:
        super().__init__()
        self.nearest = nearest
        self.layers = nn.ModuleList([nn.Linear(2 * inputs, width), nn.Linear(2 * width, width)])
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x[:, :2], x[:, :2]).topk(self.nearest, largest=False).indices
        for layer in self.layers:
            x = layer(torch.cat([x, x[near].mean(1)], 1)).relu()
        return self.last(x)  # type: ignore[no-any-return]


# -- series and text ---------------------------------------------------------------------------------------------------


class Dilated(nn.Module):
    """Causal convolutions each of which looks twice as far back, around which the signal also flows."""

    def __init__(self, width: int = 8, depth: int = 4, outputs: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 1)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(depth))
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, months) to (n, 1)."""
        x = self.first(x)
        for i, layer in enumerate(self.layers):
            x = x + layer(F.pad(x, (2 * 2**i, 0))).relu()
        return self.last(x[:, :, -1])  # type: ignore[no-any-return]


class WordModel(nn.Module):
    """A recurrent model of words, whose output layer is its table of words."""

    def __init__(self, width: int = 24, words: int = 300, drop: float = 0.0) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(words, width), nn.GRU(width, width, batch_first=True)
        self.drop, self.bias = nn.Dropout(drop), nn.Parameter(torch.zeros(words))
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, length) to logits (n, words, length)."""
        read = self.drop(self.rnn(self.drop(self.words(x)))[0])
        return (read @ self.words.weight.T + self.bias).transpose(1, 2)  # type: ignore[no-any-return]


def turned(x: Tensor) -> Tensor:
    """Pairs of numbers turned by an angle that grows with the place (rotary places)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 100.0 ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Rotary(nn.Module):
    """A causal transformer with RMSNorm, gated units and rotary places."""

    def __init__(self, width: int = 24, depth: int = 1, words: int = 300, outputs: int = 300) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(words, width), RootNorm(width)
        nn.init.normal_(self.words.weight, std=0.3)
        self.head = nn.Linear(width, outputs, bias=False)
        self.norms = nn.ModuleList(RootNorm(width) for _ in range(2 * depth))
        self.mix = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(2 * width, width, bias=False) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, length) to logits (n, outputs, length)."""
        x = self.words(x)
        for i, mix in enumerate(self.mix):
            query, key, value = (
                part.unflatten(2, (2, -1)).transpose(1, 2) for part in mix(self.norms[2 * i](x)).chunk(3, 2)
            )
            seen = F.scaled_dot_product_attention(turned(query), turned(key), value, is_causal=True)
            x = x + self.out[i](seen.transpose(1, 2).flatten(2))
            gate, up = self.gates[i](self.norms[2 * i + 1](x)).chunk(2, 2)
            x = x + self.down[i](F.silu(gate) * up)
        return self.head(self.last(x)).transpose(1, 2)  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """A recurrent net that reads both ways and tells a kind for every character."""

    def __init__(self, width: int = 16, kinds: int = 6) -> None:
        super().__init__()
        self.letters = nn.Embedding(128, 12)
        self.rnn = nn.GRU(12, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Characters (n, length) to logits (n, kinds, length)."""
        return self.head(self.rnn(self.letters(x))[0]).transpose(1, 2)  # type: ignore[no-any-return]


class Sequences(nn.Module):
    """Reads letters, then writes letters while it attends to what was read; all in one go."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.letters = nn.Embedding(27, width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.asked = nn.Parameter(0.3 * torch.randn(12, width))
        self.writer = nn.GRU(width, width, batch_first=True)
        self.places = nn.Parameter(0.3 * torch.randn(12, width))
        self.head = nn.Linear(2 * width, 27)

    def forward(self, x: Tensor) -> Tensor:
        """Letters (n, 12) to logits (n, 27, 12)."""
        read, last = self.reader(self.letters(x))
        written, _ = self.writer(self.asked.expand(len(x), -1, -1), last)
        fit = written @ (read + self.places).transpose(1, 2) / math.sqrt(written.shape[2])
        seen = fit.softmax(2) @ (read + self.letters(x))
        return self.head(torch.cat([written, seen], 2)).transpose(1, 2)  # type: ignore[no-any-return]


class WordBag(nn.Module):
    """A set of words: each goes through a net, their sum through another."""

    def __init__(self, width: int = 24, words: int = 2_000, classes: int = 2, drop: float = 0.0) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=0)
        self.each = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.all = nn.Sequential(
            nn.Dropout(drop), nn.Linear(width, width), nn.ReLU(), nn.Dropout(drop), nn.Linear(width, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, count) to logits."""
        there = (x > 0)[:, :, None].float()
        return self.all((self.each(self.words(x)) * there).sum(1) / there.sum(1).clamp_min(1))  # type: ignore[no-any-return]


def spelt(classes: int = 2, width: int = 24, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Letters as vectors, convolutions over them, the largest of each."""
    return nn.Sequential(
        nn.Embedding(27, 12), Swapped(), nn.Conv1d(12, width, 3, padding=1), activation(),
        nn.Conv1d(width, width, 3, padding=1, dilation=1), activation(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


class Swapped(nn.Module):
    """The last two sides of a tensor swapped."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def plain(*widths: int, activation: Callable[[], nn.Module] = nn.GELU) -> nn.Module:
    """Linear layers with something between them: for heads and critics."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])
