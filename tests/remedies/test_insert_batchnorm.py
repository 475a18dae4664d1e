"""Batch norms in a live model: in the right places, in place, and ordinary ever after."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.remedies.patients import Patient, different, finding, patient, perceptron, photograph
from trainmedic.remedies.change import Change
from trainmedic.remedies.insert_batchnorm import InsertBatchnorm
from trainmedic.remedies.remedy import Refused


class Convs(nn.Module):
    """Convolutions of one number of dimensions, transposed ones, functions, and a norm that is there already."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        conv: Any = getattr(nn, f"Conv{dimensions}d")
        self.conv1 = conv(1, 4, 3, padding=1)
        self.act1 = nn.ReLU(inplace=True)
        self.up = getattr(nn, f"ConvTranspose{dimensions}d")(4, 5, 3, padding=1)
        self.conv2 = conv(5, 6, 3, padding=1)
        self.norm2 = getattr(nn, f"BatchNorm{dimensions}d")(6)
        self.fc = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(self.act1(self.conv1(x))))
        x = F.relu(self.norm2(self.conv2(x))).flatten(2).mean(2)
        return self.head(F.relu(self.fc(x)))


class Sequence(nn.Module):
    """Linear layers on (N, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.two(torch.sigmoid(self.one(x))))).mean(1)


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.again = self.one
        self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.again(F.relu(self.one(x)))))))


class Recurrent(nn.Module):
    """Nothing to norm but the output."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Attention(nn.Module):
    """A transformer: normalised already, and its layers are called past their modules in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def propose(sick: Patient) -> Change:
    change = InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)
    assert change is not None
    return change


def treat(sick: Patient) -> Callable[[], None]:
    return InsertBatchnorm().apply(propose(sick), sick.run)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "1d": (lambda: Convs(1), (1, 9), {"conv1": "BatchNorm1d", "up": "BatchNorm1d", "fc": "BatchNorm1d"}),
    "2d": (lambda: Convs(2), (1, 6, 6), {"conv1": "BatchNorm2d", "up": "BatchNorm2d", "fc": "BatchNorm1d"}),
    "3d": (lambda: Convs(3), (1, 4, 4, 4), {"conv1": "BatchNorm3d", "up": "BatchNorm3d", "fc": "BatchNorm1d"}),
    "sequence": (Sequence, (5, 6), {"one": "BatchNorm1d", "two": "BatchNorm1d"}),
    "perceptron": (perceptron, (6,), {"0": "BatchNorm1d", "2": "BatchNorm1d"}),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam fused"])
def test_norms_stand_before_activations_and_everything_stays_live(kind: str, optimizer: str) -> None:
    build, shape, expected = MODELS[kind]
    sick = patient(optimizer, build, shape=shape)
    keys, before = list(sick.model.state_dict()), photograph(sick)
    change = propose(sick)
    assert {name: how["norm"] for name, how in change.after.items()} == expected
    undo = InsertBatchnorm().apply(change, sick.run)
    new = [key for key in sick.model.state_dict() if key not in keys]
    assert [key for key in sick.model.state_dict() if key in keys] == keys
    assert {key.split(".medic_norm.")[0] for key in new} == set(expected)
    norms = [p for name, p in sick.model.named_parameters() if "medic_norm" in name]
    start = [p.detach().clone() for p in norms]
    for _ in range(3):
        sick.step()
    assert not any(map(torch.equal, norms, start)), "the norms do not train"
    sick.model.eval()
    assert bool(torch.isfinite(sick.model(torch.randn(4, *shape))).all())
    sick.model.train()
    undo()
    assert [key for key, *_ in before["ids"]] == [name for name, _ in sick.model.named_parameters()]
    sick.step()


def test_the_output_is_that_of_a_model_built_with_the_norms() -> None:
    sick = patient("SGD")
    treat(sick)
    layers = list(sick.model)
    plain = nn.Sequential(
        *(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Linear(8, 3),
    )
    for mine, theirs in zip((0, 2, 4), (0, 3, 6), strict=True):
        plain[theirs].weight, plain[theirs].bias = layers[mine].weight, layers[mine].bias
    x = torch.randn(32, 6)
    assert torch.equal(sick.model(x), plain(x))
    assert isinstance(layers[0], nn.Linear)


def test_the_average_follows_and_goes_on_averaging() -> None:
    sick = patient("SGD")
    undo = treat(sick)
    shapes = [parameter.shape for parameter in sick.model.parameters()]
    assert [parameter.shape for parameter in sick.average.module.parameters()] == shapes
    for _ in range(4):
        sick.step()
    x = torch.randn(8, 6)
    sick.model.eval(), sick.average.eval()
    assert float((sick.average(x) - sick.model(x)).abs().max()) < 0.5
    sick.model.train()
    undo()
    sick.step()
    assert len(list(sick.average.module.parameters())) == 6


def test_a_state_saved_before_still_loads_and_evaluates_as_it_did() -> None:
    sick = patient("SGD")
    x = torch.randn(8, 6)
    sick.model.eval()
    saved, output = copy.deepcopy(sick.model.state_dict()), sick.model(x)
    sick.model.train()
    treat(sick)
    for _ in range(3):
        sick.step()
    sick.model.load_state_dict(saved)
    sick.model.eval()
    assert torch.allclose(sick.model(x), output, atol=1e-6)
    assert "0.medic_norm.weight" not in saved


def test_a_last_batch_of_one_sample_does_not_stop_the_run() -> None:
    sick = patient("SGD", lambda: Convs(2), shape=(1, 6, 6))
    treat(sick)
    fc = sick.model.fc
    assert fc(torch.randn(1, 6)).shape == (1, 8)
    assert fc(torch.randn(6)).shape == (8,)
    assert sick.model.conv1(torch.randn(1, 6, 6)).shape == (4, 6, 6)


def test_norms_take_device_type_and_mode_of_their_layer() -> None:
    sick = patient("SGD")
    sick.model.to(torch.float64).eval()
    treat(sick)
    assert sick.model[0].medic_norm.weight.dtype == torch.float64
    assert not sick.model[0].medic_norm.training


def test_new_parameters_join_the_group_of_their_layer_with_their_names() -> None:
    def groups(model: nn.Module) -> torch.optim.Optimizer:
        named = list(model.named_parameters())
        return torch.optim.AdamW([{"params": named[:2], "lr": 0.1}, {"params": named[2:], "lr": 0.01}])

    sick = patient("SGD", schedule=lambda o: None)
    sick.optimizer = groups(sick.model)
    sick.run.optimizers = [sick.optimizer]
    schedule = torch.optim.lr_scheduler.OneCycleLR(sick.optimizer, [0.1, 0.01], 50)
    sick.scheduler = schedule
    treat(sick)
    first, second = sick.optimizer.param_groups
    assert first["param_names"] == ["0.weight", "0.bias", "0.medic_norm.weight", "0.medic_norm.bias"]
    assert second["param_names"][-2:] == ["2.medic_norm.weight", "2.medic_norm.bias"]
    assert first["params"][2] is sick.model[0].medic_norm.weight
    for _ in range(3):
        sick.step()
    again = groups_like(sick)
    again.load_state_dict(sick.optimizer.state_dict())


def groups_like(sick: Patient) -> torch.optim.Optimizer:
    """A new optimizer over the treated model, with the parameters in the same order."""
    groups = [{"params": list(zip(g["param_names"], g["params"], strict=True))} for g in sick.optimizer.param_groups]
    return torch.optim.AdamW(groups)


def test_a_second_time_there_is_nothing_left_to_norm() -> None:
    sick = patient("SGD")
    treat(sick)
    with pytest.raises(Refused, match="0 layer"):
        propose(sick)


def wrapped(name: str) -> Callable[[], nn.Module]:
    """A model whose class bears the name of a wrapper."""

    def build() -> nn.Module:
        kind = type(name, (nn.Module,), {"forward": lambda self, x: self.module(x)})
        model: Any = kind()
        model.module = perceptron()
        return model

    return build


def compiled() -> nn.Module:
    model = perceptron()
    model.compile(backend="eager")
    return model


def patched() -> nn.Module:
    model = perceptron()
    model[0].forward = model[0].forward
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "compiled": (compiled, (6,), "compiled"),
    "compiled wrapper": (wrapped("OptimizedModule"), (6,), "compiled"),
    "ddp": (wrapped("DistributedDataParallel"), (6,), "wrapped in DistributedDataParallel"),
    "fsdp": (wrapped("FullyShardedDataParallel"), (6,), "wrapped in FullyShardedDataParallel"),
    "fsdp2": (wrapped("FSDPSequential"), (6,), "wrapped in FSDPSequential"),
    "shared": (Shared, (6,), "stands in several places"),
    "recurrent": (Recurrent, (5, 6), "recurrent"),
    "attention": (Attention, (5, 6), "0 layer"),
    "too few": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,), "1 layer"),
    "patched": (patched, (6,), "replaced on the instance"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_safely_is_refused_with_the_reason(case: str) -> None:
    build, shape, reason = REFUSED[case]
    sick = patient("SGD", build, shape=shape)
    before = photograph(sick)
    with pytest.raises(Refused, match=reason):
        InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)
    assert not different(before, photograph(sick))


def test_scripted_models_are_refused() -> None:
    sick = patient("SGD")
    sick.run.models = [torch.jit.script(perceptron())]
    with pytest.raises(Refused, match=r"torch\.jit"):
        InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)


@pytest.mark.parametrize("optimizer", ["LBFGS", "Muon", "SparseAdam"])
def test_optimizers_that_nothing_can_join_are_refused_by_name(optimizer: str) -> None:
    with pytest.raises(Refused, match=f"cannot join {optimizer}"):
        InsertBatchnorm().propose(finding("vanishing-gradient"), patient(optimizer).run)


def test_optimizers_of_other_libraries_are_refused() -> None:
    class Adam(torch.optim.Adam):
        pass

    sick = patient("SGD")
    sick.run.optimizers = [Adam(sick.model.parameters())]
    with pytest.raises(Refused, match="cannot join Adam"):
        InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)


def test_a_layer_that_no_optimizer_holds_is_refused() -> None:
    sick = patient("SGD")
    sick.run.optimizers = [torch.optim.SGD(itertools.islice(sick.model.parameters(), 2))]
    with pytest.raises(Refused, match="no watched optimizer holds"):
        InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)


def test_a_copy_that_the_user_keeps_is_a_reason_to_refuse() -> None:
    sick = patient("SGD")
    change = propose(sick)
    kept = copy.deepcopy(sick.model)
    with pytest.raises(Refused, match="copy of the model is alive"):
        propose(sick)
    with pytest.raises(Refused, match="copy of the model is alive"):
        InsertBatchnorm().apply(change, sick.run)
    torch.optim.SGD(kept.parameters())  # gone at once: what trains it must be alive as well
    own = torch.optim.SGD(kept.parameters())
    assert propose(sick) == change, "another run's model is none of ours"
    del own


def test_an_average_made_after_it_loses_the_norms_with_the_model() -> None:
    sick = patient("SGD")
    undo = treat(sick)
    sick.average = torch.optim.swa_utils.AveragedModel(sick.model)
    undo()
    sick.step()
    assert list(sick.average.module.state_dict()) == list(sick.model.state_dict())


def test_tiny_batches_are_refused() -> None:
    sick = patient("SGD")
    sick.run.history.facts["batch_size"] = 2
    with pytest.raises(Refused, match="2 samples"):
        InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)


def test_the_code_makes_the_same_model() -> None:
    sick = patient("SGD", lambda: Convs(2), shape=(1, 6, 6))
    change = propose(sick)
    model = Convs(2)
    exec(change.code, {"model": model, "nn": nn})
    assert model(torch.randn(4, 1, 6, 6)).shape == (4, 3)
    assert isinstance(model.conv1[1], nn.BatchNorm2d)


class After(nn.Module):
    """Norms after activations, but not after each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Flatten()),
        )
        self.head = nn.Linear(54, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def test_norms_come_after_activations_where_the_model_has_them_there() -> None:
    sick = patient("SGD", After, shape=(1, 6, 6))
    change = propose(sick)
    assert {name: (how["norm"], how["units"]) for name, how in change.after.items()} == {
        "body.6": ("BatchNorm2d", 5),
        "head": ("BatchNorm1d", 54),
    }
    keys = list(sick.model.state_dict())
    undo = InsertBatchnorm().apply(change, sick.run)
    x = torch.randn(16, 1, 6, 6)
    layer = sick.model.body[6]
    before = sick.model.body[:6](x)
    normed = F.batch_norm(before, None, None, layer.medic_norm.weight, layer.medic_norm.bias, True)
    assert torch.allclose(layer(before), F.conv2d(normed, layer.weight, layer.bias, padding=1), atol=1e-5)
    sick.step()
    assert [key for key in sick.model.state_dict() if key in keys] == keys
    model = After()
    exec(change.code, {"model": model, "nn": nn})
    assert model(x).shape == (16, 3)
    undo()
    assert list(sick.model.state_dict()) == keys


class Again(nn.Module):
    """One layer that runs three times in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.relu(self.two(x))
        return self.head(F.relu(self.one(x)))


def test_a_layer_that_runs_several_times_is_refused() -> None:
    sick = patient("SGD", Again)
    assert sick.probe.observed["called_repeatedly"] == ["two"]
    sick.run.history.facts.update(sick.probe.observed)
    with pytest.raises(Refused, match="two runs several times in one forward pass"):
        propose(sick)
    accumulating = patient("SGD")
    assert "called_repeatedly" not in accumulating.probe.observed
