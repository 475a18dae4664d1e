"""TM407 and its look-alikes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.diagnose.trainings import blobs, curve, net, told, train
from trainmedic.diagnose.rules.loss_mismatch import LossMismatch
from trainmedic.history import History, Layer

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


def unseen(steps: int = 200, kind: str = "Linear", **columns: Any) -> History:
    """A run whose loss is a function of its own: what is known of it are outputs and targets."""
    rows = {name: np.broadcast_to(np.asarray(values, dtype=float), steps) for name, values in columns.items()}
    facts = {"loss": "<lambda>", "total_steps": steps, "batch_size": 32}
    return History.of(train_loss=rows.pop("losses"), layers=[Layer("last", kind, 0)], facts=facts, **rows)


def regression(low: float, high: float, **more: Any) -> dict[str, Any]:
    """Targets of mean 0 and standard deviation 1, and what came out for them."""
    target = {"target_min": -2.2, "target_max": 2.4, "target_std": 1.0, "target_mean": 0.0, "target_same_shape": 1.0}
    return {"output_min": low, "output_max": high, "output_mean": 0.4, "output_std": 0.4, **target, **more}


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("Sigmoid", 0.001, 0.99), ("ReLU", 0.0, 2.0), ("Softplus", 0.002, 2.0), ("LSTM", -0.99, 0.995)],
)
def test_the_module_that_runs_last_bounds_the_outputs_of_an_unseen_loss(kind: str, low: float, high: float) -> None:
    [finding] = told(RULE, unseen(kind=kind, losses=0.8, **regression(low, high)))
    assert "outputs lie between" in finding.message


@pytest.mark.parametrize(
    ("kind", "losses", "low", "high"),
    [
        ("Sigmoid", 0.05, 0.001, 0.99),  # scaled in the loss: nearer to the targets than these outputs can be
        ("Sigmoid", 0.8, -2.0, 2.0),  # of another branch
        ("Tanh", 0.05, -0.9, 0.9),
        ("Linear", 0.8, 0.1, 0.9),
    ],
)
def test_bounded_modules_that_bound_nothing(kind: str, losses: float, low: float, high: float) -> None:
    assert not told(RULE, unseen(kind=kind, losses=losses, **regression(low, high)))


def test_one_answer_for_rows_compared_with_every_target() -> None:
    rows = {"output_batch_std": 0.04, "output_mean": 0.1, "output_std": 0.04, "target_same_shape": 0.0}
    noise = np.random.default_rng(0).normal(0, 0.02, 200)
    [finding] = told(RULE, unseen(losses=0.4 + noise, **regression(0.0, 0.2, **rows)))
    assert "each output with every target" in finding.message
    learns = rows | {"output_batch_std": np.linspace(0.04, 0.9, 200)}
    assert not told(RULE, unseen(losses=np.linspace(0.4, 0.05, 200) + noise, **regression(-2, 2, **learns)))
    same = rows | {"target_same_shape": 1.0}
    assert not told(RULE, unseen(losses=0.4 + noise, **regression(0.0, 0.2, **same)))


def test_a_divergence_of_probabilities_without_their_logarithm() -> None:
    class Soft(nn.Module):
        def __init__(self, last: nn.Module) -> None:
            super().__init__()
            self.body, self.last = net(16, 4), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x))  # type: ignore[no-any-return]

    x, y = blobs()
    soft = nn.functional.one_hot(y, 4) * 0.9 + 0.025
    loss = nn.KLDivLoss(reduction="batchmean")
    assert "log-probabilities" in told(RULE, train(Soft(nn.Softmax(1)), (x, soft), loss))[0].message
    assert not told(RULE, train(Soft(nn.LogSoftmax(1)), (x, soft), loss))
