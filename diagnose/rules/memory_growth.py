"""TM702: memory climbs step after step."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import looks
from trainmedic.diagnose.robust import Array
from trainmedic.history import History

MB = 1e6


class MemoryGrowth(Rule):
    """Memory in use grows evenly, long after all that a step needs has been allocated once.

    Why it is bad: the run ends when the memory does, often hours later.
    Usual causes: a loss kept with its graph (total += loss), outputs appended to a list, hooks that are registered
    again and again, a cache without a limit.
    Formula: the record after the first `warm_up` of it, and after the first epoch where its length is known, in
    `blocks` blocks of at least `least` values. Told where the least memory in use rises from each block to the next, by
    at least `even` of the mean rise (twice that in blocks of at least `fewest` values after a first epoch), and the
    second half rises by at least `lasting` of what the first does; in all by more than `growth` bytes and `relative` of
    what was in use.
    Remedies: free-memory.
    Known limits: replay buffers and data sets that are read into memory over many epochs look the same.
    Source: caches, pools and fragmentation saturate, so that their later half rises less; by chance, eight blocks lie
    in this order once in 40,320 times.
    """

    code: ClassVar[str] = "TM702"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("memory/host|memory/device",)
    remedies: ClassVar[tuple[str, ...]] = ("free-memory",)
    advice: ClassVar[str] = (
        "Usually means that something with a graph is kept from step to step. "
        "Do this: keep numbers, total += loss.item(), and copies without a graph, "
        "outputs.append(output.detach().cpu()). Otherwise check (a) which tensors pile up: sum(torch.is_tensor(o) "
        "for o in gc.get_objects()) at two steps; (b) hooks registered inside the loop: len(module._forward_hooks); "
        "(c) lists and dictionaries of your own that only grow, and caches in the data set."
    )

    blocks: int = Field(8, ge=4, description="a number (the more, the stricter)")
    least: int = Field(8, ge=1, description="values a block (64 steps in all: caches and pools are filled by then)")
    fewest: int = Field(
        4, ge=1, description="values a block after a first epoch, of growth that is twice as even (32 steps in all)"
    )
    warm_up: float = Field(
        0.15, ge=0, lt=1, description="share of the record, 0 to 1 (optimizer state, pools, workspaces)"
    )
    even: float = Field(0.3, gt=0, lt=1, description="of the mean rise, 0 to 1 (a leak takes its share in each block)")
    lasting: float = Field(
        0.8, gt=0, lt=1, description="second half over first half (of a leak it is 1, what saturates falls off)"
    )
    growth: float = Field(5_000_000.0, gt=0, description="bytes (a recording of this kind takes less in as few steps)")
    relative: float = Field(
        0.005, ge=0, description="of what was in use, a share (a process that has warmed up stays within less)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        for name in ("memory/device", "memory/host"):
            if name not in history:
                continue
            steps, values = history.series(name)
            known = np.isfinite(values) & (values >= 0) & (values < 1e18)
            steps, values = steps[known], values[known]
            found = self._onset(history, steps, values)
            if found is not None:
                yield self._told(name, steps, values, *found)

    def _onset(self, history: History, steps: NDArray[np.int64], values: Array) -> tuple[int, int] | None:
        """The first place of the newest unbroken run of growth, and where it was seen; ``None`` where there is none."""
        ends = looks(len(values))
        ends = ends[(ends + 1) % self.fewest == 0] if len(values) < 4096 else ends
        seen = None
        for end in ends[::-1]:  # from the newest: most records are not growing, and end here
            if not self._grows(history, steps[: end + 1], values[: end + 1]):
                break
            seen = int(end)
        return None if seen is None else (self._first(history, steps[: seen + 1]), seen)

    def _first(self, history: History, steps: NDArray[np.int64]) -> int:
        epoch = history.facts.get("steps_per_epoch")
        after = steps[0] + epoch if isinstance(epoch, int) else steps[0]
        return max(int(self.warm_up * len(steps)), int(np.searchsorted(steps, after)))

    def _grows(self, history: History, steps: NDArray[np.int64], values: Array) -> bool:
        first = self._first(history, steps)
        size = (len(values) - first) // self.blocks
        epochs = isinstance(history.facts.get("steps_per_epoch"), int)
        if size < (self.fewest if epochs else self.least):
            return False
        even = self.even if size >= self.least else 2 * self.even
        floor = values[len(values) - size * self.blocks :].reshape(self.blocks, size).min(axis=1)
        rises = np.diff(floor)
        whole = float(floor[-1] - floor[0])
        half = len(rises) // 2
        return bool(
            (rises > even * whole / len(rises)).all()
            and rises[-half:].sum() >= self.lasting * rises[:half].sum()
            and whole > max(self.growth, self.relative * float(floor[0]))
        )

    def _told(self, name: str, steps: NDArray[np.int64], values: Array, first: int, seen: int) -> Finding:
        grown = float(values[-1] - values[first])
        pace = grown / max(int(steps[-1] - steps[first]), 1)
        what = "memory of the process" if name.endswith("host") else "memory of tensors on the device"
        return self.finding(
            step=steps[first],
            detected_at=steps[seen],
            where=(name,),
            message=f"the {what} has grown evenly from {values[first] / MB:.0f} to {values[-1] / MB:.0f} MB, "
            f"by {pace / 1e3:.3g} kB a step",
            evidence=[Evidence(name="growth", value=grown / MB, limit=self.growth / MB, unit="MB")],
            confidence=0.8,
        )

    sick: ClassVar = (
        History.of(memory_host=[5e8 + 4e5 * i for i in range(300)]),
        History.of(memory_device=[1e9 + 3e8 * (i % 3) + 5e6 * i for i in range(200)]),
    )
    healthy: ClassVar = (
        History.of(memory_host=[5e8] * 300),
        # warm-up, then level
        History.of(memory_host=[5e8 + 2e6 * min(i, 60) for i in range(300)]),
        # fragmentation that saturates
        History.of(memory_host=[5e8 + 3e7 * float(np.log1p(i)) for i in range(600)]),
        # sequences of many lengths
        History.of(memory_device=[1e9 + 1e7 * ((37 * i) % 101) for i in range(400)]),
        # a data set read into memory in the first epoch
        History.of(memory_host=[5e8 + 4e5 * min(i, 200) for i in range(220)], facts={"steps_per_epoch": 200}),
    )
