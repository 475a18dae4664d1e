"""The files of a watched run: record, report, page and TensorBoard events, kept up while it goes on.

All of it is written by a thread: the training hands over numbers, and waits for the disk only at its end.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trainmedic.remedies.prescription as prescription_file
from trainmedic.background import Background
from trainmedic.buckets import Counted
from trainmedic.diagnose import Finding
from trainmedic.history import History, Snapshot
from trainmedic.remedies.change import Treatment
from trainmedic.reports import health
from trainmedic.reports.report import Report
from trainmedic.reports.tensorboard import Point, TensorBoardWriter, loss_at

HISTORY_FILE = "history.npz"
REPORT_FILE = "trainmedic.json"
PAGE_FILE = "report.html"
PRESCRIPTION_FILE = "prescription.json"

Layers = tuple[int, float, dict[str, dict[str, float]]]
"""A step, when it was seen, and the layer statistics of it that become scalars."""


class Writing:
    """Writes into one logdir. What was saved stays readable whenever the run is killed.

    An error, as of a full disk, is raised by the next call after it happened. ``history`` is the record of the run,
    which only the training changes: the thread gets copies.
    """

    EVERY = 30.0  # seconds between two savings of the record of a run that goes on, at least
    SHARE = 0.005  # of the time that the thread may take for savings
    HANDED_OVER = 256  # values, or
    LATEST = 2.0  # seconds after which those that there are go to the thread
    HISTOGRAMS = 2  # the next when the run is longer by one part of so many: 12 times in 1,000 steps, 30 in a million
    FIRST_PICTURES, GROWTH = 500, 2  # pictures are drawn at this step, and whenever the run is so many times as long

    def __init__(self, logdir: Path, history: History) -> None:
        self.logdir = logdir
        self.history = history
        self._board: TensorBoardWriter | None = None
        self._background = Background("trainmedic-writing")
        self._points: list[tuple[str, Point]] = []
        self._layers: list[Layers] = []
        self._handed_over = self._saved = self._drawn = time.monotonic()
        self._next_pictures = self.FIRST_PICTURES
        self._next_histograms = 0
        self._paid = self._took = 0.0

    @property
    def board(self) -> TensorBoardWriter:
        """The event file, opened when the first value is written."""
        if self._board is None:
            self.logdir.mkdir(parents=True, exist_ok=True)
            self._board = TensorBoardWriter(self.logdir)
        return self._board

    def cost(self) -> float:
        """Seconds of processor time that the thread took since this was asked last."""
        took, self._paid = self._background.seconds - self._paid, self._background.seconds
        return took

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write one step's numbers: the run-level ones that are scalars, and what sums up the layers."""
        for name, value in snapshot.values.items():
            self.value(name, snapshot.step, value)
        layers = {name: snapshot.layers[name] for name in health.LAYERS if name in snapshot.layers}
        if layers:
            self._layers.append((snapshot.step, time.time(), layers))
        if snapshot.histograms:
            self._next_histograms = snapshot.step + max(1, snapshot.step // self.HISTOGRAMS)
            self._do(partial(self._write_histograms, snapshot.step, time.time(), snapshot.histograms))

    def wants_histograms(self, step: int) -> bool:
        """Whether histograms of that step are to be counted: ever more rarely, so that the file stays small."""
        return step >= self._next_histograms

    def value(self, name: str, step: int, value: float) -> None:
        """Write one value of one series, if it is one of those that are scalars."""
        if not health.shown(name):
            return
        self._points.append((name, Point(step, value, time.time())))
        if len(self._points) >= self.HANDED_OVER or time.monotonic() - self._handed_over > self.LATEST:
            self._hand_over()

    def finding(self, finding: Finding) -> None:
        """Write a finding when it is first told."""
        self._do(partial(self._write_finding, finding, loss_at(self.history, finding.step)))

    def treatment(self, treatment: Treatment) -> None:
        """Write a treatment when it was decided."""
        self._do(partial(self._write_treatment, treatment, loss_at(self.history, treatment.step)))

    def prescription(self, treatments: Sequence[Treatment]) -> None:
        """Write down what was changed, so that a fresh model can be made to match."""
        self.logdir.mkdir(parents=True, exist_ok=True)
        prescription_file.write(self.logdir / PRESCRIPTION_FILE, treatments)

    def save_now_and_then(self, step: int, so_far: Callable[[], Report]) -> None:
        """Save the record if it was not saved lately, and draw the run when it is twice as long as when drawn last.

        ``so_far`` gives a report without judging anything anew; its history may be the live one.
        """
        if self._background.busy:
            return
        now = time.monotonic()
        if now - self._saved > max(self.EVERY, self._took / self.SHARE):
            self._do(partial(self._save, self.history.copy()))
            self._saved = now
        if step >= self._next_pictures and now - self._drawn > self.EVERY:
            report = so_far()
            self._do(partial(self._draw, report.of(report.history.copy())))
            self._drawn, self._next_pictures = now, step * self.GROWTH

    def finish(self, report: Report) -> None:
        """Write the last state of everything, and wait until it is written."""
        self._do(partial(self._finish, report))
        self._background.finish()

    # -- the training's side -------------------------------------------------------------------------------------

    def _do(self, job: Callable[[], None]) -> None:
        self._hand_over()
        self._background.do(job)

    def _hand_over(self) -> None:
        points, self._points = self._points, []
        layers, self._layers = self._layers, []
        self._handed_over = time.monotonic()
        if points or layers:
            self._background.do(partial(self._write_points, points, layers))

    # -- the thread's side ---------------------------------------------------------------------------------------

    def _write_points(self, points: list[tuple[str, Point]], layers: list[Layers]) -> None:
        for name, point in points:
            self.board.write_point(name, point)
        for step, seen, statistics in layers:
            for name, value in health.percentiles(statistics).items():
                self.board.write_point(name, Point(step, value, seen))

    def _write_histograms(self, step: int, seen: float, histograms: list[Counted]) -> None:
        for counted in histograms:
            self.board.write_histograms(step, seen, counted)

    def _write_finding(self, finding: Finding, loss: float | None) -> None:
        self.board.write_finding(finding, loss)

    def _write_treatment(self, treatment: Treatment, loss: float | None) -> None:
        self.board.write_treatment(treatment, loss)

    def _save(self, history: History) -> None:
        start = time.monotonic()
        history.save(self.logdir / HISTORY_FILE)
        self.board.flush()
        self._took = time.monotonic() - start

    def _draw(self, report: Report) -> None:
        self.board.write_pictures(report)
        self.board.flush()

    def _finish(self, report: Report) -> None:
        self._save(report.history)
        (self.logdir / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        (self.logdir / PAGE_FILE).write_text(report.to_html(), encoding="utf-8")
        self.board.write_pictures(report)
        self.board.close()
