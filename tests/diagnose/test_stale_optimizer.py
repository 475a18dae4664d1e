"""TM605 and its look-alikes."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.diagnose.trainings import adam, blobs, net, told, train
from trainmedic.diagnose import Severity
from trainmedic.diagnose.rules.stale_optimizer import StaleOptimizer
from trainmedic.history import History, Snapshot

RULE = StaleOptimizer()


def test_a_layer_replaced_after_the_optimizer_was_made() -> None:
    model = net(16, 4)
    optimizer = adam(model)
    model[0] = nn.Linear(16, 32)
    [finding] = told(RULE, train(model, blobs(), optimizer=optimizer))
    assert finding.where == ("0.weight", "0.bias")
    assert finding.detected_at <= 30
    assert finding.severity == Severity.WARNING  # the last layer learns these blobs from random features


def test_a_head_replaced_for_a_new_task() -> None:
    model = net(16, 10, width=64)
    optimizer = adam(model)
    model[2] = nn.Linear(64, 4)
    assert told(RULE, train(model, blobs(), optimizer=optimizer))


def test_only_the_head_of_a_trained_model_is_healthy() -> None:
    torch.manual_seed(0)
    model = net(16, 4)
    train(model, blobs(), epochs=20, optimizer=adam(model, 1e-2))
    model[2] = nn.Linear(32, 2)
    x, y = blobs()
    history = train(model, (x, y % 2), optimizer=adam(model[2]))
    assert history.facts["not_in_optimizer"] == ["0.weight", "0.bias"]
    assert told(RULE, history) == []


def test_frozen_layers_are_healthy() -> None:
    model = net(16, 4)
    model[0].requires_grad_(False)
    assert told(RULE, train(model, blobs(), optimizer=adam(model[2]))) == []


def test_an_optimizer_that_nobody_told_us_of_is_healthy() -> None:
    model = net(16, 4)
    other = torch.optim.SGD(model[0].parameters(), lr=0.1)

    def step(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        other.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        other.step()
        optimizer.step()
        return loss

    assert told(RULE, train(model, blobs(), optimizer=adam(model[2]), step=step)) == []


def test_a_trained_layer_that_was_copied_into_the_model_is_told() -> None:
    torch.manual_seed(0)
    model = net(16, 4)
    optimizer = adam(model)
    train(model, blobs(), optimizer=optimizer)
    model[0] = copy.deepcopy(model[0])  # as loading or converting a part of a model does
    [finding] = told(RULE, train(model, blobs(), optimizer=optimizer))
    assert finding.where == ("0.weight", "0.bias")


@pytest.mark.parametrize(("held", "stale"), [((64, 64), True), ((10, 64), False)])
def test_parameters_of_the_same_shape_that_are_not_the_models_prove_it(held: tuple[int, int], stale: bool) -> None:
    sick = StaleOptimizer.sick[0]
    history = History.of(
        layers=sick.architecture.values(),
        facts={"not_in_optimizer": ["reader.weight"], "not_in_model": [list(held)]},
    )
    for statistic, name, value in (("gradient_norm", "reader.weight", 0.1), ("weight_std", "reader.weight", 0.3)):
        for step in range(30):
            history.record(Snapshot(step, layers={statistic: {name: value}}))
    assert bool(told(RULE, history)) == stale


def test_without_knowing_the_optimizer_it_is_not_judged() -> None:
    assert "optimizer" in str(RULE.unmet(History.of(a__gradient_norm=[1.0])))
