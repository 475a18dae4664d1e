"""TM407 and its look-alikes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.diagnose.trainings import blobs, curve, net, told, train
from trainmedic.diagnose.rules.loss_mismatch import LossMismatch
from trainmedic.history import History

RULE = LossMismatch()


def column(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return data[0], data[1][:, None].float()


def test_softmax_twice_is_told_at_once() -> None:
    [finding] = told(RULE, train(net(16, 4, nn.Softmax(1)), blobs()))
    assert finding.message == "a softmax stands before a cross-entropy, which applies one itself"
    assert finding.detected_at == 9


def test_sigmoid_twice() -> None:
    history = train(net(16, 1, nn.Sigmoid()), column(blobs(classes=2)), nn.BCEWithLogitsLoss())
    assert "sigmoid" in told(RULE, history)[0].message


def test_no_logarithm() -> None:
    [finding] = told(RULE, train(net(16, 4), blobs(), nn.NLLLoss()))
    assert "log-probabilities" in finding.message


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Tanh()], ids=["sigmoid", "tanh"])
def test_a_bounded_output_for_large_targets(last: nn.Module) -> None:
    x, y = curve()
    [finding] = told(RULE, train(net(8, 1, last), (x, 150 + 75 * y), nn.MSELoss()))
    assert "outputs lie between" in finding.message


def test_shapes_that_spread() -> None:
    x, y = curve()
    history = train(net(8, 1), (x, y[:, 0]), nn.MSELoss())
    assert "different shapes" in told(RULE, history)[0].message


def test_a_turned_sign() -> None:
    def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = -nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    assert "cannot be negative" in told(RULE, train(net(16, 4), blobs(), step=step))[0].message


@pytest.mark.parametrize(
    ("outputs", "last", "loss"),
    [
        (4, [], nn.CrossEntropyLoss(label_smoothing=0.1)),
        (4, [nn.LogSoftmax(1)], nn.NLLLoss()),
        (4, [nn.LogSoftmax(1)], nn.CrossEntropyLoss()),  # once more changes nothing
    ],
)
def test_losses_of_classes_that_fit(outputs: int, last: list[nn.Module], loss: nn.Module) -> None:
    assert told(RULE, train(net(16, outputs, *last), blobs(), loss)) == []


def test_losses_of_one_output_that_fit() -> None:
    data = column(blobs(classes=2))
    assert told(RULE, train(net(16, 1), data, nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)))) == []
    assert told(RULE, train(net(16, 1, nn.Sigmoid()), data, nn.BCELoss())) == []
    assert told(RULE, train(net(16, 1, nn.Sigmoid()), data, nn.MSELoss())) == []
    assert told(RULE, train(net(8, 1), curve(), nn.MSELoss())) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_likelihood_that_goes_below_zero_is_healthy(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = 800 * np.exp(-np.arange(300) / 60) - 500 + 20 * random.standard_normal(300)
    assert told(RULE, History.of(train_loss=losses)) == []


def test_maximising_and_adversaries_are_left_alone() -> None:
    graph = ["NegBackward0", "NllLossBackward0", "LogSoftmaxBackward0"]
    for facts in ({"optimizer_options": {"maximize": True}}, {"optimizers": 2}):
        known = {"loss": "CrossEntropyLoss", "loss_graph": graph, **facts}
        assert told(RULE, History.of(train_loss=np.linspace(-1, -50, 100), facts=known)) == []


@pytest.mark.parametrize(
    ("level", "same", "graph", "told"),
    [(4.0, 0.0, [], True), (4.0, 1.0, [], False), (2.0, 0.0, [], False), (4.0, 0.0, ["SubBackward0"], False)],
)
def test_rows_against_every_target_stand_at_their_variance(
    level: float, same: float, graph: list[str], told: bool
) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(200)
    facts = {"loss": "own", "reduction": "mean", "total_steps": 200, "loss_graph": graph}
    history = History.of(train_loss=level + noise, target_std=[2.0] * 200, target_same_shape=[same] * 200, facts=facts)
    assert bool(list(LossMismatch().check(history))) == told
