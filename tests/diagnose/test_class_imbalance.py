"""TM503 and its look-alikes."""

import torch
from torch import Tensor, nn

from tests.diagnose.trainings import adam, blobs, net, told, train
from trainmedic.diagnose.rules.class_imbalance import ClassImbalance

RULE = ClassImbalance()


def rare(share: float, spread: float) -> tuple[Tensor, Tensor]:
    """Two classes, one of this share; the larger the spread, the harder to tell."""
    random = torch.Generator().manual_seed(0)
    y = (torch.rand(512, generator=random) < share).long()
    return y[:, None] * 1.0 + spread * torch.randn(512, 16, generator=random), y


def slow(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01)


def test_only_the_majority_is_predicted() -> None:
    model = net(16, 2)
    assert told(RULE, train(model, rare(0.05, 4.0), optimizer=slow(model)))


def test_a_single_output_that_never_crosses() -> None:
    x, y = rare(0.05, 4.0)
    model = net(16, 1)
    assert told(RULE, train(model, (x, y[:, None].float()), nn.BCEWithLogitsLoss(), optimizer=slow(model)))


def test_imbalance_that_is_handled_is_healthy() -> None:
    model = net(16, 2)
    assert told(RULE, train(model, rare(0.05, 0.5), optimizer=adam(model, 1e-2))) == []
    model = net(16, 1)
    x, y = rare(0.1, 0.5)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(9.0))
    assert told(RULE, train(model, (x, y[:, None].float()), loss, optimizer=adam(model, 1e-2))) == []


def test_balanced_classes_are_healthy() -> None:
    assert told(RULE, train(net(16, 4), blobs())) == []
