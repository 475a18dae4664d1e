"""TM202 and its look-alikes."""

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.exploding_gradient import ExplodingGradient
from trainmedic.history import History

NAN = float("nan")


def look(history: History) -> list[Finding]:
    return list(ExplodingGradient().check(history))


def test_four_steps_are_enough_where_they_end_in_nan() -> None:
    [finding] = look(History.of(gradient_norm=[471, 8811, 157520, NAN], train_loss=[162, 5e3, 9e5, NAN]))
    assert (finding.step, finding.detected_at) == (1, 3)
    assert finding.message == "the gradient norm rose from 471 to 1.58e+05, then was not finite"


def test_a_run_that_loses_what_it_learnt() -> None:
    norms = [1.0] * 100 + list(np.geomspace(10, 1e6, 20))
    losses = list(np.geomspace(2.3, 0.5, 100)) + list(np.geomspace(1, 1e4, 20))
    [finding] = look(History.of(gradient_norm=norms, train_loss=losses))
    assert 100 <= finding.step <= finding.detected_at <= 110
    assert finding.severity == Severity.ERROR


def test_layers_are_named_where_they_were_measured() -> None:
    [finding] = look(
        History.of(
            gradient_norm=[1.0, 1.0, 1e6, NAN],
            train_loss=[1.0, 1.0, 1e6, NAN],
            fc1__gradient_norm=[0.5, 0.5, 1e5, NAN],
            fc2__gradient_norm=[0.5, 0.5, 1e6, NAN],
        )
    )
    assert finding.where == ("fc2", "fc1")


def test_an_explosion_that_the_run_overcame_is_a_warning() -> None:
    norms = [1.0] * 20 + [1e3, 1e4, 1e4, 1e3] + [1.0] * 100
    losses = [2.3] * 20 + [1e2, 1e3, 1e3, 1e2] + list(np.geomspace(2.2, 0.3, 100))
    [finding] = look(History.of(gradient_norm=norms, train_loss=losses))
    assert finding.severity == Severity.WARNING
    assert finding.message.endswith("; the run has come back since")


def test_what_passed_through_nan_or_fell_back_to_chance_has_not_come_back() -> None:
    norms = [471, 8811, 157520, 1e6, 1e7, 1e8] + [1.0] * 100
    losses = [162, 5e3, 9e5, 1e6, 1e7, 1e8] + [2.31] * 100
    chance = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10}
    spoilt = [*losses[:6], NAN, *losses[7:]]
    assert [f.severity for f in look(History.of(gradient_norm=norms, train_loss=spoilt))] == [Severity.ERROR]
    low = [2.4, *losses[1:]]
    assert [f.severity for f in look(History.of(gradient_norm=norms, train_loss=low, facts=chance))] == [Severity.ERROR]


@pytest.mark.parametrize("spike", [10.0, 50.0, 1e3, 1e6])
@pytest.mark.parametrize("every", [5, 20])
def test_spikes_that_return_are_healthy(spike: float, every: int) -> None:
    norms = [spike if step % every == every - 1 else 1.0 for step in range(200)]
    losses = [30.0 if step % every == every - 1 else 1.0 for step in range(200)]
    assert look(History.of(gradient_norm=norms, train_loss=losses)) == []


def test_large_but_steady_is_healthy() -> None:
    noise = np.exp(0.5 * np.random.default_rng(0).standard_normal(300))
    assert look(History.of(gradient_norm=3e6 * noise, train_loss=1e8 * noise)) == []


def test_growth_while_the_loss_falls_is_healthy() -> None:
    norms, losses = np.geomspace(1e-3, 1e2, 500), np.geomspace(2.3, 1e-3, 500)
    assert look(History.of(gradient_norm=norms, train_loss=losses)) == []


def test_warm_up_from_tiny_gradients_is_healthy() -> None:
    """A head that starts at zero has next to no gradient below it; the loss falls from the first step on."""
    norms = np.concatenate([np.geomspace(1e-6, 1.0, 30), np.ones(200)])
    losses = np.concatenate([np.linspace(2.3, 2.2, 30), np.geomspace(2.2, 0.1, 200)])
    assert look(History.of(gradient_norm=norms, train_loss=losses)) == []


def test_converged_and_restless_is_healthy() -> None:
    """The end of a run at a loss of nothing: jumps by many times, far below where the run began."""
    random = np.random.default_rng(0)
    losses = np.concatenate([np.geomspace(2.3, 1e-7, 100), 1e-7 * np.exp(3 * random.standard_normal(300))])
    assert look(History.of(gradient_norm=np.sqrt(losses), train_loss=losses)) == []


def test_accumulated_gradients_are_healthy() -> None:
    norms = np.tile([1.0, 2.0, 3.0, 4.0], 50)
    assert look(History.of(gradient_norm=norms, train_loss=np.geomspace(2.3, 0.5, 200))) == []


def test_a_loss_below_zero_is_judged_by_its_size() -> None:
    """A likelihood: it falls below zero, and stays a healthy run."""
    assert look(History.of(gradient_norm=[1.0] * 200, train_loss=np.linspace(50, -400, 200))) == []


def test_a_nan_out_of_a_calm_run_is_not_an_explosion() -> None:
    assert look(History.of(gradient_norm=[1.0] * 50 + [NAN], train_loss=[1.0] * 50 + [NAN])) == []


def test_norm_and_loss_are_compared_at_the_same_steps() -> None:
    history = History()
    history.add_series("gradient/norm", range(0, 100, 10), [1.0] * 7 + [1e4, 1e5, 1e6])
    history.add_series("train/loss", range(100), [1.0] * 70 + [1e4] * 30)
    assert [finding.step for finding in look(history)] == [70]
