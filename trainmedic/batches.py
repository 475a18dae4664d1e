"""A loader seen through: it is timed, a few batches are kept, and between two batches changes are safe."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


class Batches:
    """Iterates as ``loader`` does, as often as wanted, and has its length and attributes.

    ``waited`` receives the seconds spent waiting for each batch, ``entered`` is called before each one is fetched (the
    safe point: no graph of a past step is needed any more), ``fetched`` receives each batch.
    """

    def __init__(
        self,
        loader: Any,
        *,
        entered: Callable[[], None],
        waited: Callable[[float], None],
        fetched: Callable[[Any], None],
    ) -> None:
        self._loader = loader
        self._entered, self._waited, self._fetched = entered, waited, fetched

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        while True:
            self._entered()
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited(time.perf_counter() - start)
            self._fetched(batch)
            yield batch

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def copied(batch: Any) -> Any:
    """A batch whose tensors are copies: the user may change theirs in place."""
    if isinstance(batch, Tensor):
        return batch.detach().clone()
    if isinstance(batch, dict):
        return {key: copied(value) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [copied(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def size_in_bytes(batch: Any) -> int:
    """Bytes of all tensors in a batch."""
    if isinstance(batch, Tensor):
        return batch.numel() * batch.element_size()
    if isinstance(batch, dict):
        return sum(map(size_in_bytes, batch.values()))
    return sum(map(size_in_bytes, batch)) if isinstance(batch, list | tuple) else 0
