"""TM604 and its look-alikes."""

from typing import Any

import numpy as np

from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.excessive_weight_decay import ExcessiveWeightDecay
from trainmedic.history import History, Layer

SHRINKING = np.geomspace(5, 0.01, 200)


def look(losses: Any, norms: Any, optimizer: str, gradient: float = 0.3, **options: float) -> list[Finding]:
    values: dict[str, Any] = {"a.weight__weight_norm": list(norms), "a.weight__gradient_norm": [gradient] * len(norms)}
    layers = [Layer("a.weight", "parameter", 0, (8, 8))]
    facts = {"optimizer": optimizer, "optimizer_options": options}
    return list(ExcessiveWeightDecay().check(History.of(train_loss=list(losses), layers=layers, facts=facts, **values)))


def test_coupled_decay_that_outweighs_the_gradient() -> None:
    [finding] = look([2.3] * 200, SHRINKING, "SGD", weight_decay=0.1, lr=0.05)
    assert finding.severity == Severity.ERROR
    assert finding.detected_at <= 30
    assert "weight decay of 0.1" in finding.message


def test_decoupled_decay_is_weighed_by_the_rate() -> None:
    assert look([2.3] * 200, SHRINKING, "AdamW", weight_decay=30.0, lr=5e-3)
    assert look([2.3] * 200, SHRINKING, "AdamW", weight_decay=0.1, lr=1e-3) == []


def test_no_decay_no_finding() -> None:
    assert look([2.3] * 200, SHRINKING, "SGD", lr=0.05) == []
    assert look([2.3] * 200, SHRINKING, "SGD", weight_decay=0.0, lr=0.05) == []


def test_a_net_without_gradients_is_another_illness() -> None:
    assert look([2.3] * 200, SHRINKING, "Adam", gradient=0.0, weight_decay=1e-4, lr=1e-3) == []


def test_a_net_that_learns_may_shrink() -> None:
    assert look(np.geomspace(2.3, 0.2, 200), np.geomspace(5, 1, 200), "SGD", weight_decay=0.1, lr=0.05) == []


def test_some_was_learnt_is_a_warning() -> None:
    losses = [2.3] * 20 + [2.0] * 180
    [finding] = look(losses, SHRINKING, "SGD", weight_decay=0.1, lr=0.05)
    assert finding.severity == Severity.WARNING


def test_strong_decay_is_told_until_the_task_is_done() -> None:
    norms = np.geomspace(5, 1, 200)
    [finding] = look(np.geomspace(1.0, 0.4, 200), norms, "Adam", weight_decay=0.3, lr=1e-3)
    assert finding.severity == Severity.WARNING
    assert look(np.geomspace(1.0, 0.05, 200), norms, "Adam", weight_decay=0.3, lr=1e-3) == []
    assert look(np.geomspace(1.0, 0.4, 200), norms, "Adam", gradient=2.4, weight_decay=0.3, lr=1e-3) == []
