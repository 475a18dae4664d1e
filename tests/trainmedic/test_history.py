"""The record of a run: what is kept and in which order, what files hold, and what a broken file says."""

import contextlib
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmedic.errors import UnreadableError, UsageError
from trainmedic.history import FIRST, History, Layer, LayerTable, Series, Snapshot, check_step

NAN, INF = float("nan"), float("inf")


def recorded() -> History:
    """A bit of everything, with values that are not finite and layers that were not always measured."""
    history = History(bounded=True)
    history.facts = {"optimizer": {"kind": "Adam", "betas": [0.9, 0.999]}, "loss": "cross_entropy", "start": NAN}
    history.architecture = {
        "fc1": Layer("fc1", "Linear", order=0, shape=(8,), activation="relu"),
        "fc1.weight": Layer("fc1.weight", "parameter", shape=(8, 4), trainable=False),
    }
    for step in range(5):
        history.record(
            Snapshot(step, {"train/loss": 1 / (step + 1)}, {"gradient_norm": {"fc1": step, "fc2": 2 * step}})
        )
    history.record(Snapshot(5, {"train/loss": NAN}, {"gradient_norm": {"fc2": 7.0}}))
    history.record(Snapshot(6, {"train/loss": INF, "gradient/norm": -INF}, {"gradient_norm": {"new": 1e-30}}))
    return history


def assert_same(one: History, other: History) -> None:
    assert one.names() == other.names()
    assert one.statistics() == other.statistics()
    assert one.architecture == other.architecture
    assert one.bounded == other.bounded
    for name in one.names():
        for left, right in zip(one.series(name), other.series(name), strict=True):
            np.testing.assert_array_equal(left, right)
    for statistic in one.statistics():
        left, right = one.layers(statistic), other.layers(statistic)
        assert left.layers == right.layers
        np.testing.assert_array_equal(left.steps, right.steps)
        np.testing.assert_array_equal(left.values, right.values)


def add_all(history: History, values: Any, name: str = "train/loss") -> None:
    for step, value in enumerate(values):
        history.add(name, step, value)


# -- what is recorded ----------------------------------------------------------------------------------------------


def test_an_empty_history() -> None:
    history = History()
    assert (history.names(), history.statistics()) == ([], [])
    assert (history.first_step, history.last_step) == (0, 0)
    assert "train/loss" not in history


def test_what_was_recorded_is_found_under_its_name() -> None:
    history = recorded()
    assert history.names() == ["train/loss", "gradient/norm"]
    assert history.statistics() == ["gradient_norm"]
    assert "gradient/norm" in history
    assert "gradient_norm" in history
    assert "validation/loss" not in history
    assert (history.first_step, history.last_step) == (0, 6)


def test_a_series_keeps_what_is_not_finite() -> None:
    steps, values = recorded().series("train/loss")
    assert steps.tolist() == [0, 1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(values[4:], [0.2, NAN, INF])


def test_a_layer_that_was_not_measured_is_nan_in_its_table() -> None:
    table = recorded().layers("gradient_norm")
    assert table.layers == ("fc1", "fc2", "new")
    assert table.values.shape == (7, 3)
    np.testing.assert_array_equal(table.values[4:, 0], np.float32([4, NAN, NAN]))
    assert np.isnan(table.values[:6, 2]).all()


def test_the_newest_measured_value_of_each_layer() -> None:
    table = LayerTable(np.arange(3), ("a", "b", "never"), np.float32([[1, 2, NAN], [3, NAN, NAN], [NAN, NAN, NAN]]))
    assert table.latest() == [("a", 3.0), ("b", 2.0)]


def test_a_column_holds_the_measured_values_alone() -> None:
    column = recorded().layers("gradient_norm").column("fc2")
    assert column.steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert column.values.tolist() == [0, 2, 4, 6, 8, 7]


def test_a_late_value_is_put_in_its_place() -> None:
    history = History()
    for step, value in ((0, 0.0), (10, 1.0), (20, 2.0), (10, 1.5), (5, 0.5), (30, 3.0)):
        history.add("validation/loss", step, value)
    assert history.series("validation/loss").steps.tolist() == [0, 5, 10, 10, 20, 30]
    assert history.series("validation/loss").values.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0]


def test_what_is_added_is_there_whenever_it_is_asked_for() -> None:
    """Values wait until someone looks; nobody can tell."""
    at_once, late = History(bounded=True), History(bounded=True)
    generator = np.random.default_rng(0)
    for step in range(40_000):  # more than a series holds before it is thinned
        for name in ("a", "b") if step % 3 else ("b",):
            at = max(0, step - int(generator.integers(100))) if step % 50 == 0 else step
            value = float(generator.normal())
            at_once.add(name, at, value)
            late.add(name, at, value)
            at_once.names()
    assert at_once.names() == late.names()
    for name in late.names():
        assert at_once.series(name).steps.tolist() == late.series(name).steps.tolist()
        assert at_once.series(name).values.tolist() == late.series(name).values.tolist()


def test_a_whole_series_is_sorted_by_step_and_stays_in_order_within_one() -> None:
    history = History()
    history.add_series("train/loss", [3, 1, 3, 2], [30, 10, 31, 20])
    assert history.series("train/loss").steps.tolist() == [1, 2, 3, 3]
    assert history.series("train/loss").values.tolist() == [10, 20, 30, 31]


def test_an_empty_series_is_none() -> None:
    history = History()
    history.add_series("train/loss", [], [])
    assert history.names() == []


def test_a_series_whose_steps_and_values_do_not_match_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^2 steps and 1 columns, but values of \(4,\)$"):
        History().add_series("train/loss", [1, 2], [1, 2, 3, 4])


def test_a_value_too_large_for_a_table_is_infinite_there() -> None:
    history = History.of(fc__weight_norm=[1.0, 1e300])
    assert history.layers("weight_norm").values[:, 0].tolist() == [1.0, INF]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train/los", "no series 'train/los' in this history; did you mean 'train/loss'?"),
        ("zzz", "no series 'zzz' in this history"),
    ],
)
def test_an_unknown_series_is_told_with_the_nearest(name: str, text: str) -> None:
    with pytest.raises(KeyError) as error:
        recorded().series(name)
    assert error.value.args == (text,)


def test_an_unknown_statistic_is_told_with_the_nearest() -> None:
    with pytest.raises(KeyError) as error:
        recorded().layers("gradientnorm")
    assert error.value.args == ("no statistic 'gradientnorm' in this history; did you mean 'gradient_norm'?",)


def test_examples_by_hand() -> None:
    history = History.of(
        steps=iter([0, 10, 20]),
        facts={"classes": 10},
        layers=[Layer("fc1", "Linear", order=0)],
        train_loss=[3, 2, 1],
        validation_loss=[4, 3],
        fc1__gradient_norm=[1, 2, 3],
        fc2__gradient_norm=[5],
    )
    assert history.facts == {"classes": 10}
    assert [(layer.name, layer.kind, layer.order) for layer in history.architecture.values()] == [
        ("fc1", "Linear", 0),
        ("fc2", "", 1),
    ]
    assert history.series("train/loss").steps.tolist() == [0, 10, 20]
    assert history.series("validation/loss").steps.tolist() == [0, 10]
    np.testing.assert_array_equal(
        history.layers("gradient_norm").values, np.float32([[1, 5], [2, NAN], [3, NAN]])
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (-1, "step must not be negative, but got -1"),
        (1.5, "step must be a whole number, but got 1.5"),
        (True, "step must be a whole number, but got True"),
        ("3", "step must be a whole number, but got '3'"),
    ],
)
def test_a_step_that_is_none(step: Any, text: str) -> None:
    with pytest.raises(UsageError) as error:
        check_step(step)
    assert str(error.value) == text


def test_numpy_counts_steps_too() -> None:
    assert check_step(np.int32(3)) == 3


# -- parts of it ---------------------------------------------------------------------------------------------------


def test_since() -> None:
    history = recorded()
    part = history.since(4)
    assert part.series("train/loss").steps.tolist() == [4, 5, 6]
    assert part.layers("gradient_norm").steps.tolist() == [4, 5, 6]
    assert part.layers("gradient_norm").layers == ("fc1", "fc2", "new")
    assert part.facts is history.facts
    assert part.architecture is history.architecture
    assert history.since(7).names() == []


def test_what_is_added_to_a_part_is_not_in_the_whole() -> None:
    history = recorded()
    before = history.series("train/loss").values.copy()
    history.since(4).add("train/loss", 5, 99.0)
    np.testing.assert_array_equal(history.series("train/loss").values, before)


def test_drop_after_and_going_on() -> None:
    history = recorded()
    history.drop_after(2)
    assert history.last_step == 2
    assert history.names() == ["train/loss"]  # the other series began later
    history.record(Snapshot(3, {"train/loss": 9.0}, {"gradient_norm": {"fc2": 8.0}}))
    assert history.series("train/loss").values[-2:].tolist() == [1 / 3, 9.0]
    np.testing.assert_array_equal(history.layers("gradient_norm").values[-1], np.float32([NAN, 8, NAN]))


# -- bounded -------------------------------------------------------------------------------------------------------


LONG = 12 * History.SERIES_LIMIT  # steps: nearly 200,000


@pytest.fixture(scope="module")
def long_run() -> History:
    history = History(bounded=True)
    for step in range(LONG):
        history.add("train/loss", step, step)
        if step % 8 == 0:
            history.record(Snapshot(step, layers={"gradient_norm": {"a": step, "b": -step}, "alone": {"a": step}}))
    return history


def test_a_long_recording_stays_within_its_limits(long_run: History) -> None:
    assert len(long_run.series("train/loss").steps) <= History.SERIES_LIMIT
    for statistic in long_run.statistics():
        assert len(long_run.layers(statistic).steps) <= History.TABLE_LIMIT


def test_the_whole_of_a_long_past_stays_in_sight(long_run: History) -> None:
    gaps = np.diff(long_run.series("train/loss").steps)
    assert (gaps > 0).all()
    assert gaps.max() <= 16 * LONG / History.SERIES_LIMIT
    for statistic in long_run.statistics():
        gaps = np.diff(long_run.layers(statistic).steps)
        assert (gaps > 0).all()
        assert gaps.max() <= 16 * LONG / History.TABLE_LIMIT


def test_the_start_and_the_recent_past_are_kept_in_full() -> None:
    history = History(bounded=True)
    total = 5 * History.SERIES_LIMIT
    add_all(history, np.arange(total))
    values = history.series("train/loss").values
    recent = History.SERIES_LIMIT // 2
    assert values[-recent:].tolist() == list(range(total - recent, total))
    assert values[:FIRST].tolist() == list(range(FIRST))


@pytest.mark.parametrize("seed", range(5))
def test_extremes_and_what_is_not_finite_are_never_lost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=6 * History.SERIES_LIMIT)
    low, high, *bad = rng.choice(len(values) // 100, size=4, replace=False) * 100
    values[low], values[high] = -100.0, 100.0
    values[bad] = NAN, INF
    values[low + 1 : low + 4] = NAN  # right beside the smallest one
    history = History(bounded=True)
    add_all(history, values)
    steps, kept = history.series("train/loss")
    np.testing.assert_array_equal(kept, values[steps])  # nothing is averaged: every value was seen at its step
    assert {low, high, low + 1, *bad} <= set(steps.tolist())


@pytest.mark.parametrize("measured", [1, 5])
def test_extremes_of_every_layer_are_kept_where_they_were(measured: int) -> None:
    history = History(bounded=True)
    rng = np.random.default_rng(0)
    total = 20 * History.TABLE_LIMIT
    table = rng.normal(size=(total, measured))
    high, low = rng.integers(0, total // 2, size=(2, measured))
    table[high, range(measured)], table[low, range(measured)] = 50, -50
    for step, row in enumerate(table):
        history.record(Snapshot(step, layers={"activation_mean": {f"fc{i}": x for i, x in enumerate(row)}}))
    steps, _, kept = history.layers("activation_mean")
    assert (kept.max(axis=0) == 50).all()
    assert (kept.min(axis=0) == -50).all()
    precision = 16 * total / History.TABLE_LIMIT
    assert (np.abs(steps[kept.argmax(axis=0)] - high) <= precision).all()
    assert (np.abs(steps[kept.argmin(axis=0)] - low) <= precision).all()


def test_late_values_do_not_break_a_long_recording() -> None:
    history = History(bounded=True)
    rng = np.random.default_rng(0)
    for step in range(3 * History.SERIES_LIMIT):
        history.add("train/loss", max(0, step - int(rng.integers(0, 50)) * (step % 10 == 0)), step)
    steps, values = history.series("train/loss")
    assert len(steps) <= History.SERIES_LIMIT
    assert (np.diff(steps) >= 0).all()
    assert values.max() == 3 * History.SERIES_LIMIT - 1


def test_a_history_that_is_not_bounded_keeps_everything() -> None:
    history = History()
    add_all(history, range(2 * History.SERIES_LIMIT))
    assert len(history.series("train/loss").values) == 2 * History.SERIES_LIMIT


def test_a_loaded_recording_goes_on_within_its_limits(tmp_path: Path) -> None:
    history = History(bounded=True)
    add_all(history, range(History.SERIES_LIMIT))
    history.save(tmp_path / "history.npz")
    loaded = History.load(tmp_path / "history.npz")
    for step in range(History.SERIES_LIMIT, 2 * History.SERIES_LIMIT):
        loaded.add("train/loss", step, step)
    assert len(loaded.series("train/loss").values) <= History.SERIES_LIMIT


# -- files ---------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    history = recorded()
    history.save(tmp_path / "new" / "history.npz")
    loaded = History.load(tmp_path / "new" / "history.npz")
    assert_same(history, loaded)
    assert loaded.facts.pop("start") != loaded.facts.get("start")  # NaN, and not equal to anything
    assert loaded.facts == {"optimizer": {"kind": "Adam", "betas": [0.9, 0.999]}, "loss": "cross_entropy"}


def test_facts_of_numpy_stay_what_they_are(tmp_path: Path) -> None:
    history = History.of(
        train_loss=[1], facts={"a": np.int64(3), "b": np.bool_(False), "c": np.arange(2), "d": tmp_path}
    )
    history.save(tmp_path / "history.npz")
    assert History.load(tmp_path / "history.npz").facts == {"a": 3, "b": False, "c": [0, 1], "d": str(tmp_path)}


def test_an_empty_history_is_saved_too(tmp_path: Path) -> None:
    History().save(tmp_path / "history.npz")
    assert_same(History(), History.load(tmp_path / "history.npz"))


def test_saving_leaves_one_file_and_replaces_the_old(tmp_path: Path) -> None:
    file = tmp_path / "history.npz"
    History.of(train_loss=[1]).save(file)
    History.of(train_loss=[1, 2]).save(file)
    assert os.listdir(tmp_path) == ["history.npz"]
    assert History.load(file).last_step == 1


def test_a_saving_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "history.npz"
    History.of(train_loss=[1]).save(file)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        History.of(train_loss=[1, 2]).save(file)
    assert os.listdir(tmp_path) == ["history.npz"]
    assert History.load(file).last_step == 0


names = st.text(max_size=12)
numbers = st.floats(width=32)
facts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
snapshots = st.lists(
    st.builds(
        Snapshot,
        st.integers(0, 2**62),
        st.dictionaries(names, st.floats(), max_size=3),
        st.dictionaries(names, st.dictionaries(names, numbers, max_size=3), max_size=2),
    ),
    max_size=12,
)
layers = st.builds(
    Layer, names, names, st.integers(-1, 99), st.tuples(st.integers(0, 99)), st.booleans(), st.none() | names
)


@given(snapshots, st.dictionaries(st.text(max_size=8), facts, max_size=3), st.lists(layers, max_size=3), st.booleans())
def test_any_history_survives_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    taken: list[Snapshot],
    given_facts: dict[str, Any],
    given_layers: list[Layer],
    bounded: bool,
) -> None:
    history = History(bounded=bounded)
    history.facts = given_facts
    history.architecture = {layer.name: layer for layer in given_layers}
    for snapshot in taken:
        history.record(snapshot)
    file = tmp_path_factory.mktemp("any") / "history.npz"
    history.save(file)
    loaded = History.load(file)
    assert_same(history, loaded)
    assert loaded.facts == given_facts


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(allow_nan=False)), max_size=40))
def test_values_come_out_in_step_order_however_they_came(values: list[tuple[int, float]]) -> None:
    history = History()
    for step, value in values:
        history.add("x", step, value)
    found = list(zip(*(part.tolist() for part in history.series("x")), strict=True)) if values else []
    assert found == sorted(values, key=lambda pair: pair[0])  # stable: within one step as they came


# -- broken and hostile files --------------------------------------------------------------------------------------


def header(**changes: Any) -> dict[str, Any]:
    return {
        "format": History.FORMAT,
        "bounded": False,
        "facts": {},
        "architecture": [],
        "series": ["train/loss"],
        "tables": {"gradient_norm": ["a", "b"]},
        **changes,
    }


def written(path: Path, head: Any, **changes: Any) -> Path:
    """A file like one that ``save`` wrote, but with these parts."""
    arrays = {
        "s0_steps": np.arange(3),
        "s0_values": np.zeros((3, 1)),
        "t0_steps": np.arange(3),
        "t0_values": np.zeros((3, 2), dtype=np.float32),
        **changes,
    }
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    np.savez_compressed(path, header=np.frombuffer(text, dtype=np.uint8), **arrays)
    return path


def test_the_files_of_these_tests_are_right_where_nothing_is_changed(tmp_path: Path) -> None:
    history = History.load(written(tmp_path / "h.npz", header()))
    assert history.series("train/loss") is not None
    assert isinstance(history.series("train/loss"), Series)
    assert history.layers("gradient_norm").values.shape == (3, 2)


def test_fields_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    layer = {"name": "fc", "kind": "Linear", "order": 0, "shape": [3], "colour": "red"}
    history = History.load(written(tmp_path / "h.npz", header(architecture=[layer], mood="good")))
    assert history.architecture == {"fc": Layer("fc", "Linear", 0, (3,))}


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        (header(format="trainmedic-history-9"), {}),
        ([1, 2], {}),
        (b"", {}),
        (b"{", {}),
        (b"[" * 100_000, {}),
        (b"\xff\xfe", {}),
        (header(facts=[1]), {}),
        (header(facts=None), {}),
        (header(architecture=[3]), {}),
        (header(architecture=[{"kind": "Linear"}]), {}),
        (header(architecture=[{"name": "fc", "order": "first"}]), {}),
        (header(architecture=[{"name": "fc", "shape": 3}]), {}),
        (header(series=["train/loss", "gone"]), {}),
        (header(series=3), {}),
        (header(tables=["gradient_norm"]), {}),
        (header(tables={"gradient_norm": ["a", "b", "c"]}), {}),
        (header(tables={"gradient_norm": ["a", "a"]}), {}),
        (header(), {"s0_steps": np.arange(2)}),
        (header(), {"s0_values": np.zeros((3, 2))}),
        (header(), {"s0_values": np.array(["a", "b", "c"])}),
        (header(), {"t0_values": np.zeros(())}),
    ],
    ids=repr,
)
def test_a_file_whose_parts_do_not_fit(tmp_path: Path, head: Any, changes: dict[str, Any]) -> None:
    file = written(tmp_path / "h.npz", head, **changes)
    with pytest.raises(UnreadableError) as error:
        History.load(file)
    assert str(error.value).startswith(f"{file}: not a trainmedic history: ")
    assert "\n" not in str(error.value)


def test_a_file_of_somebody_else_has_no_header(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(UnreadableError, match=r"other\.npz: not a trainmedic history: it has no header$"):
        History.load(tmp_path / "other.npz")


@pytest.mark.parametrize("content", [b"", b"step,loss\n1,2\n", b"PK\x03\x04", bytes(range(256)) * 4, b"\x93NUMPY"])
def test_a_file_that_is_none_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "h.npz").write_bytes(content)
    with pytest.raises(UnreadableError, match="not a trainmedic history"):
        History.load(tmp_path / "h.npz")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        History.load(tmp_path / "h.npz")


def test_a_file_cut_short_or_damaged_anywhere(tmp_path: Path) -> None:
    recorded().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    broken = tmp_path / "broken.npz"
    for at in range(0, len(whole), 7):
        broken.write_bytes(whole[:at])
        with pytest.raises(UnreadableError):
            History.load(broken)
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(UnreadableError):  # or nothing is lost: some bytes (times, attributes) mean nothing
            assert_same(recorded(), History.load(broken))


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.target),)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    objects = np.array([Bomb(target)], dtype=object)
    for file in (
        written(tmp_path / "values.npz", header(), s0_values=objects),
        written(tmp_path / "extra.npz", header(), anything=objects),
    ):
        with pytest.raises(UnreadableError, match="allow_pickle=False"):
            History.load(file)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(UnreadableError):
        History.load(tmp_path / "bare.npz")
    assert not target.exists()


@pytest.mark.parametrize(("claimed", "text"), [(2 << 30, r"it unpacks to 2147483648 bytes$"), (200, "Bad CRC-32")])
def test_a_file_never_unpacks_to_more_than_it_says_and_that_is_bounded(tmp_path: Path, claimed: int, text: str) -> None:
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", bytes(16 << 20))
        archive.infolist()[0].file_size = claimed
    with pytest.raises(UnreadableError, match=text):
        History.load(file)


def test_an_array_that_claims_to_be_huge(tmp_path: Path) -> None:
    file = tmp_path / "claims.npz"
    shape = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 1), }"
    claim = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + shape.ljust(117) + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", claim)
    with pytest.raises(UnreadableError):
        History.load(file)
