"""TM306 and its look-alikes."""

from typing import Any

import torch
from torch import nn

from tests.diagnose.trainings import adam, blobs, told, train
from trainmedic.diagnose.rules.batchnorm_misuse import BatchnormMisuse

RULE = BatchnormMisuse()


def normed(momentum: float = 0.1) -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 4))


def test_evaluation_mode_left_on() -> None:
    x, y = blobs()
    once: list[Any] = []

    def start(model: nn.Module) -> None:
        if not once:
            once.append(model.train())

    [finding] = told(RULE, train(normed(), (x, y), validation=(x, y), before_epoch=start))
    assert finding.step in (8, 9)  # the first step in evaluation mode, or the one after it
    assert "trained in training mode before" in finding.message


def test_evaluation_mode_from_the_start() -> None:
    [finding] = told(RULE, train(normed(), blobs(), before_epoch=lambda model: model.eval()))
    assert "though fresh" in finding.message


def test_two_samples_a_batch() -> None:
    [finding] = told(RULE, train(normed(), blobs(64), batch=2, epochs=2))
    assert finding.evidence[0].value == 2


def test_running_statistics_that_stay_behind() -> None:
    x, y = blobs()
    x = 60 * x + 300  # much of it common to all samples
    [finding] = told(RULE, train(normed(1e-5), (x, y), validation=(x, y)))
    assert "running mean" in finding.message


def test_ordinary_use_is_healthy() -> None:
    x, y = blobs()
    assert told(RULE, train(normed(), (x, y), validation=(x, y))) == []
    assert told(RULE, train(normed(), blobs(), batch=8)) == []


def test_norms_of_a_trained_model_kept_as_they_are_are_healthy() -> None:
    model = normed()
    train(model, blobs(), optimizer=adam(model, 1e-2))

    def start(model: nn.Module) -> None:
        model.train()
        model[1].eval()  # type: ignore[index]

    assert told(RULE, train(model, blobs(), before_epoch=start)) == []


def test_norms_frozen_on_the_way_are_healthy() -> None:
    epochs: list[int] = []

    def start(model: nn.Module) -> None:
        epochs.append(1)
        model.train()
        if len(epochs) > 4:
            model[1].eval()  # type: ignore[index]

    torch.manual_seed(0)
    assert told(RULE, train(normed(), blobs(), before_epoch=start)) == []
