"""TM504 and its look-alikes."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.diagnose.trainings import adam, blobs, curve, net, told, train
from trainmedic.diagnose.rules.validation_mismatch import ValidationMismatch
from trainmedic.history import History

RULE = ValidationMismatch()


def test_labels_from_another_file() -> None:
    x, y = blobs()
    [finding] = told(RULE, train(net(16, 4), (x, y), validation=(x, y.roll(7))))
    assert finding.where == ("validation/loss",)


def test_validation_that_is_not_normalised() -> None:
    x, y = curve()
    assert told(RULE, train(net(8, 1), (x, y), nn.MSELoss(), validation=(100 * x + 500, y), epochs=20))


def test_a_leak() -> None:
    x, y = curve()
    noise = torch.randn(len(x), 7, generator=torch.Generator().manual_seed(1))
    leaked = torch.cat([y, 0.1 * noise], 1)
    honest = torch.cat([y[torch.randperm(len(y))], 0.1 * noise], 1)
    model = net(8, 1)
    history = train(model, (leaked, y), nn.MSELoss(), validation=(honest, y), optimizer=adam(model, 1e-2), epochs=20)
    assert told(RULE, history)


def test_ordinary_runs_are_healthy() -> None:
    x, y = blobs()
    assert told(RULE, train(net(16, 4), (x, y), validation=blobs())) == []
    x, y = curve()
    assert told(RULE, train(net(8, 1), (x[:200], y[:200]), nn.MSELoss(), validation=(x[200:], y[200:]))) == []


@pytest.mark.parametrize("worst", [1.2, 1.6])
def test_overfitting_is_another_illness(worst: float) -> None:
    history = History.of(
        train_loss=np.geomspace(1.0, 0.01, 200), target_std=[1.0] * 200, facts={"loss": "MSELoss", "reduction": "mean"}
    )
    history.add_series("validation/loss", range(9, 200, 10), [0.9, 0.7, *np.linspace(0.7, worst, 18)])
    assert told(RULE, history) == []


def test_curves_alone_do_not_suffice() -> None:
    history = History.of(train_loss=[1.0] * 20, validation_loss=[9.0] * 20)
    assert "chance" in str(RULE.unmet(history))
