"""Broken and hostile logs give runs or one clear error: never a traceback, never a hang."""

import json
import os
import random
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.readers.test_tensorboard import restart, scalar, tensor
from tests.readers.test_tensorboard import write as write_events
from tests.readers.test_trackers import mlflow_database, wandb_run
from trainmedic.diagnose.judge import judge
from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers import read

SAMPLES = Path(__file__).parents[1] / "samples"
NASTY = [
    b"",
    b"\0",
    b"\n",
    b",",
    b'"',
    b"NaN",
    b"1e999",
    b"-1",
    b"9" * 400,
    b"{",
    b"[",
    b"]}",
    b"\xff\xfe",
    b"\x1b[31m",
]


NAMES = [
    *("log.csv", "metrics.csv", "trainer_state.json", "history.npz", "metrics.jsonl", "history.json", "train.log"),
    *("events.out.tfevents.1.host", "run.wandb", "mlflow.db", "metrics/loss"),
]
TEXT = (
    b"[rank0]: step 1: train loss 2.5, val loss 2.25, lr 1e-3\n[rank0]: step 2: train loss 2.0, time 1,234ms\n"
    b"Epoch: [0][ 10/500]\tLoss 6.9e+00 (7.0e+00)\tAcc@1   0.00 (  0.10)\nTest: [ 1/50]\tLoss 6.0 (6.1)\n"
    b"Epoch 1:  10%|x         | 10/100 [00:01<00:09,  9.5it/s, loss=2.500]\r 100/100 [====] - 2s 1ms/step - loss: 2.0\n"
    b"\x1b[31mstep:  3  \x1b[32mloss: nan\x1b[39m\n| epoch   1 |   200/ 1000 batches | loss  7.62 | ppl  2043.38\n"
)
EVENTS = [scalar("loss", i, 3 - i) for i in range(6)] + [tensor("val_loss", 1, 2.5), restart(4), scalar("loss", 4, 1)]


def saved_history(directory: Path) -> bytes:
    history = History.of(train_loss=[3.0, 2.0, 1.0], fc1__gradient_norm=[1.0, 2.0, 3.0], facts={"loss": "mse"})
    history.save(directory / "seed.npz")
    return (directory / "seed.npz").read_bytes()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    state = (SAMPLES / "huggingface" / "trainer_state.json").read_bytes()
    directory = tmp_path_factory.mktemp("trackers")
    samples = [path for path in (Path(__file__).parent / "samples").rglob("*") if path.is_file()]
    return {
        **{f"{path.parent.name}/{path.name}": path.read_bytes()[:LARGEST] for path in samples if path.suffix != ".md"},
        "metrics.jsonl": b"".join(b'{"step": %d, "loss": %d.5, "val": {"loss": 1}}\n' % (i, 9 - i) for i in range(8)),
        "history.json": b'{"loss": [2.5, 2.0, 1.5], "val_loss": [2.5, 2.25, 2.0], "params": {"epochs": 3}}',
        "train.log": TEXT,
        "events.out.tfevents.1.host": write_events(directory / "events", EVENTS).read_bytes(),
        "run.wandb": wandb_run(directory / "run.wandb", 12).read_bytes(),
        "mlflow.db": mlflow_database(directory / "mlflow.db").read_bytes(),
        "metrics/loss": b"1700000000000 2.5 0\n1700000000001 2.0 1\n1700000000002 nan 2\n",
        "log.csv": (SAMPLES / "keras-csv" / "log.csv").read_bytes(),
        "metrics.csv": b"epoch,step,train_loss,val_loss\n0,10,0.5,\n0,20,,0.6\n1,30,0.4,\n" * 3,
        "trainer_state.json": state[:1500] + b'"step": 1}], "max_steps": 5}',
        "history.npz": saved_history(tmp_path_factory.mktemp("seed")),
    }


def read_or_refuse(path: Path) -> list[History]:
    refused = ""
    histories: list[History] = []
    try:
        histories = read(path)
    except UnreadableError as error:
        refused = str(error)
    assert histories or refused.startswith(str(path))
    assert "\n" not in refused
    for history in histories:
        judge(history)
    return histories


LARGEST = 1 << 14
"""Bytes from the beginning of a sample that are mutated."""
MUTATIONS = int(os.environ.get("TRAINMEDIC_MUTATIONS", "400"))
"""How many logs are made up; before a release: TRAINMEDIC_MUTATIONS=100000 python -m pytest -k mutated tests/readers"""


@settings(max_examples=MUTATIONS, deadline=2_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_logs(seeds: dict[str, bytes], tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(seeds)))
    content = bytearray(seeds[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        until = data.draw(st.integers(at, min(len(content), at + 40)))
        content[at:until] = data.draw(st.one_of(st.sampled_from(NASTY), st.binary(max_size=20)))
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(content))
    read_or_refuse(path)


CUT = {
    "trainer_state.json": json.dumps(
        {"epoch": 2.5, "log_history": [{"step": 5 * i, "loss": 3.25 - i / 8, "grad_norm": 0.125} for i in range(1, 9)]},
        indent=2,
    ).encode(),
    "history.json": b'{"loss": [2.5, 2.0, 1.5], "val_loss": [2.5, 2.25, 2.0], "params": {"epochs": 3}}',
}
"""Whole logs, where what is mutated is none."""
LINES = ("log.csv", "metrics.csv", "metrics.jsonl", "train.log", "metrics/loss")
SAID = re.compile(r"in the middle of|cut off|broken|not a sound|were left out|was cut")


def told(histories: list[History]) -> Counter[str]:
    """All numbers that were read, NaN as a text that equals itself."""
    numbers: Counter[str] = Counter()
    for history in histories:
        for name in history.names():
            numbers.update(str(value) for value in history.series(name).values.tolist())
    return numbers


@pytest.mark.parametrize("name", NAMES)
def test_a_log_cut_off_at_any_byte_gives_what_is_before_the_cut_and_says_so(
    seeds: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    content = CUT.get(name, seeds[name])
    if ".tfevents." in name:  # without the restart, which takes values back
        content = write_events(tmp_path / "plain", EVENTS[:7]).read_bytes()
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    whole, before = told(read(path)), Counter[str]()
    for length in range(1, len(content), max(1, len(content) // 1_000)):
        path.write_bytes(content[:length])
        histories = read_or_refuse(path)
        if not histories:
            continue
        numbers = told(histories)
        assert numbers <= whole, f"a number that is not in the log, cut at {length}"
        notes = [note for history in histories for note in history.facts.get("notes", ())]
        said = any(map(SAID.search, notes))
        if not said and not before < numbers:  # unless a record has just become whole, nothing must be missing
            assert name in LINES, f"not said: cut at {length}"
            path.write_bytes(content[:length] + b"\n")
            assert told(read(path)) == numbers, f"not said: cut at {length}, {content[length - 5 : length]!r}"
        before = numbers


def test_random_bytes(tmp_path: Path) -> None:
    draw = random.Random(0)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for _ in range(50):
            (tmp_path / name).write_bytes(draw.randbytes(draw.randint(1, 500)))
            read_or_refuse(tmp_path / name)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "history.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.npy", b"\0" * 1_000)
        archive.infolist()[0].file_size = 1 << 31  # what the archive says of itself
    with pytest.raises(UnreadableError, match="unpacks to"):
        read(path)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "history.npz", header=np.array([print], dtype=object))
    with pytest.raises(UnreadableError, match=r"history\.npz"):
        read(tmp_path / "history.npz")


def test_very_many_columns_and_a_very_long_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join(f"c{i}" for i in range(30_000)) + "\n" + ",".join(["1"] * 30_000) + "\n")
    with pytest.raises(UnreadableError):
        read(path)
    path.write_text("loss" * 1_000_000)
    with pytest.raises(UnreadableError):
        read(path)
