"""TensorBoard: every value, step and wall time as TensorBoard's own reader gives it, whatever wrote the files."""

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as masked_crc32c_of_tensorboard
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import find, read
from trainmedic.readers.crc32c import masked_crc32c
from trainmedic.readers.events import Run
from trainmedic.readers.protobuf import FEW, IN_STEP, PADDING, fields
from trainmedic.readers.reader import Options

SIZES = {"scalars": 0, "tensors": 0, "histograms": 0, "images": 0, "compressedHistograms": 0, "audio": 0}


def write(path: Path, events: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(event_pb2.Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for event in events:
            writer.write(event.SerializeToString())
    return path


def scalar(tag: str, step: int, value: float, wall_time: float = 0.0) -> Any:
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)])
    return event_pb2.Event(wall_time=wall_time or 100.5 + step, step=step, summary=summary)


def tensor(tag: str, step: int, value: Any, plugin: str = "scalars") -> Any:
    entry = summary_pb2.Summary.Value(tag=tag, tensor=tensor_util.make_tensor_proto(value))
    if plugin:
        entry.metadata.plugin_data.plugin_name = plugin
    return event_pb2.Event(wall_time=7.0, step=step, summary=summary_pb2.Summary(value=[entry]))


def restart(step: int) -> Any:
    return event_pb2.Event(step=step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))


def of_tensorboard(directory: Path) -> dict[str, list[tuple[int, float, float]]]:
    accumulator = EventAccumulator(str(directory), size_guidance=SIZES)
    accumulator.Reload()
    found = {
        tag: [(event.step, event.wall_time, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }
    for tag in accumulator.Tags()["tensors"]:
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            found[tag] = [
                (event.step, event.wall_time, float(tensor_util.make_ndarray(event.tensor_proto)))
                for event in accumulator.Tensors(tag)
            ]
    return found


def of_ours(files: list[Path], verify: bool = True) -> dict[str, list[tuple[int, float, float]]]:
    return {
        tag: list(zip(steps.tolist(), walls.tolist(), values.tolist(), strict=True))
        for tag, steps, walls, values in Run.of(files, verify).scalars()
    }


def values(history: History, name: str) -> list[float]:
    return history.series(name).values.tolist()


def steps(history: History, name: str) -> list[int]:
    return history.series(name).steps.tolist()


def test_what_torch_writes_is_read_as_tensorboard_reads_it(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        for step in range(200):
            writer.add_scalar("train/loss", 3 / (step + 1), step)
            writer.add_scalar("new/style", step / 7, step, new_style=True)
            writer.add_scalar("double", step / 7, step, new_style=True, double_precision=True)
            if step % 20 == 0:
                writer.add_histogram("weights", np.random.default_rng(step).normal(size=200), step)
                writer.add_text("notes", "**hello**", step)
                writer.add_scalar("val/loss", math.nan if step == 40 else 2.0, step)
        writer.add_image("picture", np.zeros((3, 4, 4)), 0)
    ours = of_ours(list(tmp_path.iterdir()))
    theirs = of_tensorboard(tmp_path)
    assert sorted(ours) == sorted(theirs) == ["double", "new/style", "train/loss", "val/loss"]
    for tag in theirs:
        np.testing.assert_array_equal(np.array(ours[tag]), np.array(theirs[tag]))
    (history,) = read(tmp_path)
    assert steps(history, "train/loss") == list(range(200))
    assert math.isnan(values(history, "validation/loss")[2])
    assert history.facts["names"] == {"train/loss": "train/loss", "validation/loss": "val/loss"}
    assert history.facts["time"] == "step"
    assert history.facts["notes"] == ["checksums of the records were not verified"]


def test_several_files_of_one_run_and_a_restart(tmp_path: Path) -> None:
    one = write(tmp_path / "events.out.tfevents.1.host", [scalar("loss", i, 10 - i) for i in range(8)])
    two = write(
        tmp_path / "events.out.tfevents.2.host", [restart(5), *(scalar("loss", i, 20 - i) for i in range(5, 9))]
    )
    assert of_ours([one, two]) == of_tensorboard(tmp_path)
    (history,) = read(tmp_path)
    assert values(history, "train/loss") == [10, 9, 8, 7, 6, 15, 14, 13, 12]
    assert "3 values were taken back by a restart that began again before them" in history.facts["notes"]


def test_overlapping_steps_without_a_word_are_kept_and_told(tmp_path: Path) -> None:
    write(tmp_path / "events.out.tfevents.1.host", [scalar("loss", i, i) for i in range(4)])
    write(tmp_path / "events.out.tfevents.2.host", [scalar("loss", i, i) for i in range(2, 6)])
    (history,) = read(tmp_path)
    assert steps(history, "train/loss") == [0, 1, 2, 2, 3, 3, 4, 5]
    assert history.facts["restarts"] == [{"from": 3, "to": 2}]


def test_folders_of_add_scalars_and_add_hparams_belong_to_the_run(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "a") as writer:
        writer.add_scalar("lr", 0.1, 0)
        writer.add_scalars("Loss", {"train": 1.0, "val": 2.0}, 0)
        writer.add_scalars("Loss", {"train": 0.5, "val": 1.5}, 1)
        writer.add_hparams({"lr": 0.1}, {"hparam/accuracy": 0.5})
    with SummaryWriter(tmp_path / "b") as writer:
        writer.add_scalar("loss", 0.1, 0)
    first, second = read(tmp_path)
    assert sorted(first.names()) == ["optimizer/learning_rate", "train/loss", "validation/loss"]
    assert values(first, "validation/loss") == [2.0, 1.5]
    assert second.names() == ["train/loss"]


def test_train_and_validation_of_keras_are_one_run(tmp_path: Path) -> None:
    for role in ("train", "validation"):
        events = [tensor("epoch_loss", i, np.float32(i + 0.5)) for i in range(3)]
        if role == "train":
            events += [tensor("epoch_learning_rate", 0, np.float32(0.25)), tensor("text", 0, "hello", "text")]
        else:
            events += [tensor("evaluation_loss_vs_iterations", 100, np.float32(1))]
        write(tmp_path / "run" / role / "events.out.tfevents.1.host.1.0.v2", events)
    (history,) = read(tmp_path)
    assert values(history, "train/loss") == values(history, "validation/loss") == [0.5, 1.5, 2.5]
    assert values(history, "optimizer/learning_rate") == [0.25]
    assert history.facts["time"] == "epoch"
    assert [source.path.name for source in find(tmp_path)] == ["run"]
    (alone,) = read(tmp_path / "run" / "validation")
    assert "validation/loss" in alone


def test_metadata_stands_on_the_first_value_of_a_tag_only(tmp_path: Path) -> None:
    path = write(
        tmp_path / "events.out.tfevents.1.host",
        [
            tensor("loss", 0, np.float32(1)),
            tensor("loss", 1, np.float32(2), plugin=""),
            tensor("curve", 0, np.float32(1), plugin="pr_curves"),
            tensor("curve", 1, np.float32(2), plugin=""),
            tensor("many", 0, np.float32([1, 2]), plugin=""),
        ],
    )
    assert of_ours([path]) == {"loss": [(0, 7.0, 1.0), (1, 7.0, 2.0)]}


def test_a_file_cut_off_anywhere_gives_the_records_before(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tfevents.1", [scalar("loss", i, i) for i in range(5)]).read_bytes()
    path = tmp_path / "cut" / "events.out.tfevents.1.host"
    path.parent.mkdir()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        expected = of_tensorboard(path.parent)
        if not expected:
            with pytest.raises(UnreadableError):
                read(path)
            continue
        assert of_ours([path]) == expected
        (history,) = read(path)
        cut = length not in _ends(whole)
        assert any("ends in the middle of a record" in note for note in history.facts["notes"]) == cut


def _ends(content: bytes) -> set[int]:
    ends, at = set(), 0
    while at < len(content):
        at += int.from_bytes(content[at : at + 8], "little") + 16
        ends.add(at)
    return ends


def test_damage_is_told_and_with_verify_no_wrong_number_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "events.out.tfevents.1.host", [scalar("loss", i, i) for i in range(100)])
    content = path.read_bytes()
    draw = random.Random(0)
    (source,) = find(path)
    for _ in range(300):
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :])
        try:
            (history,) = source.read(Options(verify=True))
        except UnreadableError:
            continue
        told, seen = history.series("train/loss")
        np.testing.assert_array_equal(told, seen)
        assert len(told) >= 98 or any("damaged at byte" in note for note in history.facts["notes"])
        assert len(told) == 100 or history.facts["notes"]


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_checksums_are_those_of_tensorboard(pieces: list[bytes]) -> None:
    data = np.frombuffer(b"".join(pieces) or b"x", dtype=np.uint8)
    stop = np.cumsum([len(piece) for piece in pieces])
    begin = stop - [len(piece) for piece in pieces]
    expected = [int(masked_crc32c_of_tensorboard(piece)) for piece in pieces]
    assert masked_crc32c(data, begin, stop).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=30))
def test_any_bytes_are_fields_or_broken(messages: list[bytes]) -> None:
    data = np.frombuffer(b"".join(messages) + bytes(PADDING), dtype=np.uint8)
    stop = np.cumsum([len(message) for message in messages], dtype=np.int64)
    begin = stop - np.array([len(message) for message in messages], dtype=np.int64)
    found, broken = fields(data, begin, stop)
    together = {tuple(row) for row in np.stack(found).T.tolist()}
    apart: set[tuple[int, ...]] = set()
    for i in range(len(messages)):
        part, bad = fields(data, begin[i : i + 1], stop[i : i + 1])
        assert bad.tolist() == [broken[i]]
        apart |= {(i, *row[1:]) for row in np.stack(part).T.tolist()}
    assert together == apart


@given(st.integers(0, 3 * IN_STEP), st.integers(1, 3 * FEW))
def test_fields_of_long_and_many_messages(length: int, count: int) -> None:
    numbers = [(i * 2654435761) % 2**63 for i in range(length)]
    message = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=str(i)) for i in numbers]).SerializeToString()
    data = np.frombuffer(message * count + bytes(PADDING), dtype=np.uint8)
    begin = np.arange(count, dtype=np.int64) * len(message)
    found, broken = fields(data, begin, begin + len(message))
    assert not broken.any()
    assert found.message.tolist() == [i for i in range(count) for _ in numbers]
    texts = [bytes(data[a:b])[2:].decode() for a, b in zip(found.start, found.stop, strict=True)]
    assert texts == [str(i) for i in numbers] * count


def test_records_longer_than_a_block_and_lengths_that_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmedic.readers.events.BLOCK", 1_000)
    big = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag="x" * 20_000, simple_value=1)])
    path = write(
        tmp_path / "events.out.tfevents.1.host",
        [scalar("loss", 0, 1), event_pb2.Event(summary=big), scalar("loss", 1, 2)],
    )
    (history,) = read(path)
    assert values(history, "train/loss") == [1, 2]
    lie = (1 << 62).to_bytes(8, "little")
    path.write_bytes(path.read_bytes()[:60] + lie + int(masked_crc32c_of_tensorboard(lie)).to_bytes(4, "little"))
    with pytest.raises(UnreadableError):
        read(path)


def test_a_file_that_has_only_just_been_begun_is_refused_as_empty(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="a tensorboard log without a single number in it"):
        read(write(tmp_path / "events.out.tfevents.1.host", []))
