"""The files of a run that goes on: pictures ever more rarely, few scalars, and errors that are not lost."""

from pathlib import Path
from typing import Any

import pytest

from trainmedic.history import History, Snapshot
from trainmedic.reports.report import Report
from trainmedic.reports.tensorboard import PICTURE_TAG
from trainmedic.writing import Writing


def loaded(logdir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(logdir), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    return events


def record(writing: Writing, steps: int) -> None:
    for step in range(steps):
        layers = {"gradient_norm": {"a": 1e-4, "b": 1e-2, "c": 1.0}} if step % 100 == 0 else {}
        snapshot = Snapshot(step, values={"gradient/norm": 1.0, "input/std": 1.0}, layers=layers)
        writing.history.record(snapshot)
        writing.snapshot(snapshot)
        writing.value("train/loss", step, 1 / (step + 1))
        if step in (500, 1_000, 2_000):
            writing._background.finish()  # while the thread is busy nothing is drawn
        writing.save_now_and_then(step, lambda: Report(writing.history))


def test_a_run_that_goes_on_is_drawn_whenever_it_is_twice_as_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Writing, "EVERY", 0.0)
    monkeypatch.setattr(Writing, "_save", lambda self, history: None)
    writing = Writing(tmp_path, History(bounded=True))
    record(writing, 2_100)
    writing.finish(Report(writing.history))
    events = loaded(tmp_path)
    assert [event.step for event in events.Tensors(PICTURE_TAG)] == [500, 1_000, 2_000, 2_099]
    assert [event.step for event in events.Images("medic/layers/Gradient norm")] == [500, 1_000, 2_000, 2_099]
    assert writing.cost() > 0
    assert writing.cost() == 0


def test_scalars_are_few_and_sum_up_the_layers(tmp_path: Path) -> None:
    writing = Writing(tmp_path, History(bounded=True))
    record(writing, 250)
    writing.finish(Report(writing.history))
    events = loaded(tmp_path)
    tags = events.Tags()["scalars"]
    assert "input/std" not in tags
    assert "train/loss" in tags
    assert [(event.step, event.value) for event in events.Scalars("layers/gradient_norm_log10/p50")] == [
        (0, pytest.approx(-2)),
        (100, pytest.approx(-2)),
        (200, pytest.approx(-2)),
    ]
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"events", "history", "trainmedic", "report"}


def test_an_error_of_the_disk_is_raised_by_a_later_call(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    writing = Writing(tmp_path / "taken", History())
    with pytest.raises(OSError):  # noqa: PT011 - any kind of it
        writing.finish(Report(writing.history))
