"""TM305 and its look-alikes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diagnose.trainings import adam, blobs, curve, net, told, train
from trainmedic.diagnose.rules.collapsed_output import CollapsedOutput
from trainmedic.history import History

RULE = CollapsedOutput()


def test_softmax_over_one_output() -> None:
    x, y = blobs(classes=2)
    [finding] = told(RULE, train(net(16, 1, nn.Softmax(dim=1)), (x, y[:, None].float()), nn.BCELoss()))
    assert finding.step == 0
    assert finding.detected_at <= 12


def test_a_rectifier_that_died() -> None:
    x, y = curve()
    assert told(RULE, train(net(8, 1, nn.ReLU()), (x, y - 5), nn.MSELoss(), optimizer=None))


def test_ordinary_and_zero_at_the_start_are_healthy() -> None:
    model = net(16, 4)
    assert told(RULE, train(model, blobs())) == []
    model = net(16, 4)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    assert told(RULE, train(model, blobs(), optimizer=adam(model))) == []


def test_a_constant_that_is_right_is_healthy() -> None:
    x, _ = curve()
    model = net(8, 1)
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    assert told(RULE, train(model, (x, torch.zeros(len(x), 1)), nn.MSELoss())) == []


def test_back_again_is_healthy() -> None:
    history = History.of(
        train_loss=[1.0] * 60, output_batch_std=[0.0] * 30 + [0.1] * 30, output_min=[1.0] * 60, output_max=[1.0] * 60
    )
    assert list(RULE.check(history)) == []


class _Variational(nn.Module):
    """A variational autoencoder of 16 features with a code of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = net(16, 6), net(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        self.mean, self.log_variance = self.encode(x).chunk(2, 1)
        noise = (0.5 * self.log_variance).exp() * torch.randn_like(self.mean)
        return self.decode(self.mean + noise)  # type: ignore[no-any-return]


@pytest.mark.parametrize("weight", [0.1, 30.0])
def test_a_code_that_holds_nothing(weight: float) -> None:
    x, _ = blobs()

    def step(model: Any, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        error = (model(x) - y).square().sum(1).mean()
        divergence = 0.5 * (model.mean.square() + model.log_variance.exp() - 1 - model.log_variance).sum(1).mean()
        loss: Tensor = error + weight * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    findings = told(RULE, train(_Variational(), (x, x), nn.MSELoss(), step=step))
    assert [finding.where for finding in findings] == ([("encode.2",)] if weight > 1 else [])
