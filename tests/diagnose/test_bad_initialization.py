"""TM303 and its look-alikes, by hand and on real nets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainmedic
from trainmedic.diagnose import Finding, Severity
from trainmedic.diagnose.rules.bad_initialization import BadInitialization
from trainmedic.history import History, Layer

CLASSES = {"classes": 10, "loss": "CrossEntropyLoss", "reduction": "mean"}


def of_nets(draw: Callable[[Tensor], Any], depth: int = 6, activation: Any = nn.ReLU, steps: int = 3) -> list[Finding]:
    """A perceptron with weights drawn anew, trained for a few steps on noise with ten labels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(32, 32), activation()]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                draw(parameter)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    with trainmedic.watch(model, optimizer, loss_fn=criterion, settings={}, on_finding=lambda _: None) as medic:
        for _ in range(steps):
            x = torch.randn(32, 32)
            loss = criterion(model(x), x[:, :10].argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            medic.log(loss)
        return list(BadInitialization().check(medic.report().history))


@pytest.mark.parametrize(
    "draw",
    [
        lambda w: nn.init.normal_(w, std=0.01),
        lambda w: nn.init.normal_(w, std=1.0),
        lambda w: nn.init.constant_(w, 0.1),
    ],
    ids=["faint", "wild", "constant"],
)
def test_out_of_law(draw: Callable[[Tensor], Any]) -> None:
    [finding] = of_nets(draw)
    assert finding.step == finding.detected_at == 0
    assert len(finding.where) > 1


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU])
@pytest.mark.parametrize(
    "draw",
    [
        lambda w: w,
        nn.init.xavier_normal_,
        nn.init.kaiming_normal_,
        nn.init.orthogonal_,
        lambda w: nn.init.orthogonal_(w, 5 / 3),
        lambda w: nn.init.xavier_uniform_(w, 5 / 3),
    ],
    ids=["own", "xavier", "he", "orthogonal", "gain", "xavier-gain"],
)
def test_every_usual_law_is_healthy(draw: Callable[[Tensor], Any], activation: Any) -> None:
    assert of_nets(draw, 8, activation, 3) == []


def stack(std: float, **statistics: float) -> dict[str, Any]:
    return {
        f"fc{i}.weight__{name}": [value] * 60
        for i in range(4)
        for name, value in {"weight_std": std, **statistics}.items()
    }


def look(losses: list[float], **values: Any) -> list[Finding]:
    layers = [Layer(f"fc{i}.weight", "parameter", i, (64, 64)) for i in range(4)]
    return list(BadInitialization().check(History.of(train_loss=losses, layers=layers, facts=CLASSES, **values)))


def test_large_weights_alone_are_no_illness() -> None:
    """A norm behind each layer takes their scale out."""
    assert look([2.4] * 60, **stack(1.0)) == []
    assert look([20.0] * 10 + [2.0] * 50, **stack(1.0))[0].severity == Severity.WARNING
    assert look([20.0] * 60, **stack(1.0))[0].severity == Severity.ERROR


def test_what_a_first_step_has_torn_is_not_the_initialisation() -> None:
    assert look([3.0] * 60, **stack(1.0, update_ratio=3.0)) == []


def test_zero_on_purpose_moves() -> None:
    """A last layer at zero, and adapters whose one half is: what they stand beside is not."""
    values = stack(0.1) | {"fc3.weight__weight_std": [0.0] * 60, "fc2.weight__weight_std": [0.0] * 60}
    values |= {f"fc{i}.weight__weight_norm": [0.0] + [0.1] * 59 for i in (2, 3)}
    values |= {f"fc{i}.weight__equal_units": [1.0] + [0.0] * 59 for i in (2, 3)}
    assert look([2.3] * 60, **values) == []


def test_all_at_zero_for_ever() -> None:
    [finding] = look([2.3] * 60, **stack(0.0, weight_norm=0.0, equal_units=1.0))
    assert "exactly zero" in finding.message


def test_small_kernels_and_embeddings_may_be_alike() -> None:
    layers = [Layer("words", "Embedding", 0, (8,)), Layer("words.weight", "parameter", 0, (100, 8))]
    layers += [Layer(f"scale{i}", "parameter", i, (8, 1, 1)) for i in range(4)]
    values: dict[str, Any] = {
        f"{layer.name}__{name}": [1.0] * 20 for layer in layers[1:] for name in ("equal_units", "weight_norm")
    }
    assert list(BadInitialization().check(History.of(layers=layers, train_loss=[2.3] * 20, **values))) == []


@pytest.mark.parametrize(("first", "told"), [(40.0, True), (2.5, False)])
def test_a_regression_whose_outputs_start_far_off(first: float, told: bool) -> None:
    """Beside targets of variance 1, whose mean square is 1: a loss of 2.5 may be a batch of unusual targets."""
    values = {f"fc{i}.weight__weight_std": [0.4] * 60 for i in range(4)}
    layers = [Layer(f"fc{i}.weight", "parameter", i, (64, 64)) for i in range(4)]
    facts = {"loss": "MSELoss", "reduction": "mean", "batch_size": 32}
    losses = [first, *[0.9] * 59]
    history = History.of(train_loss=losses, layers=layers, facts=facts, target_std=[1.0] * 60, target_mean=[0.0] * 60,
                         **values)  # fmt: skip
    assert bool(list(BadInitialization().check(history))) is told


def test_hidden_layers_at_zero_that_come_alive_one_by_one() -> None:
    values: dict[str, Any] = {f"fc{i}.weight__weight_norm": [0.0] * (i < 2) + [0.1] * (60 - (i < 2)) for i in range(4)}
    layers = [Layer(f"fc{i}.weight", "parameter", i, (8, 8)) for i in range(4)]

    def found(losses: list[float]) -> list[Finding]:
        history = History.of(train_loss=losses, layers=layers, facts=CLASSES, **values)
        return list(BadInitialization().check(history))

    [finding] = found([2.3] * 52 + [2.0] * 8)
    assert finding.severity is Severity.WARNING
    assert finding.where == ("fc0.weight", "fc1.weight")
    assert found([2.3 * 0.98**i for i in range(60)]) == []


def test_factors_at_zero() -> None:
    layers = [Layer("u", "Embedding", 0), Layer("v", "Embedding", 1)]
    layers += [Layer(f"{name}.weight", "parameter", i, (30, 4)) for i, name in enumerate("uv")]
    values: dict[str, Any] = {f"{name}.weight__weight_norm": [0.0] * 60 for name in "uv"}
    history = History.of(train_loss=[1.0] * 60, layers=layers, **values)
    assert len(list(BadInitialization().check(history))) == 1
