"""JSON: lines, lists and objects of lists as tools write them, of any nesting."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import find, read


def history_of(tmp_path: Path, text: str, name: str = "metrics.jsonl") -> History:
    path = tmp_path / name
    path.write_text(text)
    (history,) = read(path)
    return history


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def points(history: History, name: str) -> list[tuple[int, float]]:
    steps, values = history.series(name)
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def test_detectron2(tmp_path: Path) -> None:
    rows = [{"iteration": i, "total_loss": 3 - i / 10, "lr": 0.1, "fast_rcnn/cls_accuracy": 0.5} for i in (19, 39, 59)]
    history = history_of(tmp_path, lines(*rows, {"iteration": 59, "bbox/AP": 12.5}), "metrics.json")
    assert points(history, "train/loss") == [(19, 3 - 1.9), (39, 3 - 3.9), (59, 3 - 5.9)]
    assert points(history, "optimizer/learning_rate")[0] == (19, 0.1)
    assert points(history, "bbox/AP") == [(59, 12.5)]
    assert history.facts["time"] == "step"
    assert history.line_of(39) == 2


def test_mmengine_numbers_its_validations_by_epoch(tmp_path: Path) -> None:
    rows = []
    for epoch in (1, 2):
        rows += [
            {"loss": 1.0, "epoch": epoch, "iter": i, "step": i} for i in range(epoch * 100 - 50, epoch * 100 + 1, 50)
        ]
        rows += [{"coco/bbox_mAP": 0.5, "step": epoch}]
    history = history_of(tmp_path, lines(*rows), "scalars.json")
    assert [step for step, _ in points(history, "train/loss")] == [50, 100, 150, 200]
    assert points(history, "coco/bbox_mAP") == [(100, 0.5), (200, 0.5)]
    assert "restarts" not in history.facts


def test_older_mmdetection_says_what_a_row_is_and_counts_within_the_epoch(tmp_path: Path) -> None:
    rows = [{"env_info": "x", "seed": 0}]
    for epoch in (1, 2):
        rows += [{"mode": "train", "epoch": epoch, "iter": i, "loss": 1.0} for i in (50, 100)]
        rows += [{"mode": "val", "epoch": epoch, "iter": 20, "loss": 0.5, "bbox_mAP": 0.25}]
    history = history_of(tmp_path, lines(*rows), "log.json")
    assert history.facts["time"] == "row"
    assert len(points(history, "train/loss")) == 4
    assert [value for _, value in points(history, "validation/loss")] == [0.5, 0.5]


def test_llama_factory(tmp_path: Path) -> None:
    rows = [
        {"current_steps": 10, "total_steps": 20, "loss": 2.5, "lr": 0.1, "epoch": 0.5, "elapsed_time": "0:00:10"},
        {"current_steps": 20, "total_steps": 20, "loss": 2.0, "lr": 0.1, "epoch": 1.0, "elapsed_time": "0:00:20"},
        {"current_steps": 20, "total_steps": 20, "eval_loss": 2.25, "epoch": 1.0},
    ]
    history = history_of(tmp_path, lines(*rows), "trainer_log.jsonl")
    assert points(history, "train/loss") == [(10, 2.5), (20, 2.0)]
    assert points(history, "validation/loss") == [(20, 2.25)]
    assert history.facts["total_steps"] == 20


def test_nesting_strings_and_tokens_that_are_no_json(tmp_path: Path) -> None:
    text = (
        '{"step": 1, "train": {"loss": 2.5, "deep": {"er": 1}}, "flag": true, "note": "hi", "list": [1, 2]}\n'
        '{"step": "2", "train": {"loss": "NaN", "deep": {"er": -Infinity}}, "nothing": null}\n'
        '{"step": 3, "train": {"loss": NaN}}\n'
    )
    history = history_of(tmp_path, text)
    np.testing.assert_array_equal(history.series("train/loss").values, [2.5, math.nan, math.nan])
    assert points(history, "train/deep/er") == [(1, 1), (2, -math.inf)]
    assert set(history.names()) == {"train/loss", "train/deep/er"}


@pytest.mark.parametrize(
    "content",
    [
        {"loss": [2.5, 2.0], "val_loss": [2.75, 2.25]},
        {"config": {"lr": 0.1}, "history": {"loss": [2.5, 2.0], "val_loss": [2.75, 2.25]}},
        {"train": {"loss": [2.5, 2.0]}, "val": {"loss": [2.75, 2.25]}},
        {"loss": {"0": 2.5, "1": 2.0}, "val_loss": {"0": 2.75, "1": 2.25}},
        [{"loss": 2.5, "val_loss": 2.75}, {"loss": 2.0, "val_loss": 2.25}],
        {"name": "run", "rows": [{"loss": 2.5, "val_loss": 2.75}, {"loss": 2.0, "val_loss": 2.25}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_histories_in_one_value(tmp_path: Path, content: Any, indent: int | None) -> None:
    history = history_of(tmp_path, json.dumps(content, indent=indent), "history.json")
    flat = {name.removeprefix("history/"): points(history, name) for name in history.names()}
    loss = flat.get("train/loss") or flat["loss"]
    assert loss == [(0, 2.5), (1, 2.0)]
    assert (flat.get("validation/loss") or flat["val_loss"]) == [(0, 2.75), (1, 2.25)]


def test_a_log_that_ends_within_a_line(tmp_path: Path) -> None:
    history = history_of(tmp_path, '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert points(history, "train/loss") == [(1, 2.5), (2, 2.0)]
    assert history.facts["notes"] == ["the log ends in the middle of line 3"]


def test_lines_that_are_no_json_are_counted(tmp_path: Path) -> None:
    history = history_of(tmp_path, '{"step": 1, "loss": 2.5}\nWARNING\n{"step": 2, "loss": 2.0}\noops\n5\n')
    assert points(history, "train/loss") == [(1, 2.5), (2, 2.0)]
    assert history.facts["notes"] == ["2 lines hold no JSON, the last of them line 4"]


def test_a_list_that_was_cut_off_gives_its_whole_rows(tmp_path: Path) -> None:
    text = json.dumps([{"step": i, "loss": 3 - i} for i in range(3)], indent=1)
    history = history_of(tmp_path, text[:-20], "log.json")
    assert points(history, "train/loss") == [(0, 3), (1, 2)]


def test_only_logs_are_taken_from_a_directory(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines({"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}))
    (tmp_path / "config.json").write_text('{"hidden_size": 5, "lr": 0.1, "layers": {"a": 1}}')
    (tmp_path / "data.jsonl").write_text(lines({"text": "a", "id": 1}, {"text": "b", "id": 2}))
    assert [source.path.name for source in find(tmp_path)] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "text", ["{" * 100_000, "[" * 100_000, '{"a": ' * 50_000, '{"a": "b"', '{"loss": ' + "9" * 9_000 + "e999"]
)
def test_broken_json_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.json"
    path.write_text(text)
    with pytest.raises(UnreadableError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
