"""A loader seen through: it is timed, a few batches are kept, and between two batches changes are safe."""

import time
from collections.abc import Callable, Iterator
from typing import Any


class Batches:
    """Iterates as ``loader`` does, as often as wanted, and has its length and attributes.

    ``waited`` receives the seconds spent waiting for each batch, ``entered`` is called before each one is fetched (the
    safe point: no graph of a past step is needed any more), ``fetched`` receives each batch; ``begins`` and ``ends``
    are called at the two ends of each pass.
    """

    def __init__(
        self,
        loader: Any,
        *,
        entered: Callable[[], None],
        waited: Callable[[float], None],
        fetched: Callable[[Any], None],
        begins: Callable[[], None],
        ends: Callable[[], None],
    ) -> None:
        self._loader = loader
        self._entered, self._waited, self._fetched = entered, waited, fetched
        self._begins, self._ends = begins, ends

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        self._begins()
        while True:
            self._entered()
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                self._ends()
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
