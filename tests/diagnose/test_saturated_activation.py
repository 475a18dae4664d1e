"""TM302 and its look-alikes, by hand and on real nets."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trainmedic
from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.saturated_activation import SaturatedActivation
from trainmedic.history import History, Layer


def look(
    losses: Any,
    outputs: Any,
    units: Any = None,
    std: float = 0.1,
    kind: str = "sigmoid",
    last: bool = False,
    **facts: Any,
) -> list[Finding]:
    layers = [
        Layer("fc1", "Linear", 0, (64,)),
        Layer("fc1.weight", "parameter", 0, (64, 64)),
        Layer("act", "Sigmoid", 1, (64,), activation=kind),
    ]
    if not last:
        layers += [Layer("fc2", "Linear", 2, (10,)), Layer("fc2.weight", "parameter", 2, (10, 64))]
    values: dict[str, Any] = {"act__saturated_outputs": list(outputs), "fc1.weight__weight_std": [std]}
    values["act__saturated_units"] = list(outputs if units is None else units)
    return list(SaturatedActivation().check(History.of(train_loss=list(losses), layers=layers, facts=facts, **values)))


def test_large_weights_before_it() -> None:
    [finding] = look(np.geomspace(5, 1, 60), [0.7] * 60, std=1.0)
    assert (finding.step, finding.detected_at, finding.severity) == (0, 9, Severity.WARNING)
    assert finding.where == ("act",)


def test_flat_from_the_start_and_slow() -> None:
    [finding] = look([2.3] * 60, [0.7] * 60)
    assert finding.severity == Severity.ERROR
    assert finding.detected_at == 49


def test_flat_from_the_start_and_it_works() -> None:
    assert look(np.geomspace(2.3, 0.2, 60), [0.7] * 60) == []


def test_stuck_later_and_nothing_learnt() -> None:
    [finding] = look([2.3] * 80, [0.0] * 30 + [0.8] * 50)
    assert (finding.step, finding.detected_at) == (30, 49)


@pytest.mark.parametrize("kind", ["relu", "gelu", "log_softmax"])
def test_activations_without_a_flat_part(kind: str) -> None:
    assert look([2.3] * 80, [1.0] * 80, kind=kind) == []


def test_the_last_activation_may_be_sure() -> None:
    assert look([2.3] * 80, [1.0] * 80, std=1.0, last=True) == []


def test_gates_that_close_while_the_task_is_learnt() -> None:
    assert look(np.geomspace(2.3, 0.1, 80), np.linspace(0, 1, 80)) == []


def test_adversaries_are_not_judged_by_their_loss() -> None:
    assert look([0.7] * 80, [0.6] * 80, models=2, optimizers=2) == []


def trained(std: float | None, steps: int = 15) -> list[Finding]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    if std is not None:
        for module in model:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
    optimizer, criterion = torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss()
    with trainmedic.watch(model, optimizer, loss_fn=criterion, settings={}, on_finding=lambda _: None) as medic:
        for _ in range(steps):
            x = torch.randn(32, 16)
            loss = criterion(model(x), x[:, :4].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            medic.log(loss)
        return list(SaturatedActivation().check(medic.report().history))


def test_real_nets() -> None:
    assert trained(None) == []
    [finding] = trained(1.0)
    assert set(finding.where) == {"1", "3"}
