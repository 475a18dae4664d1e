"""What goes into a model, what comes out, and what it is held against."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
from trainmedic.history import History


def one_step(model: nn.Module, loss_fn, x: Tensor, y: Tensor, *, batches: bool = False, given=None) -> History:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with trainmedic.watch(model, optimizer, settings={"every": 1}, loss_fn=given) as medic:
        for inputs, targets in medic.batches([(x, y)]) if batches else [(x, y)]:
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            medic.log(loss)
    return medic.report().history


def last(history: History, name: str) -> float:
    return float(history.series(name).values[-1])


@pytest.mark.parametrize("seen", ["criterion", "batch"])
def test_classes(seen: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    x, y = torch.randn(100, 6), torch.randint(0, 3, (100,))  # class 3 never occurs
    loss_fn = nn.CrossEntropyLoss() if seen == "criterion" else F.cross_entropy
    history = one_step(model, loss_fn, x, y, batches=seen == "batch")
    logits = model(x).detach()
    assert last(history, "output/accuracy") == pytest.approx(float((logits.argmax(1) == y).float().mean()))
    assert last(history, "output/row_sum") == pytest.approx(float(logits.sum(1).mean()), abs=1e-5)
    assert last(history, "output/max") == pytest.approx(float(logits.max()), abs=1e-6)
    labels = dict(history.layers("label_share").latest())
    assert labels == pytest.approx({str(i): float((y == i).float().mean()) for i in range(4)}, abs=1e-6)
    predicted = dict(history.layers("predicted_share").latest())
    assert predicted == pytest.approx({str(i): float((logits.argmax(1) == i).float().mean()) for i in range(4)})
    assert history.facts["classes"] == 4
    assert history.facts["batch_size"] == 100
    assert history.facts["loss"] == "CrossEntropyLoss"


def test_probabilities_and_log_probabilities_are_told_from_logits() -> None:
    torch.manual_seed(0)
    x, y = 5 * torch.randn(50, 6), torch.randint(0, 4, (50,))
    errors = {}
    for name, head in (("logits", nn.Identity()), ("softmax", nn.Softmax(1)), ("log", nn.LogSoftmax(1))):
        history = one_step(nn.Sequential(nn.Linear(6, 4), head), nn.CrossEntropyLoss(), x, y)
        errors[name] = last(history, "output/row_sum_error"), last(history, "output/log_sum_exp")
        assert ("SoftmaxBackward0" in history.facts["loss_graph"]) is (name == "softmax")
    assert errors["softmax"][0] == pytest.approx(0, abs=1e-5)
    assert errors["log"][1] == pytest.approx(0, abs=1e-5)
    assert min(errors["logits"]) > 0.1


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (F.cross_entropy, "CrossEntropyLoss"),
        (lambda o, t: F.nll_loss(o, t), "NLLLoss"),
        (lambda o, t: F.nll_loss(o.log_softmax(1), t), "CrossEntropyLoss"),
        (lambda o, t: F.mse_loss(o, F.one_hot(t, 4).float()), "MSELoss"),
        (lambda o, t: F.binary_cross_entropy_with_logits(o, F.one_hot(t, 4).float()), "BCEWithLogitsLoss"),
        (lambda o, t: F.binary_cross_entropy(o.sigmoid(), F.one_hot(t, 4).float()), "BCELoss"),
        (lambda o, t: F.smooth_l1_loss(o, F.one_hot(t, 4).float()), "SmoothL1Loss"),
        (lambda o, t: F.huber_loss(o, F.one_hot(t, 4).float()), "HuberLoss"),
    ],
)
def test_the_loss_function_is_known_by_the_graph_of_the_logged_loss(loss_fn, expected: str) -> None:
    torch.manual_seed(0)
    history = one_step(nn.Linear(6, 4), loss_fn, torch.randn(8, 6), torch.randint(0, 4, (8,)))
    assert history.facts["loss"] == expected


def test_language_models_in_both_layouts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50))
    tokens, target = torch.randint(0, 50, (8, 20)), torch.randint(0, 50, (8, 20))
    expected = float((model(tokens).argmax(-1) == target).float().mean())
    flat = one_step(model, lambda o, t: nn.CrossEntropyLoss()(o.flatten(0, 1), t.flatten()), tokens, target)
    turned = one_step(model, lambda o, t: nn.CrossEntropyLoss()(o.transpose(1, 2), t), tokens, target)
    plain = one_step(model, lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), tokens, target, batches=True)
    for history in (flat, turned, plain):
        assert last(history, "output/accuracy") == pytest.approx(expected, abs=0.03)
        assert history.facts["classes"] == 50
        assert "input/std" not in history, "tokens are no numbers"


def test_ignored_labels_are_no_class() -> None:
    torch.manual_seed(0)
    target = torch.tensor([0, 1, -100, -100])
    history = one_step(nn.Linear(3, 2), nn.CrossEntropyLoss(), torch.randn(4, 3), target)
    assert dict(history.layers("label_share").latest()) == {"0": 0.5, "1": 0.5}


def test_regression_targets() -> None:
    torch.manual_seed(0)
    y = 1_000 + 50 * torch.randn(64, 1)
    history = one_step(nn.Linear(3, 1), nn.MSELoss(), torch.randn(64, 3), y)
    assert last(history, "target/mean") == pytest.approx(float(y.mean()))
    assert last(history, "target/std") == pytest.approx(float(y.std(correction=0)), rel=1e-4)
    assert last(history, "target/same_shape") == 1
    assert last(history, "target/binary") == 0
    with pytest.warns(UserWarning, match="target size"):
        history = one_step(nn.Linear(3, 1), nn.MSELoss(), torch.randn(64, 3), y.squeeze(1))
    assert last(history, "target/same_shape") == 0


def test_input_scale_by_feature() -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 5) * torch.tensor([1.0, 1.0, 1.0, 1e6, 0.0])
    history = one_step(nn.Linear(5, 2), nn.CrossEntropyLoss(), x, torch.randint(0, 2, (128,)))
    assert last(history, "input/feature_scale") == pytest.approx(1, rel=0.3)
    assert last(history, "input/feature_scale_max") == pytest.approx(1e6, rel=0.3)
    assert last(history, "input/constant_features") == pytest.approx(0.2)
    assert last(history, "input/max") == float(x.max())


def test_the_input_is_what_the_first_layer_with_weights_takes() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.conv(image / 255).mean((2, 3)))

    x = torch.randint(0, 256, (32, 3, 8, 8)).float()
    history = one_step(Scaled(), nn.CrossEntropyLoss(), x, torch.randint(0, 2, (32,)))
    assert last(history, "input/max") <= 1
    assert last(history, "input/mean") == pytest.approx(0.5, abs=0.05)
    assert history.facts["input_layer"] == "conv"


def test_large_outputs_are_looked_at_in_part() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 30_000)
    history = one_step(model, nn.CrossEntropyLoss(), torch.randn(100, 4), torch.randint(0, 30_000, (100,)))
    assert math.isfinite(last(history, "output/log_sum_exp"))
    assert "label_share" not in history


def test_a_criterion_in_evaluation_is_not_training() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    criterion = nn.CrossEntropyLoss()
    with trainmedic.watch(model, optimizer, settings={"every": 1}) as medic:
        criterion(model(torch.randn(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
        model.eval()
        criterion(model(torch.randn(8, 4)), torch.ones(8, dtype=torch.long))
        model.train()
        optimizer.step()
    assert dict(medic.report().history.layers("label_share").latest()) == {"0": 1.0, "1": 0.0}
