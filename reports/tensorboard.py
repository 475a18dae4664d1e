"""TensorBoard event files, written with TensorBoard's own records: few scalars, findings and treatments as text.

Imports tensorboard (0.4 s) only when a writer is made, and never torch.
"""

import json
import math
import os
import socket
import time
import zlib
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainmedic.buckets import LIMITS, Counted
from trainmedic.diagnose import Finding
from trainmedic.history import History
from trainmedic.remedies.change import Treatment
from trainmedic.reports import health, heatmap
from trainmedic.reports.layermap import layer_map
from trainmedic.reports.picture import document, state
from trainmedic.reports.report import Report, plain
from trainmedic.reports.wording import (
    code_block,
    columns,
    compared,
    evidence_text,
    listed,
    lost,
    markdown,
    printable,
    tried,
)

_files = count()

PLUGIN, PICTURE_TAG, STATE_TAG = "medic", "medic/run", "medic/state"
"""The plugin that shows the whole run; the tag of what it draws (JSON, compressed by zlib), and that of its state."""
IMAGES = ("gradient_norm", "update_ratio", "dead_units_lasting", "saturated_units")
"""Layer statistics that become images."""
COUNTS = ("medic/findings", "medic/treatments")
"""How many there were up to a step."""
MOST_MARKS = 40


class Point(NamedTuple):
    """One value of a series, and when it was seen."""

    step: int
    value: float
    seen: float


class Thinning:
    """Which points of an endless series are written: the first ``FULL`` all, then ever fewer, the extremes always.

    After the first ``FULL`` points, two of every 4 are written; each ``FULL`` written points later, two of every 8, of
    16, and so on: the smallest and the largest of the window, or, where it holds one, the first that is not finite.
    A series of a million steps ends up with about 32,000 points.
    """

    FULL = 4_096

    def __init__(self) -> None:
        self._written = 0
        self._window: list[Point] = []

    def take(self, point: Point) -> list[Point]:
        """The points to write now, given the next one."""
        if self._written < self.FULL:
            self._written += 1
            return [point]
        self._window.append(point)
        return self.rest() if len(self._window) >= 2 << (self._written // self.FULL) else []

    def rest(self) -> list[Point]:
        """What is still held back, thinned like the rest."""
        window, self._window = self._window, []
        chosen = _extremes(window)
        self._written += len(chosen)
        return chosen


def _extremes(window: list[Point]) -> list[Point]:
    if len(window) <= 2:
        return window
    finite = [point for point in window if math.isfinite(point.value)]
    chosen = [point for point in window if not math.isfinite(point.value)][:1]
    if finite:
        chosen.append(max(finite, key=lambda point: point.value))
        if len(chosen) < 2:
            chosen.append(min(finite, key=lambda point: point.value))
    return sorted(chosen, key=lambda point: point.seen)


class TensorBoardWriter:
    """Writes one event file into ``logdir``, a bounded one however long the run is (see :class:`Thinning`).

    Writing is synchronous and raises ``OSError`` where it happens, on a full or read-only disk; records are gathered
    and go out 256 at a time, or after ten seconds.
    """

    BATCH = 256
    SECONDS = 10.0

    def __init__(self, logdir: str | os.PathLike[str]) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._events, self._summaries, self._tensors, self._types = event_pb2, summary_pb2, tensor_pb2, types_pb2
        self._series: dict[str, Thinning] = {}
        self._pending: list[Any] = []
        self._told: set[tuple[str, str]] = set()
        self._marked: set[str] = set()
        self._treated = 0
        self._last_step = 0
        self._flushed = time.monotonic()
        Path(logdir).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self.path = Path(logdir) / name
        self._file = open(self.path, "ab")  # noqa: SIM115 - open until close()
        self._records = RecordWriter(self._file)
        self._pending.append(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._tensor("custom_scalars__config__", 0, health.layout().SerializeToString(), plugin="custom_scalars")
        self.flush()

    def write_series(self, name: str, step: int, value: float) -> None:
        """Write one value of one series; NaN and infinities as they are."""
        self.write_point(name, Point(step, value, time.time()))

    def write_point(self, name: str, point: Point) -> None:
        """:meth:`write_series` for a value that was seen earlier."""
        if not self._series and not name.startswith("medic/"):
            for count in COUNTS:
                self.write_point(count, point._replace(value=0.0))
        self._last_step = max(self._last_step, point.step)
        thinning = self._series.get(name)
        if thinning is None:
            thinning = self._series[name] = Thinning()
        self._scalars(name, thinning.take(point))

    def write_finding(self, finding: Finding, loss: float | None = None) -> None:
        """Write a finding as text at its onset, count it in ``medic/findings``, and mark it at that step's ``loss``."""
        self._mark(f"{finding.code} {finding.name}", finding.step, loss)
        self._text(f"medic/findings/{finding.code} {finding.name}", finding.step, finding_markdown(finding))
        if finding.key not in self._told:
            self._told.add(finding.key)
            self.write_series("medic/findings", finding.detected_at, len(self._told))

    def write_treatment(self, treatment: Treatment, loss: float | None = None) -> None:
        """Write a treatment as text at the first step that was taken with it, count it, and mark it at the ``loss``."""
        self._mark(f"{treatment.change.remedy} {treatment.outcome}", treatment.step, loss)
        self._treated += 1
        self.write_series("medic/treatments", treatment.decided_at or treatment.step, self._treated)
        self._text(f"medic/treatments/{treatment.change.remedy}", treatment.step, treatment_markdown(treatment))

    def write_histograms(self, step: int, seen: float, counted: Counted) -> None:
        """Write a histogram of each layer, as of all its elements, by what a sample tells of them."""
        for layer, times, row in zip(counted.layers, counted.stands_for, counted.numbers.astype(float), strict=True):
            (low, high, total, squares), counts = row[:4], times * row[4:]
            if not counts.any():
                continue  # nothing in it was finite
            kept = np.flatnonzero(counts + np.append(counts[1:], 0))  # of empty buckets in a row the last
            histogram = self._summaries.HistogramProto(
                min=low,
                max=high,
                num=counts.sum(),
                sum=times * total,
                sum_squares=times * squares * max(abs(low), abs(high)) ** 2,
                bucket_limit=np.maximum(LIMITS[kept], np.where(kept == len(LIMITS) - 1, high, -math.inf)),
                bucket=counts[kept],
            )
            tag = printable(f"{counted.kind}/{layer}")
            self._add(step, seen, self._summaries.Summary.Value(tag=tag, histo=histogram))

    def write_pictures(self, report: Report) -> None:
        """Write the run as it is now: heat maps as images, and what the tab "Medic" draws."""
        step = report.history.last_step
        marks = [heatmap.Mark(finding.step) for finding in report.roots[:MOST_MARKS]]
        marks += [heatmap.Mark(treatment.step, treatment=True) for treatment in report.treatments[:MOST_MARKS]]
        for statistic in IMAGES:
            if statistic in report.history:
                drawn = layer_map(report.history, statistic, heatmap.WIDTH // 3)
                self._image(f"medic/layers/{drawn.title.replace('/', '-')}", step, heatmap.draw(drawn, marks))
        content = json.dumps(plain(document([report])), allow_nan=False, separators=(",", ":"))
        self._tensor(PICTURE_TAG, step, zlib.compress(content.encode()), plugin=PLUGIN)
        self._tensor(STATE_TAG, step, state(report).encode(), plugin=PLUGIN)

    def flush(self) -> None:
        """Hand everything that is pending to the disk."""
        pending, self._pending = self._pending, []
        for event in pending:
            self._records.write(event.SerializeToString())
        self._file.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what was held back and close the file. Can be called again."""
        if self._file.closed:
            return
        try:
            for count, value in zip(COUNTS, (len(self._told), self._treated), strict=True):
                self.write_series(count, self._last_step, value)
            for name, thinning in self._series.items():
                self._scalars(name, thinning.rest())
            self.flush()
        finally:
            self._file.close()

    def _scalars(self, name: str, points: Iterable[Point]) -> None:
        for point in points:
            with_tag = self._summaries.Summary.Value(tag=printable(name), simple_value=_float32(point.value))
            self._add(point.step, point.seen, with_tag)

    def _mark(self, what: str, step: int, loss: float | None) -> None:
        """A dot on the curve of the loss, one for each illness and remedy: TensorBoard joins several by a line."""
        if loss is not None and math.isfinite(loss) and what not in self._marked:
            self._marked.add(what)
            self._scalars(f"{health.MARKS}/{what}", [Point(step, loss, time.time())])

    def _text(self, tag: str, step: int, text: str) -> None:
        self._tensor(tag, step, text.encode(), plugin="text")

    def _tensor(self, tag: str, step: int, content: bytes, *, plugin: str) -> None:
        metadata = self._summaries.SummaryMetadata(
            plugin_data=self._summaries.SummaryMetadata.PluginData(plugin_name=plugin),
            data_class=self._summaries.DATA_CLASS_TENSOR,
        )
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING, string_val=[content])
        tensor.tensor_shape.SetInParent()  # a scalar: shown as the text itself, not as a table of one cell
        self._add(
            step, time.time(), self._summaries.Summary.Value(tag=printable(tag), tensor=tensor, metadata=metadata)
        )

    def _image(self, tag: str, step: int, png: bytes) -> None:
        image = self._summaries.Summary.Image(
            height=heatmap.HEIGHT, width=heatmap.WIDTH, colorspace=3, encoded_image_string=png
        )
        self._add(step, time.time(), self._summaries.Summary.Value(tag=printable(tag), image=image))

    def _add(self, step: int, seen: float, value: Any) -> None:
        last = self._pending[-1] if self._pending else None
        if last is not None and last.step == step and last.HasField("summary"):
            last.summary.value.append(value)  # one record a step
            return
        summary = self._summaries.Summary(value=[value])
        self._pending.append(self._events.Event(wall_time=seen, step=step, summary=summary))
        if len(self._pending) >= self.BATCH or time.monotonic() - self._flushed > self.SECONDS:
            self.flush()


def write_report(report: Report, logdir: str | os.PathLike[str]) -> Path:
    """Write a whole report into ``logdir``: its scalars, findings, treatments and pictures. Returns the event file."""
    history = report.history
    writer = TensorBoardWriter(logdir)
    try:
        for name in filter(health.shown, history.names()):
            steps, values = history.series(name)
            for step, value in zip(steps.tolist(), values.tolist(), strict=True):
                writer.write_series(name, step, value)
        for statistic in health.LAYERS:
            table = history.layers(statistic) if statistic in history else None
            for step, row in zip(table.steps.tolist(), table.values.tolist(), strict=True) if table else ():
                for name, value in health.percentiles({statistic: dict(enumerate(row))}).items():
                    writer.write_series(name, step, value)
        for finding in report.findings:
            writer.write_finding(finding, loss_at(history, finding.step))
        for treatment in report.treatments:
            writer.write_treatment(treatment, loss_at(history, treatment.step))
        writer.write_pictures(report)
    finally:
        writer.close()
    return writer.path


def loss_at(history: History, step: int) -> float | None:
    """The training loss at that step or the last one before it, ``None`` where there is none."""
    if "train/loss" not in history:
        return None
    steps, values = history.series("train/loss")
    return float(values[max(int(np.searchsorted(steps, step, side="right")) - 1, 0)])


def finding_markdown(finding: Finding) -> str:
    """A finding as Markdown. TensorBoard shows no colour in text: the severity is a word."""
    since = f"since step {finding.step:,}, evident at step {finding.detected_at:,}"
    lines = [f"**{finding.code} {markdown(finding.name)}** ({finding.severity}, {since})", ""]
    lines += [f"**Seen:** {markdown(finding.message)}", ""]
    if finding.where:
        lines += [f"**Where:** {markdown(listed(finding.where, first=8))}", ""]
    lines += [f"* evidence: {markdown(evidence_text(evidence))}" for evidence in finding.evidence]
    if finding.advice:
        lines += ["", f"**What to do:** {markdown(finding.advice)}"]
    if finding.remedies:
        lines += ["", f"**Remedies:** {markdown(', '.join(finding.remedies))}"]
    if finding.explained_by:
        lines += ["", f"Explained by finding {markdown(finding.explained_by)}."]
    return "\n".join(lines)


def treatment_markdown(treatment: Treatment) -> str:
    """A treatment as Markdown, with the numbers that were compared."""
    change = treatment.change
    lines = [f"**{markdown(change.remedy)}** for {treatment.code} {markdown(treatment.illness)}: {treatment.outcome}"]
    lines += ["", f"**Done:** {markdown(change.summary)}, from step {treatment.step:,}", ""]
    rows = compared(treatment)
    if rows:
        before, after = columns(treatment)
        lines += [f"| | {before} | {after} |", "|---|---|---|"]
        lines += [f"| {' | '.join(map(markdown, row))} |" for row in rows]
    if tried(treatment):
        lines += ["", f"**Tried:** {markdown(tried(treatment))}"]
    lines += [f"\n**Lost:** {markdown(what)}: {markdown(why)}" for what, why in lost(treatment)]
    if treatment.reason:
        lines += ["", f"**Why {treatment.outcome}:** {markdown(treatment.reason)}"]
    return "\n".join([*lines, "", code_block(change.code)])


def _float32(value: float) -> float:
    """``value`` as the event file can hold it: beyond single precision it is infinite."""
    limit = 3.4028234663852886e38
    return math.copysign(math.inf, value) if math.isfinite(value) and abs(value) > limit else float(value)
