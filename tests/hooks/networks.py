"""Small models of every common kind, each with a batch, for tests of the probe."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropoutNet(nn.Sequential):
    """A perceptron with dropout and an in-place rectifier."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 32), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(32, 4))


class ConvNet(nn.Module):
    """Convolutions with batch norm and rectifiers called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2)
        return self.head(F.relu(self.conv2(x), inplace=True).mean((2, 3)))


class RecurrentNet(nn.Module):
    """Two layers of LSTM with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 16, num_layers=2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class TransformerNet(nn.Module):
    """A transformer encoder with dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


@dataclass(frozen=True)
class Kind:
    """A model and the shape of one sample of its input."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]


KINDS = {
    "mlp": Kind(DropoutNet, (12,)),
    "cnn": Kind(ConvNet, (1, 8, 8)),
    "lstm": Kind(RecurrentNet, (6, 5)),
    "transformer": Kind(TransformerNet, (5, 16)),
}


def batch(kind: str, size: int = 8) -> tuple[Tensor, Tensor]:
    """A random batch from torch's own generator, as a data loader with augmentation would draw it."""
    return torch.randn(size, *KINDS[kind].shape), torch.randint(0, 4, (size,))
