"""TensorBoard files, read back with TensorBoard's own reader."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reports.browsing import pictured
from trainmedic.history import History
from trainmedic.remedies.change import Treatment
from trainmedic.reports import health
from trainmedic.reports.report import Report
from trainmedic.reports.tensorboard import (
    COUNTS,
    PICTURE_TAG,
    PLUGIN,
    STATE_TAG,
    Point,
    TensorBoardWriter,
    Thinning,
    write_report,
)


def loaded(logdir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def text_of(events: Any, tag: str) -> str:
    (event,) = events.Tensors(tag)
    return bytes(event.tensor_proto.string_val[0]).decode()


def rendered(text: str) -> str:
    from tensorboard.plugin_util import markdown_to_safe_html  # type: ignore[import-untyped]

    return str(markdown_to_safe_html(text))


def test_scalars_are_read_back_exactly(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path / "new" / "folder")
    values = [0.5, math.nan, math.inf, -math.inf, 1e300, 0.1]
    for step, value in enumerate(values):
        writer.write_series("train/loss", step, value)
        writer.write_series("gradient/norm", step, 2 * value)
    writer.close()
    writer.close()
    events = loaded(tmp_path / "new" / "folder")
    seen = events.Scalars("train/loss")
    assert [event.step for event in seen] == list(range(6))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal([event.value for event in seen], np.float32(values))
    assert events.Tags()["scalars"] == [*COUNTS, "train/loss", "gradient/norm"]
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    assert [(event.step, event.value) for event in events.Scalars("medic/findings")] == [(0, 0), (5, 0)]


def test_a_whole_report(tmp_path: Path, report: Report) -> None:
    assert write_report(report, tmp_path).parent == tmp_path
    events = loaded(tmp_path)
    assert [event.value for event in events.Scalars("medic/findings")] == [0, 1, 2, 2]
    assert [event.value for event in events.Scalars("medic/treatments")] == [0, 1, 1]
    (finding,) = events.Tensors("medic/findings/TM202 exploding-gradient")
    assert finding.step == 41
    assert events.summary_metadata["medic/findings/TM202 exploding-gradient"].plugin_data.plugin_name == "text"
    html = rendered(text_of(events, "medic/findings/TM202 exploding-gradient"))
    assert "<strong>TM202 exploding-gradient</strong> (error, since step 41, evident at step 57)" in html
    assert "<li>evidence: gradient norm inf (limit 1,000)</li>" in html
    assert "lower the learning rate" in html


def test_a_treatment_shows_its_numbers_and_code(tmp_path: Path, treatment: Treatment) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.write_treatment(treatment)
    writer.close()
    events = loaded(tmp_path)
    assert events.Tensors("medic/treatments/clip-gradients")[0].step == 60
    html = rendered(text_of(events, "medic/treatments/clip-gradients"))
    assert "<th>before</th>" in html
    assert "<th>followed by</th>" in html
    assert "<td>NaN</td>" in html
    assert "<td>0.25</td>" in html
    assert "torch.nn.utils.clip_grad_norm_(" in html
    assert "helped" not in html


def test_hostile_names_are_shown_literally(tmp_path: Path, hostile_report: Report) -> None:
    write_report(hostile_report, tmp_path)
    events = loaded(tmp_path)
    text = text_of(events, "medic/findings/TM202 exploding-gradient")
    html = rendered(text)
    assert "\x1b" not in text
    assert "<script" not in html
    assert "<a " not in html
    assert "<strong>bold" not in html
    assert "<h1" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[red]x[/red]" in html
    assert "**bold** `code` | [link](http://x)" in html


def test_a_finding_told_again_is_counted_once(tmp_path: Path, report: Report) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.write_finding(report.findings[0])
    writer.write_finding(report.findings[0].model_copy(update={"detected_at": 90}))
    writer.close()
    assert [event.value for event in loaded(tmp_path).Scalars("medic/findings")] == [1, 1]


def test_scalars_are_few_and_none_is_of_a_layer(tmp_path: Path) -> None:
    write_report(pictured(), tmp_path)
    scalars = loaded(tmp_path).Tags()["scalars"]
    assert len(scalars) < 20
    assert [tag for tag in scalars if "block" in tag] == []
    assert "input/std" not in scalars
    assert {"train/loss", "layers/gradient_norm_log10/p5", "medic/began/TM202 exploding-gradient"} <= set(scalars)


def test_the_percentiles_of_the_layers_are_logarithms(tmp_path: Path) -> None:
    found = health.percentiles({"gradient_norm": {"a": 1e-4, "b": 1e-2, "c": 1.0, "d": math.nan}, "update_ratio": {}})
    assert found["layers/gradient_norm_log10/p50"] == pytest.approx(-2)
    assert len(found) == 3
    zeros = health.percentiles({"update_ratio": dict.fromkeys("abc", 0.0)})
    assert set(zeros.values()) == {-12.0}
    assert health.percentiles({"gradient_norm": {"a": 1.0}}) == {}


def test_a_mark_stands_at_the_loss_where_it_began(tmp_path: Path) -> None:
    report = pictured()
    write_report(report, tmp_path)
    (mark,) = loaded(tmp_path).Scalars("medic/began/TM203 exploding-gradient")
    steps, values = report.history.series("train/loss")
    assert mark.step == 37
    assert mark.value == pytest.approx(values[steps == 37][0])


def test_heat_maps_and_the_tab_are_written(tmp_path: Path) -> None:
    write_report(pictured(), tmp_path)
    events = loaded(tmp_path)
    assert sorted(events.Tags()["images"]) == ["medic/layers/Gradient norm", "medic/layers/Update - weight"]
    assert events.summary_metadata[PICTURE_TAG].plugin_data.plugin_name == PLUGIN
    (state,) = events.Tensors(STATE_TAG)
    assert state.tensor_proto.string_val[0] == b"error"


def test_what_was_flushed_is_there_while_the_run_goes_on(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer.write_series("train/loss", 1, 0.5)
    writer.flush()
    assert loaded(tmp_path).Scalars("train/loss")[0].value == 0.5
    writer.close()


def thinned(values: Iterator[float]) -> list[Point]:
    thinning = Thinning()
    points = [point for i, value in enumerate(values) for point in thinning.take(Point(i, value, float(i)))]
    return points + thinning.rest()


def test_a_long_series_is_thinned_and_keeps_its_extremes() -> None:
    count = 300_000
    values = np.sin(np.arange(count) / 1e4)
    values[123_456], values[234_567], values[200_001] = 50.0, -50.0, math.nan
    points = thinned(iter(values.tolist()))
    assert len(points) < 40_000
    assert [point.step for point in points[: Thinning.FULL]] == list(range(Thinning.FULL))
    steps = [point.step for point in points]
    assert steps == sorted(set(steps))
    assert {123_456, 234_567, 200_001} <= set(steps)
    assert all(values[point.step] == point.value or math.isnan(point.value) for point in points)
    assert points[-1].step > count - 500


def test_a_million_steps_stay_bounded() -> None:
    assert len(thinned(float(i % 7) for i in range(1_000_000))) < 33_000
    assert len(thinned(math.nan for _ in range(200_000))) < 33_000


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_logdir_raises_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError):  # noqa: PT011 - any kind of it
        TensorBoardWriter(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk at hand")
def test_a_full_disk_raises_where_it_is_written(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path)
    writer._file.close()
    writer._file = open("/dev/full", "wb")  # noqa: SIM115 - closed by the writer
    writer._records._writer = writer._file
    writer.write_series("train/loss", 1, 0.5)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_neither_torch_nor_tensorboard_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, trainmedic.reports.tensorboard, trainmedic.reports.terminal, trainmedic.readers.reader as r; "
        "r.readers(); print([m for m in ('torch', 'tensorboard', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_empty_report(tmp_path: Path) -> None:
    write_report(Report(History()), tmp_path)
    assert loaded(tmp_path).Tags()["scalars"] == [*COUNTS]
