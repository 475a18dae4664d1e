"""CSV: what real loggers write, read back exactly."""

import csv
import math
import random
from pathlib import Path

import numpy as np
import pytest

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import read

SAMPLE = Path(__file__).parents[1] / "samples" / "keras-csv" / "log.csv"


def history_of(tmp_path: Path, text: str | bytes, name: str = "log.csv") -> History:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    (history,) = read(path)
    assert history.facts["source"] == str(path)
    return history


def values(history: History, name: str) -> list[float]:
    return history.series(name).values.tolist()


def steps(history: History, name: str) -> list[int]:
    return history.series(name).steps.tolist()


def test_the_sample_of_keras_is_read_exactly() -> None:
    (history,) = read(SAMPLE)
    with open(SAMPLE, newline="") as file:
        rows = list(csv.DictReader(file))
    for ours, theirs in (
        ("train/loss", "loss"),
        ("train/accuracy", "accuracy"),
        ("validation/loss", "val_loss"),
        ("validation/accuracy", "val_accuracy"),
    ):
        assert values(history, ours) == [float(row[theirs]) for row in rows]
        assert steps(history, ours) == [0, 1, 2, 3]
        assert history.facts["names"][ours] == theirs
    assert history.facts["time"] == "row"


def test_keras_csv_logger_counts_epochs_and_writes_na(tmp_path: Path) -> None:
    history = history_of(
        tmp_path, 'epoch,acc,loss,probs,val_acc\n0,0.5,1.25,"[0.1, 0.9]",NA\n1,0.75,1.0,"[0, 1]",0.5\n'
    )
    assert history.facts["time"] == "epoch"
    assert steps(history, "train/loss") == [0, 1]
    assert values(history, "train/accuracy") == [0.5, 0.75]
    assert (steps(history, "validation/accuracy"), values(history, "validation/accuracy")) == ([1], [0.5])
    assert "probs" not in history


def test_lightning_metrics_with_sparse_rows(tmp_path: Path) -> None:
    text = (
        "epoch,step,train_loss_epoch,train_loss_step,val_acc,val_loss\n"
        "0,49,,0.9,,\n0,99,,0.8,,\n0,99,,,0.5,0.85\n0,99,0.85,,,\n1,149,,0.7,,\n1,199,,,0.6,0.75\n"
    )
    history = history_of(tmp_path, text, "metrics.csv")
    assert history.facts["time"] == "step"
    assert (steps(history, "train/loss"), values(history, "train/loss")) == ([49, 99, 149], [0.9, 0.8, 0.7])
    assert (steps(history, "validation/loss"), values(history, "validation/loss")) == ([99, 199], [0.85, 0.75])
    assert values(history, "train_loss_epoch") == [0.85]
    assert values(history, "epoch") == [0, 0, 0, 0, 1, 1]
    assert "restarts" not in history.facts


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("\ufeffstep;loss\n1;0,5\n2;0,25\n", [0.5, 0.25]),
        ("step\tloss\n1\t0.5\n2\t0.25\n", [0.5, 0.25]),
        ("  step ,  Loss \n 1 ,  0.5 \n\n 2 , 0.25 \n", [0.5, 0.25]),
        ("# step,loss\r\n1,5e-1\r\n2,.25\r\n", [0.5, 0.25]),
        ("step|train loss\n1|0.5\n2|0.25\n", [0.5, 0.25]),
        ("step,loss\n1,nan\n2,-inf\n", [math.nan, -math.inf]),
        ("step\tloss\n1\t0.5\n2\t0.25\n".encode("utf-16"), [0.5, 0.25]),
    ],
)
def test_separators_encodings_and_padding(tmp_path: Path, text: str | bytes, loss: list[float]) -> None:
    history = history_of(tmp_path, text)
    np.testing.assert_array_equal(values(history, "train/loss"), loss)
    assert steps(history, "train/loss") == [1, 2]


def test_blank_cells_are_missing_and_nan_is_a_number(tmp_path: Path) -> None:
    history = history_of(tmp_path, "step,loss\n1,0.5\n2,\n3,NA\n4,NaN\n5,None\n6,0.1\n")
    assert steps(history, "train/loss") == [1, 4, 6]
    assert math.isnan(values(history, "train/loss")[1])


def test_every_value_is_held_exactly(tmp_path: Path) -> None:
    draw = random.Random(0)
    numbers = [draw.uniform(-1, 1) * 10 ** draw.randint(-300, 300) for _ in range(500)]
    history = history_of(tmp_path, "step,loss\n" + "".join(f"{i},{x!r}\n" for i, x in enumerate(numbers)))
    assert values(history, "train/loss") == numbers


def test_a_restart_is_noted_and_nothing_is_lost(tmp_path: Path) -> None:
    history = history_of(tmp_path, "step,loss\n1,5\n2,4\n3,3\nstep,loss\n2,4.5\n3,3.5\n")
    assert history.facts["restarts"] == [{"row": 3, "from": 3, "to": 2}]
    assert steps(history, "train/loss") == [1, 2, 2, 3, 3]
    assert values(history, "train/loss") == [5, 4, 4.5, 3, 3.5]
    assert history.facts["notes"] == ["the step falls back 1 times, first from 3"]


def test_many_rows_of_one_epoch_are_counted_by_row(tmp_path: Path) -> None:
    history = history_of(tmp_path, "epoch,loss\n" + "".join(f"{i // 10},{i}\n" for i in range(50)))
    assert history.facts["time"] == "row"
    assert steps(history, "train/loss") == list(range(50))
    assert values(history, "epoch")[-1] == 4


def test_a_clock_with_fractions_is_a_series_of_its_own(tmp_path: Path) -> None:
    history = history_of(tmp_path, "epoch,loss\n0.5,3\n1.0,2\n1.5,1\n")
    assert history.facts["time"] == "row"
    assert values(history, "epoch") == [0.5, 1.0, 1.5]


def test_a_log_that_ends_within_a_row_gives_what_is_whole(tmp_path: Path) -> None:
    history = history_of(tmp_path, "step,loss,val_loss\n1,0.5,0.6\n2,0.4,0.5\n3,0.3")
    assert values(history, "train/loss") == [0.5, 0.4]
    assert history.facts["notes"] == ["the log ends in the middle of line 4: its end was not read"]


def test_rows_before_a_broken_one_are_kept(tmp_path: Path) -> None:
    history = history_of(tmp_path, 'step,loss\n1,0.5\n2,0.4\n3,"' + "x" * 200_000 + "\n")
    assert values(history, "train/loss") == [0.5, 0.4]
    assert "not read from line 4 on" in history.facts["notes"][0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ("\n\n", "csv: it is empty"),
        ("1,2,3\n4,5,6\n", "csv: its first line holds numbers, not the names of columns"),
        ("step,loss\n", "csv: there is no row below its first line"),
        ("step,loss\na,b\n", "csv: no row below its first line holds numbers in as many columns"),
        ("\0\1\2", "csv: it is binary"),
        ("<loss>1</loss>\n<loss>2</loss>\n", "csv: its first line is not the header of a table"),
    ],
)
def test_what_is_no_table_is_one_clear_error(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(UnreadableError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert reason in str(error.value)


def test_a_million_cells_take_seconds_at_most(tmp_path: Path) -> None:
    history = history_of(tmp_path, "step,loss,lr,grad_norm\n" + "".join(f"{i},1.5,0.1,2.5\n" for i in range(250_000)))
    assert len(values(history, "gradient/norm")) == 250_000
    assert set(history.names()) == {"train/loss", "optimizer/learning_rate", "gradient/norm"}


def test_the_loss_of_ultralytics_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    text = (
        "   epoch,  train/box_loss,  train/cls_loss,  train/dfl_loss,  metrics/mAP50(B),  val/box_loss,  val/cls_loss,"
        "  val/dfl_loss,  lr/pg0\n"
        " 1, 1.5, 2.5, 1.0, 0.125, 1.25, 2.0, 1.0, 0.5\n 2, 1.25, 2.0, 1.0, 0.25, 1.0, 2.0, 0.5, 0.25\n"
    )
    history = history_of(tmp_path, text, "results.csv")
    assert (steps(history, "train/loss"), values(history, "train/loss")) == ([1, 2], [5.0, 4.25])
    assert values(history, "validation/loss") == [4.25, 3.5]
    assert values(history, "optimizer/learning_rate") == [0.5, 0.25]
    assert "train/loss is the sum of train/box_loss, train/cls_loss, train/dfl_loss" in history.facts["notes"]


def test_columns_apart_by_spaces_as_notebooks_print_them(tmp_path: Path) -> None:
    history = history_of(
        tmp_path,
        "epoch     train_loss  valid_loss  accuracy  time\n0  0.5   0.75   0.5   00:10\n1  0.25  0.5  0.75  00:09\n",
    )
    assert (steps(history, "train/loss"), values(history, "train/loss")) == ([0, 1], [0.5, 0.25])
    assert values(history, "validation/loss") == [0.75, 0.5]


def test_exports_with_quotes_are_read_too(tmp_path: Path) -> None:
    text = '"Step","train/loss","name"\n"1","0.5","a, b"\n"2","0.25","c\nd"\n"3","0.125","e"\n'
    history = history_of(tmp_path, text)
    assert (steps(history, "train/loss"), values(history, "train/loss")) == ([1, 2, 3], [0.5, 0.25, 0.125])
    assert history.line_of(3) == 5


def test_a_run_written_behind_another_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,3\n1,2\n2,1\nepoch,loss\n0,5\n1,4\n")
    first, second = read(path)
    assert (values(first, "train/loss"), values(second, "train/loss")) == ([3, 2, 1], [5, 4])
    assert second.line_of(0) == 6


def test_validation_written_behind_all_of_training_is_no_restart(tmp_path: Path) -> None:
    history = history_of(tmp_path, "step,loss,val_loss\n0,3,\n1,2,\n2,1,\n0,,4\n2,,3\n")
    assert "restarts" not in history.facts
    assert (steps(history, "validation/loss"), values(history, "validation/loss")) == ([0, 2], [4, 3])


@pytest.mark.parametrize("rows", [1, 8_191, 8_192, 8_193, 20_000])
def test_blocks_and_single_rows_give_the_same(tmp_path: Path, rows: int) -> None:
    draw = random.Random(rows)
    cells = [[str(i), repr(draw.random()), "" if draw.random() < 0.5 else repr(draw.random())] for i in range(rows)]
    plain = history_of(tmp_path, "step,loss,val_loss\n" + "".join(",".join(row) + "\n" for row in cells))
    quoted = history_of(
        tmp_path, "step,loss,val_loss\r\n" + "".join(f'"{row[0]}",{row[1]},{row[2]}\r\n' for row in cells)
    )
    for name in plain.names():
        for ours, theirs in zip(plain.series(name), quoted.series(name), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert plain.names() == quoted.names()
    assert plain.line_of(rows - 1) == quoted.line_of(rows - 1) == rows + 1
