"""Finding logs: what belongs to one run is taken together, and what cannot be read is said clearly."""

import os
from pathlib import Path

import numpy as np
import pytest

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import find, opinions, read
from trainmedic.readers.own import recorded
from trainmedic.readers.reader import readers


def test_a_watched_run_is_read_back_whole(tmp_path: Path) -> None:
    history = History.of(train_loss=[3.0, float("nan"), 1.0], fc1__gradient_norm=[1.0, 2.0, 3.0])
    history.save(tmp_path / "run" / "history.npz")
    for path in (tmp_path, tmp_path / "run", tmp_path / "run" / "history.npz"):
        (back,) = read(path)
        np.testing.assert_array_equal(back.series("train/loss").values, [3.0, np.nan, 1.0])
        assert back.layers("gradient_norm").latest() == [("fc1", 3.0)]


def test_a_directory_is_searched_and_other_files_are_left_alone(tmp_path: Path) -> None:
    History.of(train_loss=[1.0]).save(tmp_path / "a" / "history.npz")
    (tmp_path / "a" / "trainmedic.json").write_text("{}")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.csv").write_text("epoch,loss\n0,1\n")
    (tmp_path / "b" / "iris.csv").write_text("sepal,petal\n1,2\n")
    (tmp_path / "b" / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "log.csv").write_text("epoch,loss\n0,1\n")
    found = [source.path.relative_to(tmp_path).as_posix() for source in find(tmp_path)]
    assert found == ["a/history.npz", "b/log.csv"]


def test_a_file_that_is_named_is_read_whatever_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text("a,b\n1,2\n")
    assert read(path)[0].names() == ["a", "b"]


def test_one_broken_log_does_not_hide_another(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,loss\n0,1\n")
    (tmp_path / "trainer_state.json").write_text("{")
    assert len(read(tmp_path)) == 1
    (tmp_path / "log.csv").unlink()
    with pytest.raises(UnreadableError, match=r"trainer_state\.json: not valid JSON"):
        read(tmp_path)


def test_a_missing_path_and_a_directory_without_logs(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="nothing: there is no such file or directory"):
        read(tmp_path / "nothing")
    with pytest.raises(UnreadableError, match="no log of a training in this directory or below it; what is known: "):
        read(tmp_path)


def test_a_glob_gives_the_logs_at_all_places_that_match(tmp_path: Path) -> None:
    for run in ("a1", "a2", "b1"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "log.csv").write_text("epoch,loss\n0,1\n1,2\n")
    (tmp_path / "a3").mkdir()
    assert [source.path.parent.name for source in find(tmp_path / "a*")] == ["a1", "a2"]
    assert [source.path.parent.name for source in find(f"{tmp_path}/**/*.csv")] == ["a1", "a2", "b1"]
    with pytest.raises(UnreadableError, match=r"c\*: nothing matches"):
        read(tmp_path / "c*")
    (tmp_path / "[x]").mkdir()
    (tmp_path / "[x]" / "log.csv").write_text("epoch,loss\n0,1\n1,2\n")
    assert len(find(tmp_path / "[x]")) == 1


def test_names_that_the_user_gives_win(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,objective\n1,5,2\n2,4,1\n")
    (history,) = read(path, names={"objective": "train/loss"})
    assert history.series("train/loss").values.tolist() == [2, 1]
    assert history.series("loss").values.tolist() == [5, 4]
    assert history.facts["names"] == {"train/loss": "objective"}
    (plain,) = read(path, names={"nothing": "train/loss"})
    assert plain.series("train/loss").values.tolist() == [5, 4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableError, match="neither a file nor a directory"):
        read(tmp_path / "pipe")


def test_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("epoch,loss\n0,1\n")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(find(tmp_path)) == 1


def test_every_reader_says_why_it_does_not_know_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"\x00\xff" * 100)
    told = opinions(path)
    assert [name for name, _ in told] == [reader.name for reader in readers()]
    assert all(told_why for _, told_why in told)
    with pytest.raises(UnreadableError, match=r"not a log of a training that is known .neither its name"):
        read(path)
    path.rename(tmp_path / "x.csv")
    with pytest.raises(UnreadableError, match=r"known \(csv: it is binary\); what each reader says of it: trainmedic"):
        read(tmp_path / "x.csv")


def test_unrelated_files_of_a_directory_are_not_taken_for_logs(tmp_path: Path) -> None:
    for name, text in {
        "README.md": "# A training\n\nThe loss was 3.5 at step 5.\nAt step 10 the loss was 2.5.\n",
        "requirements.txt": "torch==2.1\nnumpy==1.26\n",
        "train.py": "for step in range(10):\n    loss = 0.5\n    loss = 0.25\n",
        "config.json": '{"learning_rate": 0.1, "epochs": 10, "loss": "mse", "loss_weight": 1, "step": 1}',
        "package.json": '{"name": "x", "version": "1.0"}',
        "people.csv": "name,age,accuracy\nbob,1,2\nann,2,3\n",
        "predictions.csv": "id,label,loss\n1,2,3\n2,3,4\n",
        "data.jsonl": '{"text": "hello", "label": 1}\n{"text": "b", "label": 0}\n',
        "server.log": "12:00:01 request took 12 ms status 200\n12:00:02 request took 14 ms status 200\n",
        "picture.png": "\x89PNG\r\n\x1a\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(UnreadableError, match="no log of a training in this directory"):
        find(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', '{"version": 1, "runs": []}', "[" * 100_000])
def test_a_broken_report_beside_a_history_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "trainmedic.json").write_text(content)
    with pytest.raises(UnreadableError, match=r"trainmedic\.json: not a report of trainmedic"):
        recorded(tmp_path / "history.npz")
