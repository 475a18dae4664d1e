"""TM304 and its look-alikes."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.diagnose.trainings import adam, blobs, curve, net, told, train
from trainmedic.diagnose import Severity
from trainmedic.diagnose.rules.unnormalized_input import UnnormalizedInput
from trainmedic.history import History

RULE = UnnormalizedInput()


def test_one_feature_in_other_units() -> None:
    x, y = curve()
    x = x * torch.tensor([1.0] * 7 + [1e4])
    [finding] = told(RULE, train(net(8, 1), (x, y), nn.MSELoss(), epochs=20))
    assert finding.severity == Severity.ERROR
    assert finding.where == ("input/feature_scale_max",)


def test_raw_targets_at_a_usual_rate() -> None:
    x, y = curve()
    [finding] = told(RULE, train(net(8, 1), (x, 150 + 75 * y), nn.MSELoss(), optimizer=None, epochs=20))
    assert finding.where == ("target/std",)


def test_raw_targets_at_a_rate_that_fits_are_healthy() -> None:
    x, y = curve()
    model = net(8, 1)
    assert told(RULE, train(model, (x, 150 + 75 * y), nn.MSELoss(), optimizer=adam(model, 0.1), epochs=20)) == []


def test_a_norm_makes_scale_harmless() -> None:
    x, y = curve()
    model = nn.Sequential(nn.BatchNorm1d(8), *net(8, 1))
    assert told(RULE, train(model, (x * 1e4, y), nn.MSELoss())) == []


def test_pixels_that_are_learnt_all_the_same_are_healthy() -> None:
    x, y = blobs()
    assert told(RULE, train(net(16, 4), ((x + 4) * 32, y))) == []


@pytest.mark.parametrize("kind", ["Linear", "BatchNorm1d"])
def test_scale_alone_is_not_told_before_it_costs(kind: str) -> None:
    history = UnnormalizedInput.sick[0]
    assert told(RULE, history)
    early = History.of(train_loss=[1e6] * 20, input_feature_scale=[1.0] * 20, input_feature_scale_max=[1e4] * 20)
    early.facts.update(history.facts)
    assert told(RULE, early) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_start_on_ordinary_inputs_is_not_told(seed: int) -> None:
    random = np.random.default_rng(seed)
    history = History.of(
        train_loss=1 + 0.1 * random.standard_normal(300),
        input_feature_scale=[1.0] * 300,
        input_feature_scale_max=np.exp(random.normal(1.0, 0.3, 300)),
        target_mean=[0.0] * 300,
        target_std=[1.0] * 300,
        facts={"loss": "MSELoss", "reduction": "mean"},
    )
    assert told(RULE, history) == []


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_places_in_pixels_saturate_what_they_go_through(scale: float) -> None:
    x, y = curve(features=2)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    findings = told(RULE, train(model, (x * scale, y), nn.MSELoss()))
    assert [finding.detected_at < 5 for finding in findings] == ([True] if scale > 1 else [])
