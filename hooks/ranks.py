"""Several processes that train one model: what the statistics of the whole are, and who writes them."""

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
    """The 2-norms of whole tensors from those of this rank's shards; see :func:`summed`."""
    return summed(norms.square(), tensors).sqrt()


def summed(values: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """What sums over the elements of whole tensors are, from those over this rank's shards.

    ``values`` is (..., tensors). There is one exchange per mesh dimension that shards, which all ranks of a mesh must
    take part in at the same point. What is not a distributed tensor stays as it is.
    """
    meshes: list[Any] = []
    for tensor in tensors:
        mesh = getattr(tensor, "device_mesh", None)
        if mesh is not None and mesh not in meshes:
            meshes.append(mesh)
    for mesh in meshes:
        for dimension in range(mesh.ndim):
            shared = [_is_shard(tensor, mesh, dimension) for tensor in tensors]
            if any(shared) and mesh.size(dimension) > 1:
                together = values.clone()
                dist.all_reduce(together, group=mesh.get_group(dimension))
                values = torch.where(torch.tensor(shared, device=values.device), together, values)
    return values


def _is_shard(tensor: Any, mesh: Any, dimension: int) -> bool:
    return getattr(tensor, "device_mesh", None) == mesh and not tensor.placements[dimension].is_replicate()
