"""Several processes that train one model: what the statistics of the whole are, and who writes them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def writes() -> bool:
    """Whether this process writes files and tells findings: the first of all does."""
    return processes() == 1 or dist.get_rank() == 0


def sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether any of these is a distributed tensor."""
    return any(hasattr(tensor, "placements") for tensor in tensors)


def whole(norms: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norms of whole tensors from those of this rank's shards; one exchange for all of them.

    Every rank must call this at the same point. What is not a distributed tensor stays as it is.
    """
    if not sharded(tensors):
        return norms
    weights = torch.tensor([_weight(tensor) for tensor in tensors]).to(norms.device, norms.dtype)
    distributed = torch.tensor([hasattr(tensor, "placements") for tensor in tensors], device=norms.device)
    squares = norms.square() * weights
    dist.all_reduce(squares)
    return torch.where(distributed, squares.sqrt(), norms)


def _weight(tensor: Tensor) -> float:
    """One over the number of ranks that hold the same values as this one."""
    if not hasattr(tensor, "placements"):
        return 0.0
    mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
    return 1 / math.prod(int(mesh.size(i)) for i, p in enumerate(tensor.placements) if p.is_replicate())
