"""What is done to the input of a model's first layer: scaled, or varied in training."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from trainmedic.remedies._graft import Graft


def takes_numbers(module: nn.Module) -> bool:
    """Whether a module is a layer whose input is a tensor of features: linear, convolution, recurrent."""
    return isinstance(module, nn.Linear | nn.RNNBase | _ConvNd) and not isinstance(module, _ConvTransposeNd)


def features_of(module: nn.Module) -> int:
    """How many features it takes."""
    for name in ("in_features", "in_channels", "input_size"):
        if isinstance(size := getattr(module, name, None), int):
            return size
    return 0


def feature_axis(module: nn.Module, taken: Tensor) -> int:
    """Along which dimension of its input the features lie."""
    return taken.ndim - 1 - len(module.kernel_size) if isinstance(module, _ConvNd) else taken.ndim - 1


class Standardised(Graft):
    """A layer whose input is brought to mean 0 and deviation 1, feature by feature.

    Means and deviations are those of the first ``medic_batches`` training batches; features that do not vary in them
    are only centred. Until there is one, the input goes through as it is.
    """

    parts: ClassVar[tuple[str, ...]] = ("medic_mean", "medic_square", "medic_count", "medic_batches", "medic_done")
    medic_mean: Tensor
    medic_square: Tensor
    medic_count: Tensor
    medic_batches: int
    medic_done: bool

    @staticmethod
    def made_for(layer: nn.Module, batches: int) -> dict[str, Any]:
        """The parts of the graft for one layer."""
        weight = next(layer.parameters())
        empty = torch.zeros(features_of(layer), device=weight.device)
        return {
            "medic_mean": empty,
            "medic_square": empty.clone(),  # sum of squared distances from the mean
            "medic_count": torch.zeros(2, dtype=torch.int64, device=weight.device),  # batches, values per feature
            "medic_batches": batches,
            "medic_done": False,
        }

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(input, Tensor) and input.is_floating_point():
            if not self.medic_done and self.training and torch.is_grad_enabled():
                self._learn(input.detach().float())
            input = self._scaled(input)
        return super().forward(input, *args, **kwargs)

    @torch.no_grad()
    def _learn(self, taken: Tensor) -> None:
        if int(self.medic_count[0]) >= self.medic_batches:
            vars(self)["medic_done"] = True
            return
        axis = feature_axis(self, taken)
        rows = taken.movedim(axis, -1).reshape(-1, taken.shape[axis])
        variance, mean = torch.var_mean(rows, 0, correction=0)
        before, count = self.medic_count[1], len(rows)
        total, off = before + count, mean - self.medic_mean
        self.medic_mean += off * count / total
        self.medic_square += variance * count + off.square() * before * count / total  # Chan et al. 1983
        self.medic_count += torch.tensor([1, count], device=self.medic_count.device)

    def _scaled(self, taken: Tensor) -> Tensor:
        deviation = (self.medic_square / self.medic_count[1].clamp_min(1)).sqrt()
        # deviations below what single precision resolves of the mean are rounding
        still = deviation <= 1e-6 * self.medic_mean.abs()
        deviation = torch.where(still, torch.ones_like(deviation), deviation)
        shape = [1] * taken.ndim
        shape[feature_axis(self, taken)] = -1
        wide = taken if taken.dtype == torch.float64 else taken.float()
        return ((wide - self.medic_mean.view(shape)) / deviation.view(shape)).to(taken.dtype)


class Varied(Graft):
    """A layer whose input is another one each time in training: images shifted, features with noise added.

    ``medic_shift``: pixels up to which each image is moved along each of its dimensions, zeros moving in.
    ``medic_noise``: standard deviation of Gaussian noise, as a share of that of the batch, feature by feature.
    """

    parts: ClassVar[tuple[str, ...]] = ("medic_shift", "medic_noise")
    medic_shift: int
    medic_noise: float

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.is_grad_enabled() and isinstance(input, Tensor) and input.is_floating_point():
            input = self._shifted(input) if self.medic_shift else self._noisy(input)
        return super().forward(input, *args, **kwargs)

    def _noisy(self, taken: Tensor) -> Tensor:
        axis = feature_axis(self, taken)
        others = [d for d in range(taken.ndim) if d != axis]
        spread = taken.detach().std(others, correction=0, keepdim=True) if others else 0.0
        return taken + self.medic_noise * spread * torch.randn_like(taken)

    def _shifted(self, taken: Tensor) -> Tensor:
        places: Any = self.kernel_size
        if taken.ndim != len(places) + 2:
            return taken
        return _moved(taken, self.medic_shift)


def _moved(images: Tensor, most: int) -> Tensor:
    """Each of (N, C, ...) moved by its own whole number of places along each dimension."""
    count, dimensions = images.shape[0], images.ndim - 2
    padded = F.pad(images, [most, most] * dimensions)
    for d in range(dimensions):
        size = images.shape[2 + d]
        start = torch.randint(0, 2 * most + 1, (count,), device=images.device)
        at = start[:, None] + torch.arange(size, device=images.device)
        shape = [count, 1, *(size if i == d else 1 for i in range(dimensions))]
        wanted = list(padded.shape)
        wanted[2 + d] = size
        padded = padded.gather(2 + d, at.view(shape).expand(wanted))
    return padded
