"""The files of a watched run: record, report and TensorBoard events, kept up while it goes on."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import trainmedic.remedies.prescription as prescription_file
from trainmedic.diagnose import Finding
from trainmedic.history import History
from trainmedic.remedies.change import Treatment
from trainmedic.reports.report import Report
from trainmedic.reports.tensorboard import TensorBoardWriter

HISTORY_FILE = "history.npz"
REPORT_FILE = "trainmedic.json"
PAGE_FILE = "report.html"
PRESCRIPTION_FILE = "prescription.json"


class Writing:
    """Writes into one logdir. What was saved stays readable whenever the run is killed."""

    EVERY = 30.0  # seconds between two savings of the record of a run that goes on, at least
    SHARE = 0.005  # of the time that the training may be held up by saving

    def __init__(self, logdir: Path) -> None:
        self.logdir = logdir
        self._board: TensorBoardWriter | None = None
        self._saved = time.monotonic()
        self._took = 0.0

    @property
    def board(self) -> TensorBoardWriter:
        """The event file, opened when the first value is written."""
        if self._board is None:
            self.logdir.mkdir(parents=True, exist_ok=True)
            self._board = TensorBoardWriter(self.logdir)
        return self._board

    def series(self, step: int, values: Mapping[str, float]) -> None:
        """Write run-level values of one step."""
        for name, value in values.items():
            self.board.write_series(name, step, value)

    def finding(self, finding: Finding) -> None:
        """Write a finding when it is first told."""
        self.board.write_finding(finding)

    def treatment(self, treatment: Treatment) -> None:
        """Write a treatment when it was decided."""
        self.board.write_treatment(treatment)

    def prescription(self, treatments: Sequence[Treatment]) -> None:
        """Write down what was changed, so that a fresh model can be made to match."""
        self.logdir.mkdir(parents=True, exist_ok=True)
        prescription_file.write(self.logdir / PRESCRIPTION_FILE, treatments)

    def save_now_and_then(self, history: History) -> None:
        """Save the record if it was not saved lately."""
        if time.monotonic() - self._saved > max(self.EVERY, self._took / self.SHARE):
            self.save(history)

    def save(self, history: History) -> None:
        """Save the record, whole or not at all."""
        start = time.monotonic()
        history.save(self.logdir / HISTORY_FILE)
        self.board.flush()
        self._saved = time.monotonic()
        self._took = self._saved - start

    def finish(self, report: Report) -> None:
        """Write the last state of everything."""
        self.save(report.history)
        (self.logdir / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
        (self.logdir / PAGE_FILE).write_text(report.to_html(), encoding="utf-8")
        self.board.close()
