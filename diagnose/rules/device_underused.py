"""TM703: the accelerator idles."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import looks, several, streak
from trainmedic.diagnose.robust import medians
from trainmedic.history import History, Layer

SPAN = 20  # steps that a pace is the median of


def _net(seconds: float, width: int, device: str, batch: int = 64) -> History:
    """An example: two linear layers of one width."""
    layers = [Layer(f"fc{i}", "Linear", i, (width,)) for i in range(2)]
    layers += [Layer(f"fc{i}.weight", "parameter", i, (width, width)) for i in range(2)]
    facts = {"devices": [device], "batch_size": batch}
    return History.of(time_step=[seconds] * 200, facts=facts, layers=layers)


class DeviceUnderused(Rule):
    """An accelerator computes next to nothing in the time that a step takes.

    Why it is bad: it is paid for, and waits; the same model would train as fast on a CPU, or many times faster here.
    Usual causes: tiny batches or a tiny model; calls that wait for the device in each step (.item(), print(loss)); many
    small operations in place of few large ones; work of the CPU between steps.
    Formula: 6 x samples x sum over the weight matrices of elements x positions (what forward and backward pass multiply
    and add) / (median step time - median wait for the loader), over the newest steps, below `least`, from step
    `warm_up` on.
    Remedies: enlarge-batch, change-precision.
    Known limits: only what follows from shapes is counted, so attention and custom operations come out too low; hence
    no more than an info. Silent without an accelerator, or where batch or shapes are not known.
    Source: counting operations as in Kaplan et al. 2020, arXiv:2001.08361, section 2.1. Accelerators of the last ten
    years do 5 to 1,000 TFLOP/s.
    """

    code: ClassVar[str] = "TM703"
    severity: ClassVar[Severity] = Severity.INFO
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("time/step",)
    remedies: ClassVar[tuple[str, ...]] = ("enlarge-batch", "change-precision")
    advice: ClassVar[str] = (
        "Usually means that model and batches are too small to keep the device busy. "
        "Do this: double the batch until the step takes longer, and raise the learning rate with it. Otherwise check "
        "(a) calls that wait for the device: .item(), .cpu(), print(loss), if loss > ...; (b) torch.profiler: how long "
        "is the device busy in a step? (c) torch.compile(model), and torch.autocast with bfloat16."
    )

    least: float = Field(1e11, gt=0, description="operations a second (a fiftieth of what the slowest of them can do)")
    warm_up: int = Field(50, ge=0, description="steps (compiling, choosing kernels)")

    def unmet(self, history: History) -> str | None:
        """Also why a history without an accelerator is not judged."""
        if not _accelerated(history):
            return "no accelerator in use"
        return super().unmet(history)

    def check(self, history: History) -> Iterator[Finding]:
        work = _operations(history)
        if not _accelerated(history) or several(history) or not 0 < work < np.inf:
            return
        steps, times = history.series("time/step")
        usual = steps >= history.first_step + self.warm_up
        steps, times = steps[usual], times[usual]
        places = looks(len(times), SPAN - 1)
        if not len(places):
            return
        seconds = medians(times[places[:, None] - np.arange(SPAN)]) - _waiting(history)
        with np.errstate(all="ignore"):
            pace = np.where(seconds > 0, work / seconds, np.nan)
        start = streak(pace < self.least)
        if start is None:
            return
        yield self.finding(
            step=steps[0],
            detected_at=steps[places[start]],
            where=("time/step",),
            message=f"{', '.join(history.facts['devices'])} computes {pace[-1] / 1e9:.2g} billion operations a second, "
            f"in steps of {1e3 * seconds[-1]:.3g} ms with {history.facts['batch_size']} samples",
            evidence=[Evidence(name="operations a second", value=pace[-1], limit=self.least)],
            confidence=0.6,
        )

    sick: ClassVar = (_net(0.01, 64, "cuda:0"),)
    healthy: ClassVar = (
        _net(0.01, 64, "cpu"),
        _net(0.01, 4096, "cuda:0"),
        _net(0.001, 512, "cuda:0", batch=256),
        History.of(time_step=[0.01] * 200, facts={"devices": ["cuda:0"]}),
    )


def _accelerated(history: History) -> bool:
    devices: Any = history.facts.get("devices")
    return isinstance(devices, list) and any(str(device).startswith(("cuda", "xpu", "mps")) for device in devices)


def _operations(history: History) -> float:
    """Multiplications and additions of one step, forward and backward, by what shapes tell; 0 where they do not."""
    batch, parts = history.facts.get("batch_size"), history.facts.get("accumulation", 1)
    if not isinstance(batch, int) or not isinstance(parts, int):
        return 0.0
    total = 0.0
    for name, layer in history.architecture.items():
        owner = history.architecture.get(name.rpartition(".")[0])
        if layer.kind == "parameter" and len(layer.shape) > 1 and owner is not None and owner.shape and layer.shape[0]:
            positions = max(1.0, float(np.prod(owner.shape)) / layer.shape[0])
            total += float(np.prod(layer.shape)) * positions * (0 if owner.kind.startswith("Embedding") else 1)
    return 6.0 * batch * parts * total


def _waiting(history: History) -> float:
    """What a step usually waits for the loader, in seconds."""
    if "time/data" not in history:
        return 0.0
    waits = history.series("time/data").values
    waits = waits[np.isfinite(waits) & (waits >= 0) & (waits < 1e6)]
    return float(np.median(waits)) if len(waits) else 0.0
