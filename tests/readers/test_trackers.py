"""W&B's and MLflow's own files, written here as their formats say."""

import math
import sqlite3
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import find, read


def points(history: History, name: str) -> list[tuple[int, float]]:
    steps, values = history.series(name)
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    rest = value >> 7
    return bytes([value & 0x7F | (0x80 if rest else 0)]) + (varint(rest) if rest else b"")


def item(key: str | list[str], value: str) -> bytes:
    names = field(1, key.encode()) if isinstance(key, str) else b"".join(field(2, part.encode()) for part in key)
    return field(1, names + field(16, value.encode()))


def history_record(step: int, *items: bytes) -> bytes:
    return field(1, step + 1) + field(2, b"".join(items) + field(2, field(1, step)))


def wandb_file(path: Path, records: list[bytes]) -> Path:
    """Records in blocks of 32 KiB, cut where a block ends."""
    content = bytearray(b":W&B\xe1\xbe\0")
    for record in records:
        rest, kind = record, 1
        while True:
            room = 32_768 - len(content) % 32_768
            if room < 7:
                content += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = (2 if kind == 1 else 3) if rest else (1 if kind == 1 else 4)
            content += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            if not rest:
                break
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def wandb_run(path: Path, count: int = 50) -> Path:
    records = [field(17, field(1, b"abc"))]
    for i in range(count):
        items = [item("train/loss", str(3 - i / count)), item(["nest", "a"], str(i)), item("_timestamp", "1.5e9")]
        items += (
            [item("val/loss", "NaN" if i == 20 else "2.5"), item("note", '"' + "x" * 5 * count + '"')]
            if i % 10 == 0
            else []
        )
        records.append(history_record(i, *items, item("_step", str(i))))
    return wandb_file(path, [*records, field(18, b"")])


def test_a_wandb_run(tmp_path: Path) -> None:
    wandb_run(tmp_path / "wandb" / "offline-run-1-abc" / "run-abc.wandb", 500)
    (history,) = read(tmp_path)
    assert points(history, "train/loss") == [(i, 3 - i / 500) for i in range(500)]
    assert points(history, "nest/a")[3] == (3, 3)
    assert math.isnan(history.series("validation/loss").values[2])
    assert set(history.names()) == {"train/loss", "validation/loss", "nest/a"}
    assert (history.facts["time"], history.facts["tool"]) == ("step", "wandb")


def test_the_step_of_the_framework_counts_where_wandb_counts_logs(tmp_path: Path) -> None:
    records = [history_record(i, item("train/loss", "1"), item("train/global_step", str(10 * i))) for i in range(3)]
    (history,) = read(wandb_file(tmp_path / "run.wandb", records))
    assert points(history, "train/loss") == [(0, 1), (10, 1), (20, 1)]


def test_typed_values_of_newer_versions(tmp_path: Path) -> None:
    double = varint(6 << 3 | 1) + struct.pack("<d", 0.125)
    typed = field(1, field(1, b"loss") + double) + field(1, field(1, b"count") + field(5, 7))
    (history,) = read(wandb_file(tmp_path / "run.wandb", [history_record(0, typed)]))
    assert points(history, "train/loss") == [(0, 0.125)]
    assert points(history, "count") == [(0, 7)]


def test_a_wandb_file_cut_off_anywhere_gives_the_rows_before(tmp_path: Path) -> None:
    path = wandb_run(tmp_path / "run.wandb", 5)
    content = path.read_bytes()
    seen = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            (history,) = read(path)
        except UnreadableError:
            continue
        loss = history.series("train/loss").values
        np.testing.assert_array_equal(loss, [3 - i / 5 for i in range(len(loss))])
        seen = max(seen, len(loss))
    assert seen == 5


def test_a_damaged_wandb_record_is_left_out_and_told(tmp_path: Path) -> None:
    path = wandb_run(tmp_path / "run.wandb", 5)
    content = bytearray(path.read_bytes())
    content[content.index(b"2.4")] = ord("9")
    path.write_bytes(content)
    (history,) = read(path)
    assert len(points(history, "train/loss")) == 4
    assert history.facts["notes"] == ["1 records do not fit their checksum and were left out"]


def mlflow_run(run: Path) -> Path:
    metrics = {
        "train/loss": "1700000000000 2.5 0\n1700000000001 2.0 10\n1700000000002 nan 20\n",
        "val_loss": "1700000000001 2.25 10 dataset abcdef\n",
        "final": "1700000000009 0.5\n",
    }
    for name, text in metrics.items():
        (run / "metrics" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "metrics" / name).write_text(text)
    (run / "meta.yaml").write_text("run_id: abc\n")
    (run / "params").mkdir()
    (run / "params" / "lr").write_text("0.1")
    return run


def test_an_mlflow_run(tmp_path: Path) -> None:
    run = mlflow_run(tmp_path / "mlruns" / "0" / "abc")
    (source,) = find(tmp_path)
    assert source.path == run
    (history,) = read(tmp_path)
    assert points(history, "train/loss")[:2] == [(0, 2.5), (10, 2.0)]
    assert math.isnan(history.series("train/loss").values[2])
    assert points(history, "validation/loss") == [(10, 2.25)]
    assert points(read(run / "metrics" / "train" / "loss")[0], "train/loss")[0] == (0, 2.5)


def test_a_line_of_mlflow_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = mlflow_run(tmp_path / "run")
    (run / "metrics" / "val_loss").write_text("1700000000000 2.5 0\n1700000000001 2.2")
    (history,) = read(run)
    assert points(history, "validation/loss") == [(0, 2.5)]
    assert history.facts["notes"] == ["1 lines cannot be read and were left out"]


SCHEMA = "(key TEXT, value FLOAT, timestamp BIGINT, run_uuid TEXT, step BIGINT, is_nan BOOLEAN)"


def mlflow_database(path: Path) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE metrics {SCHEMA}")
    for run in ("a", "b"):
        for step, (value, is_nan) in enumerate(
            [(2.5, 0), (0.0, 1), (1.7976931348623157e308, 0), (-1.7976931348623157e308, 0)]
        ):
            connection.execute(
                "INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", ("loss", value, step, run, step, is_nan)
            )
    connection.commit()
    connection.close()
    return path


def test_an_mlflow_database(tmp_path: Path) -> None:
    path = mlflow_database(tmp_path / "mlflow.db")
    before = path.read_bytes()
    histories = read(tmp_path)
    assert [history.facts["run"] for history in histories] == ["a", "b"]
    for history in histories:
        np.testing.assert_array_equal(history.series("train/loss").values, [2.5, math.nan, math.inf, -math.inf])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["mlflow.db"]


def test_a_view_that_never_ends_is_not_asked(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute(
        "CREATE VIEW metrics AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i FROM n"
    )
    connection.close()
    with pytest.raises(UnreadableError, match="without metrics of runs"):
        read(tmp_path / "mlflow.db")


def test_other_databases_are_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE things (a)")
    connection.close()
    with pytest.raises(UnreadableError, match="no log of a training in this directory"):
        read(tmp_path)


# -- what a run was set to ---------------------------------------------------------------------------------------


def test_the_settings_of_a_wandb_run_are_facts(tmp_path: Path) -> None:
    begun = item("lr", "0.001") + item("model", '{"depth": 4}') + item("_wandb", '{"t": 1}') + item("odd", "{")
    records = [
        field(17, field(1, b"abc") + field(4, begun)),
        history_record(0, item("loss", "1")),
        field(5, item("lr", "0.002") + item(["nested", "key"], '"x"')),
    ]
    (history,) = read(wandb_file(tmp_path / "run.wandb", records))
    assert history.facts["config"] == {"lr": 0.002, "model": {"depth": 4}, "odd": None, "nested/key": "x"}


def test_the_settings_of_an_mlflow_run_are_facts(tmp_path: Path) -> None:
    run = tmp_path / "mlruns" / "0" / "abc"
    (run / "metrics").mkdir(parents=True)
    (run / "params" / "optimizer").mkdir(parents=True)
    (run / "meta.yaml").write_text("run_id: abc\n")
    (run / "metrics" / "loss").write_text("1500000000000 1.0 0\n1500000000001 0.5 1\n")
    (run / "params" / "batch_size").write_text("32\n")
    (run / "params" / "optimizer" / "lr").write_text("0.1")
    (run / "params" / "link").symlink_to("/etc/hostname")
    (history,) = read(tmp_path)
    assert history.facts["config"] == {"batch_size": "32", "optimizer/lr": "0.1"}


def test_the_settings_in_an_mlflow_database_are_facts_of_their_run(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metrics (key, value, timestamp, step, is_nan, run_uuid)")
    connection.execute("CREATE TABLE params (key, value, run_uuid)")
    for uuid in ("a", "b"):
        connection.execute("INSERT INTO metrics VALUES ('loss', 1.0, 1, 0, 0, ?)", (uuid,))
    connection.execute("INSERT INTO params VALUES ('lr', '0.1', 'b')")
    connection.commit()
    connection.close()
    assert [history.facts.get("config") for history in read(path)] == [None, {"lr": "0.1"}]


def test_a_database_that_cannot_even_be_named_is_refused(tmp_path: Path) -> None:
    """SQLite names a table in its complaint, in bytes that are no text."""
    path = mlflow_database(tmp_path / "mlflow.db")
    whole = path.read_bytes()
    for spoilt in (b"CREATE TABLE \xc5\xff metr", b"CREATE TABLE \n\n)metri"):
        path.write_bytes(whole.replace(b"CREATE TABLE metrics", spoilt))
        with pytest.raises(UnreadableError, match=r"mlflow\.db: ") as error:
            read(path)
        assert "\n" not in str(error.value)
