"""Nets that are trained on what is alike and what is not."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.patients.training import Metric, Training


@torch.no_grad()
def nearest(t: Training) -> float:
    """Share of the validation pictures whose nearest neighbour among others is the same letter."""
    code, y = t.main.code(t.tensors[0]), t.tensors[1]  # type: ignore[operator]
    distance = torch.cdist(code, code).fill_diagonal_(9)
    return float((y[distance.argmin(1)] == y).float().mean())


NEAREST = Metric("nearest is alike", "max", nearest, lambda t: 1 / 26)


def triplets(hardest: bool, margin: float = 0.3) -> Callable[[nn.Module, Any], Tensor]:
    """The farthest alike nearer than the nearest other one, or than a common other one, by a margin."""

    def objective(model: Any, batch: Any) -> Tensor:
        code, y = model.code(batch[0]), batch[1]
        distance = (2 - 2 * code @ code.T).clamp_min(1e-6).sqrt()
        alike = y[:, None] == y
        far = distance.masked_fill(~alike, 0).amax(1)
        near = distance.masked_fill(alike, 9).amin(1)
        if not hardest:
            weight = (~alike).float()
            return F.relu(far[:, None] - distance + margin).mul(weight).sum() / weight.sum()
        return F.relu(far - near + margin).mean()

    return objective
