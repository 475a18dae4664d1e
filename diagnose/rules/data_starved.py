"""TM701: the step waits for the loader."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import streak
from trainmedic.diagnose.robust import Array, together
from trainmedic.history import History

Steps = NDArray[np.int64]
Told = tuple[int, int, float, float]
"""The step where it began, the one by which it was sure, the share of the time, and the seconds of a step."""


class DataStarved(Rule):
    """A good part of the time goes by while the loop waits for its next batch.

    Why it is bad: the model, and the device that it runs on, stand idle meanwhile; the run takes that much longer.
    Usual causes: no worker processes; few workers for heavy transforms; files read one by one from a slow disk; batches
    that are not pinned or not fetched ahead.
    Formula: waiting time / step time, of all steps after the first epoch (`steps_per_epoch`; at most a tenth of
    `total_steps`) and the first `warm_up` steps, above `share`, and so in at least half of the blocks of `block` steps,
    of which there are `patience` or more; the mean wait of a step above `floor`. Or the same of medians of blocks,
    which pauses leave alone, of all steps or of the latest `recent` of them, twice `patience` blocks or more: the wait
    above `floor`, or above `sample` for each sample of the batch where that is less, in each block that counts. There
    it is the steps that were not measured layer by layer; where nearly all were, half of their time without the wait,
    `measuring` seconds in all at most, is taken to be the measuring's.
    Remedies: add-loader-workers.
    Known limits: needs `medic.batches`, or a log that holds both times. With devices that work on their own the wait is
    measured from when the loop asks, so what overlaps with them counts too.
    Source: the limit above which TensorFlow's profiler calls a program highly input-bound is a fifth of the step.
    """

    code: ClassVar[str] = "TM701"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("time/data", "time/step")
    remedies: ClassVar[tuple[str, ...]] = ("add-loader-workers",)
    advice: ClassVar[str] = (
        "Usually means that batches are made in the training process. "
        "Do this: let workers make them, DataLoader(..., num_workers=4, persistent_workers=True, pin_memory=True), "
        "and add workers until the wait is gone. Otherwise check (a) how long one sample takes: %timeit dataset[0]; "
        "(b) the disk: is the first epoch slower than the second? (c) transforms that could run once, before "
        "training, or on the device."
    )

    share: float = Field(0.2, gt=0, lt=1, description="of the time, 0 to 1 (a fifth: highly input-bound)")
    floor: float = Field(
        0.002, ge=0, description="seconds a step (what a loader in the process itself takes to index and stack)"
    )
    sample: float = Field(
        2e-5, ge=0, description="seconds a sample (the same takes about 5 µs each), of a batch of 50 or more"
    )
    recent: float = Field(
        0.25, gt=0, le=1, description="share of the steps so far, 0 to 1 (longer than a pause, and it need not be all)"
    )
    measuring: float = Field(2.0, ge=0, description="seconds (what short runs grant to be seen in full)")
    block: int = Field(5, ge=1, description="steps (a few batches fetched ahead)")
    warm_up: int = Field(5, ge=0, description="steps (workers start, caches fill)")
    patience: int = Field(3, ge=1, description="blocks, at least (one may be another process's doing)")

    def check(self, history: History) -> Iterator[Finding]:
        steps, waits, times = together(history, "time/data", "time/step")
        with np.errstate(all="ignore"):
            credible = np.isfinite(waits) & np.isfinite(times) & (waits >= 0) & (waits < times) & (times < 1e6)
        credible &= steps >= history.first_step + self._start(history)
        steps, waits, times = steps[credible], waits[credible], times[credible]
        ways = (self._together(steps, waits, times), self._steadily(history, steps, waits, times))
        told = min((way for way in ways if way is not None), key=lambda way: way[1], default=None)
        if told is None:
            return
        began, sure, share, wait = told
        yield self.finding(
            step=began,
            detected_at=sure,
            where=("time/data",),
            message=f"{100 * share:.0f} % of the time goes by waiting for the loader, {1e3 * wait:.3g} ms a step: "
            f"without it the run would be {1 / (1 - share):.2g} times as fast",
            evidence=[
                Evidence(name="time spent waiting for batches", value=100 * share, limit=100 * self.share, unit="%"),
                Evidence(name="wait of a step", value=wait, limit=self._floor(history), unit="s"),
            ],
        )

    def _together(self, steps: Steps, waits: Array, times: Array) -> Told | None:
        """All steps since the start: what they waited in all."""
        waited, taken = (_blocks(values, self.block).sum(axis=1) for values in (waits, times))
        number = np.arange(1, len(waited) + 1)
        shares = np.cumsum(waited) / np.cumsum(taken)
        often = 2 * np.cumsum(waited > self.share * taken) >= number
        floor = np.cumsum(waited) > self.floor * number * self.block
        start = streak((shares > self.share) & often & floor & (number >= self.patience))
        if start is None:
            return None
        sure = int(steps[(start + 1) * self.block - 1])
        return int(steps[0]), sure, float(shares[-1]), float(np.mean(waited) / self.block)

    def _steadily(self, history: History, steps: Steps, waits: Array, times: Array) -> Told | None:
        """What a step mostly waits, all along or lately, without what it takes to measure it."""
        measured = _measured(history, steps)
        if (~measured).sum() >= 2 * self.patience * self.block:
            steps, waits, times = steps[~measured], waits[~measured], times[~measured]
        elif measured.any():
            rest = times - waits
            times = times - rest * min(0.5, self.measuring / float(rest.sum()))
        waited, taken = (np.median(_blocks(values, self.block), axis=1) for values in (waits, times))
        until, least = np.arange(1, len(waited) + 1), 2 * self.patience
        long = (waited > self.share * taken) & (waited > self._floor(history))
        for share in (1.0, self.recent):
            since = np.maximum(until - np.maximum(np.ceil(share * until).astype(np.intp), least), 0)
            wait, time, often = (_between(values, since, until) for values in (waited, taken, long))
            sick = (wait > self.share * time) & (2 * often >= until - since) & (until >= least)
            start = streak(np.asarray(sick & (wait > self._floor(history) * (until - since))))
            if start is not None:
                sure = int(steps[(start + 1) * self.block - 1])
                length = until[-1] - since[-1]
                return int(steps[since[start] * self.block]), sure, float(wait[-1] / time[-1]), float(wait[-1] / length)
        return None

    def _floor(self, history: History) -> float:
        batch = history.facts.get("batch_size")
        return min(self.floor, self.sample * max(batch, 50)) if isinstance(batch, int) else self.floor

    def _start(self, history: History) -> int:
        """Steps that do not count: in its first epoch a data set may be read for the first time."""
        epoch, total = history.facts.get("steps_per_epoch"), history.facts.get("total_steps")
        epoch = epoch if isinstance(epoch, int) else 0
        return max(self.warm_up, min(epoch, total // 10) if isinstance(total, int) else epoch)

    sick: ClassVar = (
        History.of(time_step=[0.05] * 100, time_data=[0.03] * 100),
        # four workers that cannot keep up: every fourth step waits
        History.of(time_step=[0.02, 0.02, 0.02, 0.14] * 25, time_data=[0.0, 0.0, 0.0, 0.12] * 25),
        # slower from two thirds on: what is kept in memory no longer fits
        History.of(time_step=[0.02] * 140 + [0.03] * 60, time_data=[0.0005] * 140 + [0.01] * 60),
    )
    healthy: ClassVar = (
        History.of(time_step=[0.05] * 100, time_data=[0.002] * 100),
        # the workers start with the first epoch and with the second
        History.of(
            time_step=[5.0] + [0.05] * 49 + [5.0] + [0.05] * 199, time_data=[4.9] + [0.001] * 49 + [4.9] + [0.001] * 199
        ),
        # a model so small that a loader in the process takes as long, and neither takes any time
        History.of(time_step=[0.0009] * 100, time_data=[0.0005] * 100),
        # the first epoch reads the files, later ones find them in memory
        History.of(
            time_step=[0.1] * 50 + [0.02] * 450,
            time_data=[0.08] * 50 + [0.0005] * 450,
            facts={"steps_per_epoch": 50, "total_steps": 500},
        ),
    )


def _blocks(values: Array, block: int) -> Array:
    """In rows of ``block``; the rest that fills none is left out."""
    return values[: len(values) // block * block].reshape(-1, block)


def _measured(history: History, steps: Steps) -> NDArray[np.bool_]:
    """Which of these steps were measured layer by layer: they take longer, by what that takes."""
    tables = [history.layers(name).steps for name in ("gradient_norm", "activation_std") if name in history]
    return np.isin(steps, np.concatenate(tables)) if tables else np.zeros(len(steps), bool)


def _between(values: Array | NDArray[np.bool_], since: NDArray[np.intp], until: NDArray[np.intp]) -> Array:
    """Sums of ``values[since:until]``."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[until] - total[since])
