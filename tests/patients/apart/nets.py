"""Architectures: U-Nets, dilated convolutions, dense and depthwise convnets, highway and gated nets, sets, taggers."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# -- images ------------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Images of 16 x 16 down to 4 x 4 and back, with what was seen on the way down handed across."""

    def __init__(self, channels: int = 6, activation: Callable[[], nn.Module] = nn.SiLU) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(2, after), activation())

        self.top, self.middle, self.bottom = block(1, channels), block(channels, 12), block(12, 24)
        self.widen, self.widest = nn.ConvTranspose2d(24, 12, 2, 2), nn.ConvTranspose2d(12, channels, 2, 2)
        self.up, self.last = block(24, 12), nn.Sequential(block(2 * channels, channels), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 16, 16) to images."""
        top = self.top(x)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up(torch.cat([self.widen(bottom), middle], 1))
        return self.last(torch.cat([self.widest(middle), top], 1))  # type: ignore[no-any-return]


class DenseNet(nn.Module):
    """Each convolution sees all that came before it; 26 classes for images of 16 x 16."""

    def __init__(self, growth: int = 6, depth: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)
        self.blocks = nn.ModuleList(self.block(8 + i * growth, growth, norm) for i in range(depth))
        self.head = nn.Linear(16 * (8 + depth * growth), 26)

    @staticmethod
    def block(before: int, growth: int, norm: bool) -> nn.Module:
        first = nn.BatchNorm2d(before) if norm else nn.Identity()
        return nn.Sequential(first, nn.ReLU(), nn.Conv2d(before, growth, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 16, 16) to logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.head(F.avg_pool2d(F.relu(x), 2).flatten(1))  # type: ignore[no-any-return]


class Squeeze(nn.Module):
    """Channels weighted by what the whole image shows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.layers(x)  # type: ignore[no-any-return]


def mobilenet(
    channels: int = 16, depth: int = 2, norm: Callable[[int], nn.Module] = nn.BatchNorm2d, squeeze: bool = False
) -> nn.Sequential:
    """Depthwise and pointwise convolutions; 26 classes for images of 16 x 16."""
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, 2, 1), norm(channels), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, groups=channels), norm(channels), nn.ReLU()]
        layers += [nn.Conv2d(channels, channels, 1), norm(channels), nn.ReLU()]
        layers += [Squeeze(channels)] if squeeze else []
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * channels, 26))


def group_norm_net(channels: int = 12, depth: int = 3) -> nn.Sequential:
    """Convolutions with group norm; 26 classes for images of 16 x 16."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(channels if i else 1, channels, 3, 1 if i else 2, 1), nn.GroupNorm(3, channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * channels, 26))


# -- tables ------------------------------------------------------------------------------------------------------------


class HighwayLayer(nn.Module):
    """A layer and a gate that says how much of it is used; the rest of the signal goes past."""

    def __init__(self, width: int, gate: float) -> None:
        super().__init__()
        self.layer, self.gate, self.sigmoid = nn.Linear(width, width), nn.Linear(width, width), nn.Sigmoid()
        nn.init.constant_(self.gate.bias, gate)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.sigmoid(self.gate(x))
        return gate * F.relu(self.layer(x)) + (1 - gate) * x  # type: ignore[no-any-return]


def highway(inputs: int, outputs: int, width: int = 24, depth: int = 4, gate: float = -1.0) -> nn.Sequential:
    """A highway net; ``gate``: what the biases of the gates start with."""
    layers = (HighwayLayer(width, gate) for _ in range(depth))
    return nn.Sequential(nn.Linear(inputs, width), *layers, nn.Linear(width, outputs))


class Gated(nn.Module):
    """A gated linear unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.both(x), -1)


class GatedNet(nn.Module):
    """Gated linear units in a row, with the signal also around each of them or not."""

    def __init__(self, inputs: int, outputs: int, width: int = 32, depth: int = 6, around: bool = True) -> None:
        super().__init__()
        self.first, self.last, self.around = nn.Linear(inputs, width), nn.Linear(width, outputs), around
        self.blocks = nn.ModuleList(Gated(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, outputs)."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x) if self.around else block(x)
        return self.last(x)  # type: ignore[no-any-return]


class Maxout(nn.Module):
    """The largest of several linear pieces, unit by unit."""

    def __init__(self, pieces: Iterable[nn.Linear]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(pieces)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([piece(x) for piece in self.pieces]).amax(0)


def maxout(inputs: int, outputs: int, width: int = 24, pieces: int = 3) -> nn.Sequential:
    """Two maxout layers and a linear one."""
    sizes = ((inputs, width), (width, width))
    layers = (Maxout(nn.Linear(*size) for _ in range(pieces)) for size in sizes)
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class WideAndDeep(nn.Module):
    """Measures beside embedded grades: a linear model and a deep one, added up."""

    def __init__(self, width: int = 48, embedded: int = 6, norm: bool = False) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, embedded) for count in (5, 7, 8))
        inputs = 6 + 3 * embedded
        self.wide = nn.Linear(inputs, 1)
        self.deep = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Six measures and three grades (n, 9) to (n, 1)."""
        grades = [table(x[:, 6 + i].long()) for i, table in enumerate(self.tables)]
        x = torch.cat([x[:, :6], *grades], 1)
        return self.wide(x) + self.deep(x)  # type: ignore[no-any-return]


class Bumps(nn.Module):
    """Radial basis functions: bumps with learnt centres and widths."""

    def __init__(self, inputs: int = 2, count: int = 64) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(count, inputs) * 2 - 1)
        self.widths, self.last = nn.Parameter(torch.full((count,), 1.0)), nn.Linear(count, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, 1)."""
        distances = (x[:, None] - self.centres).square().sum(2)
        return self.last(torch.exp(-distances * self.widths.exp()))  # type: ignore[no-any-return]


class CrossNet(nn.Module):
    """Products of the inputs, of one degree more with each layer, beside what a plain layer sees."""

    def __init__(self, inputs: int, depth: int = 3, width: int = 32) -> None:
        super().__init__()
        self.crosses = nn.ModuleList(nn.Linear(inputs, inputs) for _ in range(depth))
        self.deep = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        self.last = nn.Linear(inputs + width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, 1)."""
        crossed = x
        for cross in self.crosses:
            crossed = crossed + x * cross(crossed)
        return self.last(torch.cat([crossed, self.deep(x)], 1))  # type: ignore[no-any-return]


# -- sequences ---------------------------------------------------------------------------------------------------------


class Dilated(nn.Module):
    """Causal convolutions of ever wider reach over a signal; ``around``: with the signal also past each of them."""

    def __init__(
        self, depth: int = 4, channels: int = 16, activation: Callable[[], nn.Module] = nn.ReLU, around: bool = True
    ) -> None:
        super().__init__()
        self.first, self.last, self.around = nn.Conv1d(1, channels, 1), nn.Linear(channels, 1), around
        self.convolutions = nn.ModuleList(nn.Conv1d(channels, channels, 3, dilation=2 ** (i % 5)) for i in range(depth))
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Signals (n, 1, length) to (n, 1)."""
        x = self.first(x)
        for i, convolution in enumerate(self.convolutions):
            made = self.activation(convolution(F.pad(x, (2 * 2 ** (i % 5), 0))))
            x = x + made if self.around else made
        return self.last(x[:, :, -1])  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """Characters read from both sides by a GRU, and a kind for each."""

    def __init__(self, width: int = 32, embedded: int = 16, kinds: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, embedded)
        self.gru = nn.GRU(embedded, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Characters (n, length) to logits (n, kinds, length)."""
        return self.head(self.gru(self.embed(x))[0]).transpose(1, 2)  # type: ignore[no-any-return]


class Sets(nn.Module):
    """A verse as a set of words: each is looked at alone, and what was seen is averaged."""

    def __init__(self, width: int = 32, words: int = 800, classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width, padding_idx=0)
        self.each = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.all = nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))

    def pool(self, seen: Tensor, there: Tensor) -> Tensor:
        """(n, words, width) and which words are there (n, words, 1) to (n, width)."""
        return (seen * there).sum(1) / there.sum(1).clamp_min(1)

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, words) to logits."""
        return self.all(self.pool(self.each(self.embed(x)), (x > 0)[:, :, None]))  # type: ignore[no-any-return]


class Pooled(nn.Module):
    """Words weighed by attention and averaged; ``heat`` divides what the softmax sees."""

    def __init__(self, width: int = 32, words: int = 800, classes: int = 5, heat: float = 1.0) -> None:
        super().__init__()
        self.embed, self.heat = nn.Embedding(words, width, padding_idx=0), heat
        self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
        self.softmax, self.value = nn.Softmax(1), nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Words (n, words) to logits."""
        words = self.embed(x)
        score = (self.score(words) / self.heat).masked_fill((x == 0)[:, :, None], -torch.inf)
        return self.head((self.softmax(score) * self.value(words)).sum(1))  # type: ignore[no-any-return]


class RMSNorm(nn.Module):
    """Vectors divided by the root of their mean square."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def turned(x: Tensor) -> Tensor:
    """Queries or keys (n, heads, length, width) turned by an angle that grows with their place."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * 10_000 ** (-torch.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), one * angles.sin() + two * angles.cos()], -1)


class RotaryBlock(nn.Module):
    """Attention between turned queries and keys, then a gated layer, each after a norm."""

    def __init__(self, width: int, heads: int, causal: bool, eps: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(RMSNorm(width, eps) for _ in range(2))
        self.mix, self.out, self.heads, self.causal = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            heads,
            causal,
        )
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mix(self.norms[0](x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        read = F.scaled_dot_product_attention(turned(query), turned(key), value, is_causal=self.causal)
        x = x + self.out(read.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]


class Rotary(nn.Module):
    """A transformer with rotary places; an output for each token."""

    def __init__(
        self, words: int, outputs: int, width: int = 32, depth: int = 2, causal: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(RotaryBlock(width, 2, causal, eps) for _ in range(depth))
        self.norm, self.head = RMSNorm(width, eps), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n, length) to logits (n, outputs, length)."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)  # type: ignore[no-any-return]
