"""What the probe measures, compared with plain autograd, and what counts as a step."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
from tests.hooks.networks import KINDS, batch
from trainmedic.history import History


def watched(model: nn.Module, optimizer: torch.optim.Optimizer | list[torch.optim.Optimizer], **options: object):
    return trainmedic.watch(model, optimizer, settings={"every": 1, "dead_after": 16}, **options)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


def row(history: History, statistic: str, at: int = 0) -> dict[str, float]:
    table = history.layers(statistic)
    return {name: float(v) for name, v in zip(table.layers, table.values[at], strict=True) if not math.isnan(v)}


def test_gradients_weights_and_updates_agree_with_plain_autograd() -> None:
    torch.manual_seed(0)
    model = KINDS["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch("mlp")
    with watched(model, optimizer) as medic:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        step(model, optimizer, x, y)
    history = medic.report().history
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert row(history, "gradient_norm")[name] == pytest.approx(float(gradient.norm()), rel=1e-5)
        assert row(history, "gradient_mean_abs")[name] == pytest.approx(float(gradient.abs().mean()), rel=1e-5)
        assert row(history, "gradient_zeros")[name] == pytest.approx(float((gradient == 0).float().mean()), abs=1e-6)
        assert row(history, "weight_norm")[name] == pytest.approx(float(parameter.detach().norm()), rel=1e-5)
        ratio = float((parameter.detach() - before[name]).norm() / before[name].norm())
        assert row(history, "update_ratio")[name] == pytest.approx(ratio, rel=1e-4)
    total = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters()))
    assert history.series("gradient/norm").values[0] == pytest.approx(total, rel=1e-5)
    assert history.series("optimizer/learning_rate").values[0] == 0.1


def test_activations_agree_with_the_forward_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch("mlp")
    expected = model[1](model[0](x)).detach()
    with watched(model, optimizer) as medic:
        step(model, optimizer, x, y)
    history = medic.report().history
    assert row(history, "activation_mean")["1"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert row(history, "activation_std")["1"] == pytest.approx(float(expected.std(correction=0)), rel=1e-5)
    assert row(history, "activation_max")["1"] == pytest.approx(float(expected.abs().max()), rel=1e-6)
    assert [history.architecture[name].order for name in ("0", "1", "2")] == [0, 1, 2]
    assert history.architecture["1"].activation == "tanh"


def test_gradients_are_read_before_clipping_and_without_the_loss_scale() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 4)
    x, y = batch("mlp")
    F.cross_entropy(model(x), y).backward()
    expected = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watched(model, optimizer, scaler=scaler) as medic:
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
    history = medic.report().history
    assert history.series("gradient/norm").values[0] == pytest.approx(expected, rel=1e-4)
    assert history.series("optimizer/loss_scale").values[0] == 1024.0


def test_a_step_that_the_scaler_skips_is_counted() -> None:
    model = nn.Linear(12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    x, y = batch("mlp")
    with watched(model, optimizer, scaler=scaler) as medic:
        for poison in (False, True, False):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (math.inf if poison else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    history = medic.report().history
    assert history.series("optimizer/skipped").values.tolist() == [0, 1, 0]
    assert history.series("gradient/nonfinite").values.tolist()[1] > 0


@pytest.mark.parametrize("where", ["before backward", "before step", "after step"])
@pytest.mark.parametrize("every", [1, 1_000])
def test_a_log_belongs_to_its_step_wherever_it_is_made(where: str, every: int) -> None:
    model = nn.Linear(12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch("mlp")
    with trainmedic.watch(model, optimizer, settings={"every": every}) as medic:
        for i in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if where == "before backward":
                medic.log(i)
            loss.backward()
            if where == "before step":
                medic.log(i)
            optimizer.step()
            if where == "after step":
                medic.log(i)
    steps, values = medic.report().history.series("train/loss")
    assert steps.tolist() == values.tolist() == list(range(60))


def test_several_logs_of_one_step_are_averaged() -> None:
    model = nn.Linear(12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch("mlp")
    with watched(model, optimizer) as medic:
        loss = step(model, optimizer, x, y)
        medic.log(torch.tensor(1.0), accuracy=0.5)
        medic.log(3.0)
    history = medic.report().history
    assert history.series("train/loss").values.tolist() == [2.0]
    assert history.series("train/accuracy").values.tolist() == [0.5]
    assert loss.requires_grad


def test_gradient_accumulation_is_one_step_and_reads_the_sum() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        for _ in range(3):
            for _ in range(4):
                x, y = batch("mlp")
                (F.cross_entropy(model(x), y) / 4).backward()
            total = math.sqrt(sum(float(p.grad.norm()) ** 2 for p in model.parameters()))
            optimizer.step()
            optimizer.zero_grad()
    steps, values = medic.report().history.series("gradient/norm")
    assert steps.tolist() == [0, 1, 2]
    assert values[-1] == pytest.approx(total, rel=1e-5)


def test_evaluation_in_between_is_not_training() -> None:
    model = KINDS["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = batch("mlp")
    with watched(model, optimizer) as medic:
        step(model, optimizer, x, y)
        model.eval()
        with torch.no_grad():
            model(1e6 * x)
        model(1e6 * x)  # somebody who forgot no_grad
        model.train()
        step(model, optimizer, x, y)
    table = medic.report().history.layers("activation_max")
    assert len(table.steps) == 2
    assert table.values.max() < 1e3


def test_two_models_and_two_optimizers() -> None:
    torch.manual_seed(0)
    generator, critic = nn.Linear(3, 12), nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    first, second = torch.optim.Adam(critic.parameters()), torch.optim.Adam(generator.parameters())
    with trainmedic.watch([critic, generator], [first, second], settings={"every": 1}) as medic:
        for _ in range(5):
            fake = generator(torch.randn(8, 3))
            first.zero_grad()
            (critic(fake.detach()).mean() - critic(torch.randn(8, 12)).mean()).backward()
            first.step()
            second.zero_grad()
            (-critic(fake).mean()).backward()
            second.step()
    history = medic.report().history
    assert history.last_step == 4
    assert {"0.0.weight", "1.weight"} <= set(history.layers("gradient_norm").layers)
    assert row(history, "update_ratio", 2)["1.weight"] > 0


def test_an_optimizer_with_a_closure() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x, y = batch("mlp")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with watched(model, optimizer) as medic:
        for _ in range(3):
            optimizer.step(closure)
    history = medic.report().history
    assert history.series("gradient/norm").steps.tolist() == [0, 1, 2]
    assert row(history, "update_ratio")["weight"] > 0


def embedding() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Embedding(50, 8, sparse=True))
    return model, lambda: model(torch.randint(0, 50, (4,))).square().mean()


def tied() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
    model[1].weight = model[0].weight
    return model, lambda: F.cross_entropy(model(torch.randint(0, 50, (4,))), torch.randint(0, 50, (4,)))


def half() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Linear(8, 4).bfloat16()
    return model, lambda: model(torch.randn(4, 8).bfloat16()).square().mean()


def complex_weights() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Linear(8, 4, dtype=torch.complex64)
    return model, lambda: model(torch.randn(4, 8, dtype=torch.complex64)).abs().mean()


def frozen() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].requires_grad_(False)
    return model, lambda: model(torch.randn(4, 8)).square().mean()


def weight_norm() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    return model, lambda: model(torch.randn(4, 8)).square().mean()


def attention() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 3, 8)
    return model, lambda: model(x, x, x)[0].square().mean()


def checkpointed() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def loss() -> Tensor:
        x = torch.randn(4, 8, requires_grad=True)
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().mean()

    return model, loss


def called_twice() -> tuple[nn.Module, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    return model, lambda: model(model(torch.randn(4, 8))).square().mean()


@pytest.mark.parametrize(
    "make",
    [embedding, tied, half, complex_weights, frozen, weight_norm, attention, checkpointed, called_twice],
)
def test_special_models_are_measured(make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]]) -> None:
    torch.manual_seed(0)
    model, loss = make()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with watched(model, optimizer) as medic:
        for _ in range(4):
            optimizer.zero_grad()
            loss().backward()
            total = math.sqrt(sum(float(g.norm()) ** 2 for p in model.parameters() if (g := p.grad) is not None))
            optimizer.step()
    history = medic.report().history
    assert history.series("gradient/norm").values[-1] == pytest.approx(total, rel=1e-2)
    assert len(history.layers("update_ratio").steps) == 4


def test_frozen_parameters_are_said_to_be_frozen() -> None:
    model, loss = frozen()
    with watched(model, torch.optim.SGD(model[2].parameters(), lr=0.1)) as medic:
        loss().backward()
    assert not medic.history.architecture["0.weight"].trainable
    assert medic.history.architecture["2.weight"].trainable


class Functional(nn.Module):
    """Rectifiers without modules, one of which is dead."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.alive, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        nn.init.constant_(self.dead.bias, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.alive(F.relu(self.dead(x)))))


def test_a_rectifier_that_is_a_function_is_watched_too() -> None:
    torch.manual_seed(0)
    model = Functional()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        for _ in range(4):
            step(model, optimizer, *batch("mlp"))
    history = medic.report().history
    assert dict(history.layers("dead_units_lasting").latest())["dead:relu"] == 1.0
    assert dict(history.layers("dead_samples").latest())["dead:relu"] == 32
    assert history.architecture["dead:relu"].activation == "relu"


def test_sparse_is_not_dead() -> None:
    """Other units each time: many zeros, no unit that stays silent."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        for i in range(16):
            step(model, optimizer, torch.eye(8)[[i % 8, (i + 1) % 8]], torch.zeros(2, dtype=torch.int64))
    history = medic.report().history
    assert dict(history.layers("activation_zeros").latest())["1"] == pytest.approx(7 / 8)
    assert dict(history.layers("dead_units_lasting").latest())["1"] == 0.0


def test_inputs_that_are_always_zero_are_not_dead_units() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as medic:
        step(model, optimizer, torch.zeros(2, 8), torch.zeros(2, dtype=torch.int64))
    assert "dead_units_lasting" not in medic.report().history


def test_a_compiled_model_is_measured_without_its_activations() -> None:
    torch.manual_seed(0)
    model = torch.compile(nn.Linear(12, 4), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as medic:
        for _ in range(3):
            step(model, optimizer, *batch("mlp"))
    report = medic.report()
    assert set(report.history.layers("gradient_norm").layers) == {"weight", "bias"}
    assert "activation_mean" not in report.history
    assert any("compiled" in note for note in report.notes)
