"""TM502 and its look-alikes."""

import numpy as np
import pytest

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.underfitting import Underfitting, _classes, _patches
from trainmedic.history import History, Layer, Snapshot


def look(history: History) -> list[Finding]:
    rule = Underfitting()
    return list(rule.check(history)) if rule.unmet(history) is None else []


def noisy(level: np.ndarray, seed: int = 0) -> list[float]:
    return list(level + 0.02 * np.random.default_rng(seed).standard_normal(len(level)))


def test_a_little_better_than_chance_and_no_more() -> None:
    [finding] = look(_classes(noisy(np.full(400, 2.25)), 0.2))
    assert 199 <= finding.detected_at <= 225
    assert finding.where == ("train/loss",)


@pytest.mark.parametrize("accuracy", [0.1, 0.11])
def test_no_better_than_chance_is_not_learning(accuracy: float) -> None:
    assert look(_classes(noisy(np.full(400, 2.25)), accuracy)) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_gets_there_by_its_end_is_healthy(seed: int) -> None:
    losses = noisy(np.concatenate([np.full(150, 2.29), np.linspace(2.29, 1.2, 250)]), seed)
    history = _classes(losses, 0.3)
    for end in (160, 200, 240, 300, 399):
        history.drop_after(end) if end < 399 else None
        assert look(history) == [] or end < 0
        history = _classes(losses, 0.3)


def test_lost_is_not_underfit() -> None:
    assert look(_classes([*np.linspace(2.3, 0.5, 100), *[2.29] * 300], 0.2)) == []


def test_a_validation_loss_that_is_better_says_dropout_is_on() -> None:
    history = _classes(noisy(np.full(400, 2.25)), 0.2)
    history.add_series("validation/loss", range(0, 400, 40), [1.5] * 10)
    assert look(history) == []


def test_a_narrow_code_is_told_by_what_it_leaves() -> None:
    losses = [1.0] * 10 + noisy(np.full(390, 0.2))
    [finding] = look(_patches(losses, 1))
    assert "with 1 number for 64 in its narrowest layer" in finding.message
    assert look(_patches(losses, 8)) == []
    assert look(_patches([1.0] * 10 + noisy(np.linspace(0.4, 0.1, 390)), 1)) == []


def test_noise_in_targets_is_no_fault_of_the_model() -> None:
    history = _patches([1.0] * 10 + noisy(np.full(390, 0.6)), 4)
    history.add_series("input/std", range(400), [3.0] * 400)  # targets are something else
    assert look(history) == []


def _made_of(history: History, *shapes: tuple[int, ...], trainable: bool = True) -> History:
    """With these weights, in order."""
    for i, shape in enumerate(shapes):
        history.architecture[f"{i}.weight"] = Layer(f"{i}.weight", "parameter", i, shape, trainable=trainable)
    return history


def test_one_unit_for_ten_classes() -> None:
    losses = noisy(np.full(400, 1.7))
    [finding] = look(_made_of(_classes(losses, 0.4), (1, 64), (10, 1)))
    assert finding.message.endswith("with 1 number for 10 in its narrowest layer")
    assert look(_made_of(_classes(losses, 0.4), (32, 64), (10, 32))) == []
    assert look(_made_of(_classes(losses, 0.4), (1, 64), (10, 1), trainable=False)) == []  # beside frozen ones
    assert look(_made_of(_classes(noisy(np.full(400, 0.3)), 0.9), (1, 64), (10, 1))) == []  # and they do


@pytest.mark.parametrize(
    ("hidden", "outputs", "left", "told"),
    [(2, 1, 0.8, True), (2, 1, 0.3, False), (8, 1, 0.8, False), (2, 8, 0.8, False)],
)
def test_two_units_for_one_number(hidden: int, outputs: int, left: float, told: bool) -> None:
    history = _made_of(_patches(noisy(np.full(400, left)), 1), (hidden, 16), (outputs, hidden))
    history.add_series("input/std", range(400), [3.0] * 400)  # targets are something else
    assert bool(look(history)) == told


def test_two_units_for_a_number_that_are_still_learning() -> None:
    history = _made_of(_patches(noisy(np.linspace(0.95, 0.55, 400)), 1), (2, 16), (1, 2))
    history.add_series("input/std", range(400), [3.0] * 400)
    assert look(history) == []


def test_a_linear_model_that_learns_nothing() -> None:
    history = _made_of(_classes(noisy(np.full(400, 2.3)), 0.1), (10, 64))
    assert [finding.code for finding in look(history)] == ["TM502"]
    assert look(_made_of(_classes(noisy(np.full(400, 1.9)), 0.35), (10, 64))) == []


@pytest.mark.parametrize(("zeros", "told"), [(0.95, True), (0.7, False)])
def test_dropout_is_measured_against_the_activation_before_it(zeros: float, told: bool) -> None:
    history = _classes(noisy(np.full(400, 1.5)), 0.5)
    history.architecture["0"] = Layer("0", "ReLU", 0, activation="relu")
    history.architecture["1"] = Layer("1", "Dropout", 1)
    for step in range(400):
        history.record(Snapshot(step, layers={"activation_zeros": {"0": 0.5, "1": 1 - 0.5 * (1 - zeros)}}))
    assert bool(look(history)) == told


@pytest.mark.parametrize(("layers", "zeros", "told"), [(1, 0.7, False), (2, 0.7, True), (3, 0.5, False)])
def test_dropout_in_several_layers(layers: int, zeros: float, told: bool) -> None:
    history = _classes(noisy(np.full(400, 1.5)), 0.5)
    for i in range(layers):
        history.architecture[f"a{i}"] = Layer(f"a{i}", "ReLU", 2 * i, activation="relu")
        history.architecture[f"d{i}"] = Layer(f"d{i}", "Dropout", 2 * i + 1)
    row = {f"a{i}": 0.5 for i in range(layers)} | {f"d{i}": 1 - 0.5 * (1 - zeros) for i in range(layers)}
    for step in range(400):
        history.record(Snapshot(step, layers={"activation_zeros": row}))
    assert bool(look(history)) == told


def test_without_a_known_loss_the_accuracy_tells() -> None:
    for level, accuracy, told in ((2.25, 0.14, True), (2.25, 0.6, False), (5.0, 0.14, False)):  # 5: no cross-entropy
        history = _classes(noisy(np.full(400, level)), accuracy)
        history.facts["loss"] = "own"
        assert bool(look(history)) == told
