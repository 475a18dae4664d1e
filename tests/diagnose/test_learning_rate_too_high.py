"""TM601 and its look-alikes."""

from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.learning_rate_too_high import LearningRateTooHigh
from trainmedic.history import History, Layer

NAN = float("nan")


def look(losses: Any, *updates: Any, stds: float | None = None, **facts: Any) -> list[Finding]:
    values: dict[str, Any] = {f"{i}.weight__update_ratio": list(column) for i, column in enumerate(updates)}
    if stds is not None:
        values |= {f"{i}.weight__weight_std": [stds] * len(updates[0]) for i in range(len(updates))}
    layers = [Layer(f"{i}.weight", "parameter", i, (64, 64)) for i in range(len(updates))]
    history = History.of(train_loss=list(losses), layers=layers, facts=facts, **values)
    return list(LearningRateTooHigh().check(history))


ADAM = [1.0 / (step + 0.3) for step in range(200)]  # each step as large as the rate, beside weights that it has made


def test_weights_replaced_by_the_first_steps() -> None:
    [finding] = look([2.3, 30, 20, *[2.3] * 20, *[1.8] * 177], ADAM, ADAM, stds=0.3)
    assert (finding.step, finding.severity) == (0, Severity.WARNING)
    assert 30 <= finding.detected_at <= 45
    assert finding.message.startswith("from step 0 on, 10 steps moved most weight matrices by 0.1 to 3.3 times")


def test_nothing_learnt_after_fast_steps_is_an_error() -> None:
    [finding] = look([2.3, 30, 20, *[2.31] * 197], [0.15] * 30 + [0.0] * 170)
    assert finding.severity == Severity.ERROR


def test_not_finite_at_once() -> None:
    [finding] = look([100.0, 1e5, *[NAN] * 18], [0.3, 5.0, 1e4, *[NAN] * 17])
    assert finding.detected_at <= 9
    assert "not finite" in finding.message


def test_weights_drawn_near_zero_grow_fast_without_harm() -> None:
    assert look([2.3] * 60 + [2.0] * 140, ADAM, stds=0.002) == []


def test_small_weights_that_were_replaced_and_learn_nothing() -> None:
    """As in nets of sines, whose weights are drawn small since their inputs are multiplied."""
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10}
    assert look([2.3] * 200, ADAM, stds=0.002, **facts)
    assert look([2.3] * 50 + [2.0] * 150, ADAM, stds=0.002, **facts) == []


def test_adapters_that_start_at_zero() -> None:
    assert look([1.0] * 200, [0.003] * 200, ADAM) == []


@pytest.mark.parametrize("facts", [{"optimizers": 2}, {"models": 2}, {"optimizer": "LBFGS"}])
def test_what_one_loss_does_not_tell(facts: dict[str, Any]) -> None:
    assert look([2.3] * 200, [0.5] * 200, **facts) == []


def test_a_catapult_settles() -> None:
    losses = [2.3, 20.0, 9.0, *np.linspace(2.3, 2.0, 15), *np.geomspace(2, 0.2, 180)]
    assert look(losses, [0.4, 0.9, 0.6, *[0.02] * 195]) == []


def test_one_bad_batch_in_a_calm_run_is_another_illness() -> None:
    assert look([2.3] * 20 + [0.4] * 80 + [NAN] * 20, [0.003] * 100 + [50.0] * 5 + [NAN] * 15) == []


def test_decay_that_pulls_weights_to_nothing_makes_steps_look_large() -> None:
    layers = [Layer("a.weight", "parameter", 0, (8, 8))]
    values: dict[str, Any] = {
        "a.weight__update_ratio": [0.12] * 100,
        "a.weight__weight_norm": np.geomspace(5, 1e-5, 100),
    }
    history = History.of(train_loss=[2.3] * 100, layers=layers, **values)
    assert list(LearningRateTooHigh().check(history)) == []


def test_one_step_that_replaces_half_of_the_weights_is_told_until_the_task_is_done() -> None:
    first = [0.9] + [0.01] * 199
    [finding] = look(np.geomspace(2.3, 0.6, 200), first, first, stds=0.1)
    assert finding.severity == Severity.WARNING
    assert look(np.geomspace(2.3, 0.1, 200), first, first, stds=0.1) == []
    assert look(np.geomspace(2.3, 0.6, 200), [0.3, *first[1:]], [0.3, *first[1:]], stds=0.1) == []


def test_a_step_that_cannot_overflow_has_not_made_the_nan() -> None:
    """log(0): the loss was fine, one step was large, and the next loss is not finite."""
    torn = [0.2, 3.0, *[NAN] * 18]
    assert look([2.7, 2.1, *[NAN] * 18], torn, torn) == []
    assert look([2.7, 9e9, *[NAN] * 18], [2.0, 1e5, *[NAN] * 18], torn) != []  # it climbed
    wide = [[0.2, 1e6, *[NAN] * 18]] * 4
    assert look([2.7, 2.1, *[NAN] * 18], *wide) != []  # four matrices, a million times as large


def test_what_follows_a_nan_did_not_make_it() -> None:
    after = [0.01] * 33 + [3.0] * 67
    assert look([*np.linspace(2.3, 0.6, 33), *[NAN] * 67], after, after) == []
