"""TM406 and its look-alikes."""

import math
from typing import Any

import numpy as np
import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.not_learning import NotLearning
from trainmedic.history import History, Layer, Snapshot

TEN: dict[str, Any] = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "batch_size": 64}


def look(history: History) -> list[Finding]:
    rule = NotLearning()
    return list(rule.check(history)) if rule.unmet(history) is None else []


def run(losses: Any, *, total: int | None = None, shares: list[float] | None = None, **series: Any) -> History:
    """Ten classes, asked for as often as ``shares`` says."""
    history = History.of(train_loss=losses, facts=TEN | ({"total_steps": total} if total else {}), **series)
    for step in range(0, len(losses), 10) if shares else ():
        history.record(Snapshot(step, layers={"label_share": {str(i): share for i, share in enumerate(shares or [])}}))
    return history


def flat(count: int, level: float = math.log(10), seed: int = 0) -> np.ndarray:
    return level + 0.02 * np.random.default_rng(seed).standard_normal(count)


def test_told_at_half_time() -> None:
    [finding] = look(run(flat(400), total=400))
    assert 199 <= finding.detected_at <= 225
    assert (finding.step, finding.severity) == (0, Severity.ERROR)


def test_a_run_of_unknown_length_is_warned_after_five_hundred() -> None:
    assert look(run(flat(450))) == []
    assert [finding.severity for finding in look(run(flat(700)))] == [Severity.WARNING]


@pytest.mark.parametrize("seed", range(20))
def test_slow_starters_have_until_half_time(seed: int) -> None:
    losses = np.concatenate([flat(180, seed=seed), np.linspace(2.3, 1.5, 220)])
    for end in range(50, 400, 50):
        assert look(run(losses[:end], total=400)) == []


def test_a_loss_that_falls_by_a_hundredth_learns() -> None:
    assert look(run(flat(400) - np.linspace(0, 0.05, 400), total=400)) == []


def test_chance_is_the_entropy_of_the_labels() -> None:
    """One class in ten samples: a loss of 0.33 is what the commonest class gives."""
    shares = [0.9, 0.1] + [0.0] * 8
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert len(look(run(flat(400, entropy), total=400, shares=shares))) == 1
    assert look(run(flat(400, 1.0), total=400, shares=[0.1] * 10)) == []


def test_an_accuracy_above_chance_shows_learning() -> None:
    history = run(flat(400), total=400, shares=[0.1] * 10)
    history.add_series("output/accuracy", range(400), [0.1] * 400)
    assert len(look(history)) == 1
    history.add_series("output/accuracy", range(400), [0.14] * 400)
    assert look(history) == []


def test_learnt_by_heart_is_not_learnt() -> None:
    losses = flat(400) - np.linspace(0, 0.1, 400)
    history = run(losses, total=400, shares=[0.1] * 10)
    history.add_series("validation/loss", range(0, 400, 50), np.linspace(2.31, 2.36, 8))
    assert len(look(history)) == 1
    history.add_series("validation/loss", range(0, 400, 50), np.linspace(2.31, 2.2, 8))
    assert look(history) == []


def test_tiny_updates_are_slow_convergence() -> None:
    history = run(flat(400), total=400, fc__update_ratio=[1e-5] * 400, layers=[Layer("fc", "parameter", 0, (4, 4))])
    assert look(history) == []


@pytest.mark.parametrize("facts", [{}, {"loss": "HuberLoss"}, {"loss": "MSELoss", "reduction": "sum"}])
def test_an_unknown_chance_is_not_judged(facts: dict[str, Any]) -> None:
    history = History.of(train_loss=flat(700), facts=facts, target_std=[1.0] * 700)
    assert look(history) == []


def test_regression_is_a_warning_and_a_weak_signal_is_silent() -> None:
    facts = {"loss": "MSELoss", "reduction": "mean", "total_steps": 700}
    history = History.of(train_loss=1 + flat(700, 0.0), target_std=[1.0] * 700, facts=facts)
    assert [finding.severity for finding in look(history)] == [Severity.WARNING]
    assert look(History.of(train_loss=flat(700, 0.9), target_std=[1.0] * 700, facts=facts)) == []


def test_a_loss_of_ones_own_is_judged_by_its_errors() -> None:
    facts = {"loss": "own", "classes": 10, "batch_size": 64, "total_steps": 400}
    history = History.of(train_loss=flat(400), output_accuracy=0.1 + flat(400, 0.0), facts=facts)
    for step in range(400):
        history.record(Snapshot(step, layers={"label_share": {str(i): 0.1 for i in range(10)}}))
    assert [finding.code for finding in look(history)] == ["TM406"]
    history.add_series("train/loss", range(400), np.linspace(4.0, 2.0, 400))  # contrastive: outputs are no scores
    assert look(history) == []


def test_a_loss_of_ones_own_that_stands_at_the_variance() -> None:
    facts = {"loss": "own", "reduction": "mean", "total_steps": 400}
    history = History.of(train_loss=2.25 + flat(400, 0.0), target_std=[1.5] * 400, facts=facts)
    assert [finding.severity for finding in look(history)] == [Severity.WARNING]
    assert look(History.of(train_loss=1.5 + flat(400, 0.0), target_std=[1.5] * 400, facts=facts)) == []
