"""Hugging Face: every number of ``log_history``, under the right name, from wherever the state lies."""

import json
import math
from pathlib import Path

import pytest

from trainmedic.errors import UnreadableError
from trainmedic.readers import find, read

SAMPLE = Path(__file__).parents[1] / "samples" / "huggingface" / "trainer_state.json"


def write(path: Path, rows: list[object], **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": rows, **more}))
    return path


def test_the_sample_is_read_exactly() -> None:
    (history,) = read(SAMPLE)
    rows = json.loads(SAMPLE.read_text())["log_history"]
    for ours, theirs in (
        ("train/loss", "loss"),
        ("gradient/norm", "grad_norm"),
        ("optimizer/learning_rate", "learning_rate"),
        ("validation/g0/loss", "eval_g0_loss"),
        ("validation/g5/accuracy", "eval_g5_accuracy"),
    ):
        there = [(row["step"], row[theirs]) for row in rows if theirs in row]
        steps, values = history.series(ours)
        assert list(zip(steps.tolist(), values.tolist(), strict=True)) == there
        assert history.facts["names"][ours] == theirs
    assert history.facts["total_steps"] == 12030
    assert history.last_step == 12030


def test_bare_nan_tokens_and_a_hidden_nan_stay_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 2.0, "grad_norm": 1.0},
        {"step": 2, "loss": 0.0, "grad_norm": math.nan},
        {"step": 3, "loss": 0.0, "grad_norm": math.inf, "note": "text", "flag": True, "nothing": None},
    ]
    path = write(tmp_path / "trainer_state.json", rows)
    assert "NaN" in path.read_text()
    (history,) = read(path)
    assert history.series("train/loss").values.tolist() == [2.0, 0.0, 0.0]
    assert math.isnan(history.series("gradient/norm").values[1])
    assert history.series("gradient/norm").values[2] == math.inf
    assert set(history.names()) == {"train/loss", "gradient/norm"}


def test_one_evaluation_set_and_a_metric_with_the_look_of_a_set(tmp_path: Path) -> None:
    rows = [{"step": 5, "eval_loss": 1.0, "eval_box_loss": 2.0, "eval_runtime": 3.0, "epoch": 0.5}]
    (history,) = read(write(tmp_path / "trainer_state.json", rows))
    assert set(history.names()) == {"validation/loss", "validation/box_loss", "validation/runtime", "epoch"}


def test_the_summary_of_the_last_row_is_no_series(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "train_runtime": 9.0, "train_loss": 1.5, "total_flos": 1e9}]
    (history,) = read(write(tmp_path / "trainer_state.json", rows))
    assert history.names() == ["train/loss"]
    assert history.facts["summary"]["train_loss"] == 1.5


def test_in_an_output_directory_the_state_on_top_wins(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write(tmp_path / f"checkpoint-{step}" / "trainer_state.json", [{"step": step, "loss": 1.0}])
    assert [source.path.parent.name for source in find(tmp_path)] == ["checkpoint-100"]
    write(tmp_path / "trainer_state.json", [{"step": 120, "loss": 1.0}])
    assert [source.path for source in find(tmp_path)] == [tmp_path / "trainer_state.json"]
    assert read(tmp_path / "checkpoint-9")[0].last_step == 9


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"log_history": [{"step": 1, "lo', "not valid JSON: cut off before its first number"),
        ('{"log_history": 5}', 'no list "log_history" in it'),
        ('{"best_metric": null}', 'no list "log_history" in it'),
        ('{"log_history": []}', "a trainer_state log without a single number in it"),
        ('{"log_history": [1, "x", null, {"step": [], "loss": {}}]}', "without a single number in it"),
        ('{"log_history": ' + "[" * 100_000, "trainer_state.json: it is nested too deeply"),
    ],
)
def test_broken_states_are_one_clear_error(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(text)
    with pytest.raises(UnreadableError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
