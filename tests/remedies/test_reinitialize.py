"""Drawing anew: the right law, the right units, and nothing else."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.remedies.patients import Patient, different, finding, patient, perceptron, photograph
from trainmedic.history import History
from trainmedic.remedies._rehearsal import Example, Form, Rehearsal
from trainmedic.remedies.change import Change
from trainmedic.remedies.insert_batchnorm import InsertBatchnorm
from trainmedic.remedies.lower_learning_rate import LowerLearningRate
from trainmedic.remedies.reinitialize import Reinitialize


def treat(sick: Patient, name: str, *where: str) -> Change:
    change = Reinitialize().propose(finding(name, *where), sick.run)
    assert change is not None
    Reinitialize().apply(change, sick.run)
    return change


def wide() -> nn.Module:
    """Two hidden layers wide enough to measure variances on."""
    return nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 3))


class Recurrent(nn.Module):
    """A recurrent layer with gates."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Convolutional(nn.Module):
    """Rectifiers called as functions, a norm before one of them; unit 1 of the first is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 5, 3)
        self.head = nn.Linear(5, 3)
        self.norm.bias.data[1] = -100.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return self.head(F.relu(self.up(x)).mean((2, 3)))


def test_weights_before_rectifiers_follow_he_and_others_xavier() -> None:
    sick = patient("SGD", wide)
    treat(sick, "vanishing-gradient")
    first, second, _ = (layer.weight for layer in sick.model if isinstance(layer, nn.Linear))
    assert first.std().item() == pytest.approx(math.sqrt(2 / 6), rel=0.1)
    assert second.std().item() == pytest.approx(math.sqrt(2 / 600), rel=0.1)
    assert all(float(layer.bias.abs().max()) == 0 for layer in sick.model if isinstance(layer, nn.Linear))


def test_the_draw_is_new_repeatable_and_leaves_the_users_numbers_alone() -> None:
    drawn = []
    for _ in range(2):
        sick = patient("SGD")
        before = sick.model[0].weight.detach().clone()
        random = torch.get_rng_state()
        treat(sick, "exploding-gradient")
        assert torch.equal(torch.get_rng_state(), random)
        assert not torch.equal(sick.model[0].weight, before)
        drawn.append(sick.model[0].weight.detach().clone())
    assert torch.equal(*drawn)
    torch.manual_seed(sick.run.step)
    sick.run.step += 1
    treat(sick, "exploding-gradient")
    assert not torch.equal(sick.model[0].weight, drawn[0])


def test_gates_of_recurrent_layers_are_orthogonal() -> None:
    sick = patient("Adam", Recurrent, shape=(5, 6))
    treat(sick, "vanishing-gradient")
    for gate in sick.model.lstm.weight_hh_l0.chunk(4):
        assert torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5)
    assert float(sick.model.lstm.bias_hh_l0.abs().max()) == 0
    assert not sick.optimizer.state.get(sick.model.lstm.weight_hh_l0)


def test_only_dead_units_are_drawn_and_the_output_stays() -> None:
    sick = patient("Adam")
    first, second = sick.model[0], sick.model[2]
    x = torch.randn(64, 6)
    output, weight, bias = sick.model(x), first.weight.detach().clone(), first.bias.detach().clone()
    average = sick.optimizer.state[first.weight]["exp_avg_sq"].clone()
    change = treat(sick, "dead-relu", "1")
    assert change.after["0"]["units"] == [0, 1]
    assert torch.equal(first.weight[2:], weight[2:])
    assert torch.equal(first.bias[2:], bias[2:])
    assert not torch.equal(first.weight[:2], weight[:2])
    assert float(first.bias[:2].abs().max()) == 0
    assert float(second.weight[:, :2].abs().max()) == 0
    assert torch.allclose(sick.model(x), output, atol=1e-6)
    state = sick.optimizer.state[first.weight]["exp_avg_sq"]
    assert float(state[:2].abs().max()) == 0
    assert torch.equal(state[2:], average[2:])
    assert bool((F.relu(first(x)) > 0).any(0)[:2].all()), "the new units answer to some inputs"


def test_most_units_dead_the_whole_layer_is_drawn() -> None:
    def dead() -> nn.Module:
        model = perceptron()
        model[0].bias.data[:5] = -100.0
        return model

    sick = patient("Adam", dead)
    outgoing = sick.model[2].weight.detach().clone()
    change = treat(sick, "dead-relu", "1")
    assert "units" not in change.after["0"]
    assert torch.equal(sick.model[2].weight, outgoing)
    assert not sick.optimizer.state.get(sick.model[0].weight)


def test_a_norm_between_layer_and_dead_rectifier_is_reset_for_its_dead_units() -> None:
    sick = patient("Adam", Convolutional, shape=(1, 8, 8))
    change = treat(sick, "dead-relu", "norm:relu")
    assert change.after == {"conv": {"draw": "he", "units": [1], "next": "up", "norms": ["norm"]}}
    assert float(sick.model.norm.bias[1]) == 0
    assert float(sick.model.norm.weight[1]) == 1
    assert float(sick.model.up.weight[1].abs().max()) == 0  # its inputs lie along the first dimension


def test_dead_units_behind_a_norm_that_was_inserted_are_found() -> None:
    sick = patient("SGD")
    inserted = InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)
    assert inserted is not None
    InsertBatchnorm().apply(inserted, sick.run)
    sick.run.dead_units = lambda name: torch.arange(8) < 3
    change = treat(sick, "dead-relu", "1")
    assert change.after == {"0": {"draw": "he", "units": [0, 1, 2], "next": "2", "norms": ["0.medic_norm"]}}


def test_nothing_is_proposed_where_no_unit_is_dead_or_nothing_trains() -> None:
    sick = patient()
    assert Reinitialize().propose(finding("dead-relu", "unknown"), sick.run) is None
    sick.run.dead_units = lambda name: torch.zeros(8, dtype=torch.bool)
    assert Reinitialize().propose(finding("dead-relu", "1"), sick.run) is None
    sick.model.requires_grad_(False)
    assert Reinitialize().propose(finding("vanishing-gradient"), sick.run) is None


@pytest.mark.parametrize("optimizer", ["Rprop", "ASGD"])
def test_what_zero_would_cripple_starts_where_the_optimizer_would(optimizer: str) -> None:
    sick = patient(optimizer)
    treat(sick, "dead-relu", "1")
    state = sick.optimizer.state[sick.model[0].weight]
    if optimizer == "Rprop":
        assert bool((state["step_size"][:2] == sick.optimizer.param_groups[0]["lr"]).all())
    else:
        assert torch.equal(state["ax"][:2], sick.model[0].weight[:2])


@pytest.mark.parametrize("build", [Recurrent, Convolutional], ids=["recurrent", "convolutional"])
@pytest.mark.parametrize("name", ["dead-relu", "vanishing-gradient"])
def test_undo_is_exact_on_other_kinds_of_models(build: Callable[[], nn.Module], name: str) -> None:
    sick = patient("Adam", build, shape=(5, 6) if build is Recurrent else (1, 8, 8))
    before = photograph(sick)
    change = Reinitialize().propose(finding(name, "norm:relu"), sick.run)
    if change is None:
        return
    undo = Reinitialize().apply(change, sick.run)
    undo()
    assert not different(before, photograph(sick))


def test_of_several_models_the_one_that_is_ill_is_drawn() -> None:
    sick = patient("SGD")
    other = perceptron()
    sick.run.models = [other, sick.model]
    sick.run.history.architecture = {
        f"{i}.{name}": layer.__class__(f"{i}.{name}", layer.kind, layer.order, activation=layer.activation)
        for i in range(2)
        for name, layer in sick.run.history.architecture.items()
    }
    change = Reinitialize().propose(finding("vanishing-gradient", "1.0.weight"), sick.run)
    assert change is not None
    assert set(change.target) == {"1.0", "1.2", "1.4"}
    assert "models[1][0].weight" in change.code


def test_hidden_layers_are_scaled_by_what_they_put_out_for_a_kept_batch() -> None:
    sick = patient(
        "SGD", lambda: nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    )
    x, y = torch.randn(64, 6) * 20, torch.randint(0, 3, (64,))
    sick.run.rehearsal = Rehearsal(sick.run, loss_fn=nn.CrossEntropyLoss(), examples=[Example((x, y))], form=Form())
    before = photograph(sick)
    change = Reinitialize().propose(finding("bad-initialization"), sick.run)
    assert change is not None
    measured = Reinitialize().measure(change, sick.run)
    assert measured is not None
    assert not different(before, photograph(sick))
    assert [how["draw"] for how in measured.after.values()] == ["orthonormal", "orthonormal", "xavier"]
    undo = Reinitialize().apply(measured, sick.run)
    for depth in (1, 3):
        assert float(sick.model[:depth](x).detach().std()) == pytest.approx(1.0, abs=0.1)
    rows = sick.model[2].weight.detach()
    assert torch.allclose(rows @ rows.T, torch.eye(32) * float(rows[0].square().sum()), atol=1e-4)
    undo()
    assert not different(before, photograph(sick))


def test_where_weights_began_at_zero_all_are_drawn_at_once() -> None:
    sick = patient()
    sizes = {"0.weight": [0.0, 0.1], "2.weight": [0.0, 0.0], "4.weight": [1.0, 1.0]}
    history = History.of(**{f"{name}__weight_norm": values for name, values in sizes.items()})
    history.architecture = sick.run.history.architecture
    sick.run.history = history
    dead = finding("dead-relu", "1", step=5)
    change = Reinitialize().propose(dead, sick.run)
    assert change is not None
    assert change.target == ("0", "2", "4")
    assert not Reinitialize.waits(dead, sick.run)
    assert LowerLearningRate().propose(dead, sick.run) is None
