"""What tests in a browser share: Chromium, runs to look at, and a page that notes all that goes wrong on it."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Evidence, Finding, Severity
from trainmedic.diagnose.judge import NotChecked
from trainmedic.history import History, Layer, Snapshot
from trainmedic.remedies.change import Change, Treatment
from trainmedic.reports.report import Report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def chromium() -> str:
    """Where Chromium is. Without one the tests are skipped, but not in CI, where there must be one."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") == "true":
        raise AssertionError(f"there is no Chromium here (looked for: {', '.join(NAMES)})")
    if found is None:
        pytest.skip(f"no Chromium here (looked for: {', '.join(NAMES)}); on Debian: apt-get install chromium")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium, started once for a module of tests."""
    executable = chromium()
    if os.environ.get("CI") != "true":
        pytest.importorskip(
            "playwright.sync_api", reason="no playwright here: pip install -c constraints.txt playwright"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        yield running
        running.close()


class Watched:
    """A tab of the browser, and what went wrong in it: errors, and requests that left the machine."""

    def __init__(self, tab: Any) -> None:
        self.tab = tab
        self.errors: list[str] = []
        self.requests: list[str] = []
        tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}") or dialog.dismiss())
        tab.on("request", lambda request: self.requests.append(request.url))

    def assert_quiet(self) -> None:
        """Nothing was complained of, and nobody outside was asked for anything."""
        assert self.errors == []
        outside = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))]
        assert outside == []


def serious(tab: Any, context: Any = None) -> list[str]:
    """What axe-core finds that hinders people seriously: the rule and the first elements that break it."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab, context).response["violations"]
    return [
        f"{entry['id']}: {[(node['target'], node.get('failureSummary')) for node in entry['nodes'][:3]]}"
        for entry in found
        if entry["impact"] in ("serious", "critical")
    ]


def pictured(name: str = "block", *, layers: int = 12, findings: int = 2, steps: int = 400) -> Report:
    """A run with a NaN, a hole in its record, findings, and a treatment that ended the first of them."""
    draw = np.random.default_rng(0)
    history = History()
    loss = 2.3 * np.exp(-np.arange(steps) / 150) + 0.05 * draw.random(steps)
    loss[steps // 2] = math.nan
    recorded = np.r_[0 : steps // 4, steps // 4 + 40 : steps]
    history.add_series("train/loss", recorded, loss[recorded])
    history.add_series("validation/loss", np.arange(0, steps, 50), loss[::50] + 0.1)
    history.add_series("gradient/norm", np.arange(steps), 10.0 ** draw.normal(0, 1, steps))
    history.add_series("optimizer/learning_rate", np.arange(steps), np.full(steps, 1e-3))
    history.add_series("input/std", np.arange(steps), draw.random(steps))
    places = [f"{name}.{i}.weight" for i in range(layers)]
    history.architecture.update({place: Layer(place, "parameter", i, (8, 8)) for i, place in enumerate(places)})
    for step in range(0, steps, 4):
        norms = {place: float(10.0 ** (-i / 3 + draw.normal(0, 0.1))) for i, place in enumerate(places)}
        norms[places[0]] = 0.0 if step < 40 else norms[places[0]]
        zeros = dict.fromkeys(places, step / steps)
        history.record(
            Snapshot(step, layers={"gradient_norm": norms, "update_ratio": norms, "activation_zeros": zeros})
        )
    found = [_finding(name, i, places, steps) for i in range(findings)]
    change = Change(remedy="clip-gradients", target=(places[0],), summary="clipped them", code="clip(model)\n")
    treatment = Treatment(
        finding="f1",
        code="TM202",
        illness="exploding-gradient",
        change=change,
        step=steps // 2,
        decided_at=steps // 2 + 60,
        control=(Evidence(name="train/loss", value=2.0),),
        treated=(Evidence(name="train/loss", value=0.5),),
        outcome="kept",
        reason=f"the loss of {name} fell",
    )
    return Report(
        history,
        findings=tuple(found),
        checked=("TM101", "TM202"),
        not_checked=(NotChecked("TM301", "dead-relu", f"no activations in {name}"),),
        treatments=(treatment,) if findings else (),
        advised=(("f1", change),) if findings else (),
        cost={"seconds": 1.25, "share": 0.008, "measured": 100, "steps": steps},
        path=f"runs/{name}",
    )


def _finding(name: str, number: int, places: list[str], steps: int) -> Finding:
    return Finding(
        id=f"f{number + 1}",
        code=f"TM{202 + number}",
        name="exploding-gradient",
        severity=(Severity.ERROR, Severity.WARNING, Severity.INFO)[number % 3],
        step=(number * 37) % steps,
        detected_at=(number * 37) % steps + 9,
        where=tuple(places[number % len(places) :][:9]),
        message=f"the gradient of {name} grew from 1.2 to inf",
        evidence=(Evidence(name="gradient norm", value=5e4, limit=1e3), Evidence(name="loss", value=math.nan)),
        advice="Usually means a rate that is too high. Do this: lower it. Otherwise check (a) the data; (b) the loss.",
        remedies=("clip-gradients", "lower-learning-rate"),
        confidence=0.9,
    )
