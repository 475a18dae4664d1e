"""TM504 and its look-alikes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.diagnose.trainings import adam, blobs, curve, net, told, train
from trainmedic.diagnose.rules.validation_mismatch import ValidationMismatch
from trainmedic.history import History, Layer

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


def _behind(by: float, *, epoch: int = 40, rows: int = 64, **more: Any) -> History:
    """Ten classes; training learns nearly all within 40 steps, and validation, twice an epoch, is behind by that."""
    training = [*np.linspace(2.3, 0.2, 40), *[0.2] * 120]
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 160, "batch_size": rows}
    history = History.of(train_loss=training, facts=facts | {"steps_per_epoch": epoch}, **more)
    at = np.arange(epoch // 2 - 1, 160, epoch // 2)
    history.add_series("validation/loss", at, np.array(training)[at] + by * np.log(10))
    return history


@pytest.mark.parametrize(("by", "told_at"), [(0.45, [59]), (0.2, [])])
def test_what_was_seen_once_is_not_known_by_heart(by: float, told_at: list[int]) -> None:
    assert [finding.detected_at for finding in told(RULE, _behind(by))] == told_at


def test_running_statistics_come_late() -> None:
    norm = [Layer("norm", "BatchNorm1d", 0, (8,))]
    assert told(RULE, _behind(0.45, layers=norm)) == []


def test_a_loss_in_other_units_is_no_proof() -> None:
    history = _behind(0.45)
    history.add_series("train/loss", range(160), history.series("train/loss").values / 4)
    assert told(RULE, history) == []


def test_a_leak_is_learnt_in_a_few_epochs() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = blobs()
    leak, noise = nn.functional.one_hot(y, 4).float(), torch.randn(len(x), 8, generator=generator)
    other = y[torch.randperm(len(y), generator=generator)]
    model = net(12, 4)
    history = train(
        model,
        (torch.cat([leak, noise], 1), y),
        validation=(torch.cat([nn.functional.one_hot(other, 4).float(), noise], 1), y),
        optimizer=adam(model, 2e-2),
    )
    [finding] = told(RULE, history)
    assert finding.detected_at < 0.5 * history.last_step


@pytest.mark.parametrize(("kind", "told_at"), [("Linear", 39), ("BatchNorm1d", 79)])
def test_two_evaluations_suffice_where_none_can_lag(kind: str, told_at: int) -> None:
    training = [*np.linspace(2.3, 0.2, 30), *[0.2] * 70]
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": 100}
    history = History.of(train_loss=training, facts=facts, layers=[Layer("a", kind, 0, (8,))])
    history.add_series("validation/loss", range(19, 100, 20), [2.4, 2.9, 3.5, 4.0, 4.2])
    assert [finding.detected_at for finding in told(RULE, history)] == [told_at]
