"""What pictures weigh and how fast they are: files of short and long runs, and the page and the tab in Chromium.

    python benchmarks/reports.py [--steps 1000000] [--layers 300] [PART ...]

Parts: files, page, writing. ``files`` records a live run of 1,000 and one of ``--steps`` steps the way a watched run is
recorded, without training anything, and prints what lies in the logdir. ``page`` draws a log of 100,000 steps x 100
layers and, where Chromium is installed, opens it: time until everything is drawn, and from a key or a click until the
page shows its answer. ``writing`` says what one step costs the training, and the thread beside it.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainmedic.buckets import Counted
from trainmedic.history import STATISTICS, History, Layer, Snapshot
from trainmedic.hooks.counting import MOST, counted
from trainmedic.reports.layermap import MAPS
from trainmedic.reports.page import render
from trainmedic.reports.report import Report
from trainmedic.writing import Writing

PARTS = ("files", "page", "writing")
SERIES = (
    "train/loss",
    "gradient/norm",
    "optimizer/learning_rate",
    "time/step",
    "time/data",
    "memory/host",
    "input/std",
)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")


class Recording:
    """What a run would hand over: every step some series, and every ``every``-th step all statistics of the layers."""

    def __init__(self, layers: int, every: int) -> None:
        self.draw = np.random.default_rng(0)
        self.every = every
        self.names = [f"model.blocks.{i // 4}.{('query', 'key', 'value', 'out')[i % 4]}.weight" for i in range(layers)]
        self.history = History(bounded=True)
        self.history.architecture.update({n: Layer(n, "parameter", i, (64, 64)) for i, n in enumerate(self.names)})
        self.noise = 10.0 ** self.draw.normal(-2, 0.5, (64, layers))

    def histograms(self) -> list[Counted]:
        """Of as many weights and gradients as a live run has histograms of, each of a full sample."""
        names = self.names[:MOST]
        spread = torch.from_numpy(self.draw.lognormal(-3, 1, len(names)))
        samples = [torch.from_numpy(self.draw.normal(0, s, 4_096)).float() for s in spread.tolist()]
        numbers = counted(samples).numpy()
        return [Counted(kind, names, [64.0] * len(names), numbers) for kind in ("weights", "gradients")]

    def snapshot(self, step: int) -> Snapshot:
        """One step's numbers."""
        values = dict(zip(SERIES, self.draw.random(len(SERIES)).tolist(), strict=True))
        layers = {}
        if step % self.every == 0:
            row = dict(zip(self.names, self.noise[step % 64].tolist(), strict=True))
            layers = dict.fromkeys(list(STATISTICS)[:20], row)
        return Snapshot(step, values=values, layers=layers)


def record(home: Path, steps: int, layers: int) -> tuple[float, float]:
    """Record and write a run into ``home``; seconds that the training waited in all, and of processor in the thread."""
    recording = Recording(layers, every=max(1, steps // 20_000))
    writing = Writing(home, recording.history)
    writing.EVERY = 0.0  # as though a step took long: every picture and saving that could be made is made
    waited = 0.0
    for step in range(steps):
        snapshot = recording.snapshot(step)
        if step % 10 == 0 and writing.wants_histograms(step):
            snapshot.histograms = recording.histograms()
        recording.history.record(snapshot)
        start = time.perf_counter()
        writing.snapshot(snapshot)
        if step % max(1, steps // 40) == 0:
            writing.save_now_and_then(step, lambda: Report(recording.history, checked=("TM101",)))
        waited += time.perf_counter() - start
    writing.finish(Report.from_history(recording.history, path="runs/long"))
    return waited, writing.cost()


def files(steps: int, layers: int) -> None:
    """What lies in a logdir afterwards."""
    for count, width in ((1_000, 20), (1_000, layers), (steps, layers)):
        with tempfile.TemporaryDirectory() as home:
            waited, worked = record(Path(home), count, width)
            sizes = {path.name.partition(".")[0]: path.stat().st_size for path in Path(home).iterdir()}
        listed = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sorted(sizes.items()))
        print(f"{count:>9,} steps x {width} layers: {sum(sizes.values()) / 1e6:7.2f} MB ({listed})")
        print(f"{'':>9} the training waited {1e6 * waited / count:.0f} us a step; the thread worked {worked:.1f} s")


def log(steps: int, layers: int) -> History:
    """A log of another tool: every step of 24 series, and 2,000 steps of all statistics that have a map."""
    draw = np.random.default_rng(0)
    history = History()
    for i in range(24):
        history.add_series("train/loss" if i == 0 else f"train/metric_{i}", np.arange(steps), draw.random(steps) + 0.1)
    recording = Recording(layers, 1)
    history.architecture = recording.history.architecture
    for step in range(0, steps, max(1, steps // 2_000)):
        row = dict(zip(recording.names, recording.noise[draw.integers(64)].tolist(), strict=True))
        history.record(Snapshot(step, layers=dict.fromkeys(MAPS, row)))
    return history


def page(steps: int = 100_000, layers: int = 100) -> None:
    """Weight and speed of a page."""
    report = Report(log(steps, layers), checked=("TM101",))
    start = time.perf_counter()
    text = render(report)
    took = time.perf_counter() - start
    print(f"page of {steps:,} steps x {layers} layers: {len(text.encode()) / 1e6:.2f} MB, made in {took:.2f} s")
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        print("no Chromium here: how fast it opens was not measured")
        return
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "report.html"
        file.write_text(text, encoding="utf-8")
        for name, seconds in in_chromium(executable, file).items():
            print(f"  {name}: {seconds:.2f} s (median of 5)")


def in_chromium(executable: str, file: Path) -> dict[str, float]:
    """Seconds that people would wait for what they ask the page for."""
    from playwright.sync_api import sync_playwright

    shown = (
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"
    )
    times: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(OPTIONS))
        for _ in range(5):
            tab: Any = browser.new_page(viewport={"width": 1440, "height": 900})
            tab.goto(file.as_uri())
            times.setdefault("open, until all is drawn", []).append(tab.evaluate(shown) / 1e3)
            for what, act in acts(tab).items():
                before = tab.evaluate("performance.now()")
                act()
                times.setdefault(what, []).append((tab.evaluate(shown) - before) / 1e3)
            tab.close()
        browser.close()
    return {what: statistics.median(seconds) for what, seconds in times.items()}


def acts(tab: Any) -> dict[str, Callable[[], Any]]:
    """What people do on the page."""
    chart, canvas = tab.locator(".plot").first, tab.locator(".map canvas")
    return {
        "zoom in on all charts and the map": lambda: chart.press("+"),
        "another statistic of the layers": lambda: tab.locator(".layers select").first.select_option("1"),
        "the history of a layer": lambda: canvas.click(position={"x": 600, "y": 100}),
    }


def writing_cost(layers: int) -> None:
    """A step's price, with all layers measured at each."""
    with tempfile.TemporaryDirectory() as home:
        recording = Recording(layers, every=1)
        writing = Writing(Path(home), recording.history)
        waits = []
        for step in range(3_000):
            snapshot = recording.snapshot(step)
            recording.history.record(snapshot)
            start = time.perf_counter()
            writing.snapshot(snapshot)
            waits.append(time.perf_counter() - start)
        writing._background.finish()
        print(
            f"writing a step of {layers} layers: the training waits {1e6 * statistics.median(waits):.1f} us "
            f"(mean {1e6 * statistics.mean(waits):.1f}), the thread takes {1e6 * writing.cost() / 3_000:.0f} us"
        )


def main() -> None:
    """Print what the chosen parts find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=300)
    given = parser.parse_args()
    chosen = given.parts or list(PARTS)
    if "writing" in chosen:
        writing_cost(given.layers)
    if "page" in chosen:
        page()
    if "files" in chosen:
        files(given.steps, given.layers)


if __name__ == "__main__":
    main()
