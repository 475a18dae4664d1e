"""Real small trainings on real data: healthy ones are left in peace, sick ones are told. Under two seconds each."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trainmedic
from trainmedic.reports.report import Report

datasets = pytest.importorskip("sklearn.datasets")


def digits(count: int | None = None) -> tuple[Tensor, ...]:
    """8 x 8 images in 0 to 1, as rows of 64, and their labels; the last 400 to validate on."""
    pixels, labels = datasets.load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels / 16, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return x[:-400][:count], y[:-400][:count], x[-400:], y[-400:]


def reconstruction() -> tuple[Tensor, ...]:
    x, _, validation_x, _ = digits()
    return x, x, validation_x, validation_x


def diabetes() -> tuple[Tensor, ...]:
    """Ten standardised inputs; targets of 25 to 346, as they come."""
    inputs, targets = datasets.load_diabetes(return_X_y=True, scaled=False)
    x = torch.tensor((inputs - inputs.mean(0)) / inputs.std(0), dtype=torch.float32)
    y = torch.tensor(targets, dtype=torch.float32)[:, None]
    return x[:-100], y[:-100], x[-100:], y[-100:]


def scaled_diabetes() -> tuple[Tensor, ...]:
    """150 patients, targets standardised."""
    x, y, validation_x, validation_y = diabetes()
    mean, spread = y.mean(), y.std()
    return x[:150], (y[:150] - mean) / spread, validation_x, (validation_y - mean) / spread


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU, norm: Any = None, drop: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), *([norm(after)] if norm else []), activation()]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def cnn() -> nn.Module:
    block = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *block, nn.Flatten(), nn.Linear(128, 10))


class Residual(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU()) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)  # type: ignore[no-any-return]


class Rows(nn.Module):
    """An image read row by row."""

    def __init__(self, reader: nn.Module, width: int) -> None:
        super().__init__()
        self.reader, self.last = reader, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        read = self.reader(x.view(-1, 8, 8))
        return self.last((read[0] if isinstance(read, tuple) else read).mean(1))  # type: ignore[no-any-return]


def lstm() -> nn.Module:
    return Rows(nn.LSTM(8, 32, 2, batch_first=True), 32)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    return Rows(nn.TransformerEncoder(layer, 2), 8)


def with_weights(model: nn.Module, factor: float) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter).mul_(factor)
    return model


def with_biases(model: nn.Module, value: float) -> nn.Module:
    with torch.no_grad():
        for parameter in list(model.parameters())[:-2]:
            if parameter.ndim == 1:
                parameter.fill_(value)
    return model


def frozen(model: nn.Module) -> nn.Module:
    next(iter(model.children())).requires_grad_(False)
    return model


@dataclass
class Training:
    model: Callable[[], nn.Module]
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None
    data: Callable[[], tuple[Tensor, ...]] = digits
    loss: nn.Module = nn.CrossEntropyLoss()  # noqa: RUF009 - it holds no state
    epochs: int = 5
    batch: int = 64
    accumulate: int = 1

    def run(self) -> Report:
        torch.manual_seed(0)
        x, y, validation_x, validation_y = self.data()
        model = self.model()
        optimizer = self.optimizer([p for p in model.parameters() if p.requires_grad])
        per_epoch = len(x) // self.batch
        steps = self.epochs * per_epoch // self.accumulate
        schedule = self.schedule(optimizer, steps) if self.schedule else None
        done = 0
        with trainmedic.watch(model, optimizer, loss_fn=self.loss, settings={}, on_finding=lambda _: None) as medic:
            for _ in range(self.epochs):
                model.train()
                for batch in torch.randperm(len(x))[: per_epoch * self.batch].view(per_epoch, -1):
                    loss = self.loss(model(x[batch]), y[batch])
                    (loss / self.accumulate).backward()
                    medic.log(loss)
                    done += 1
                    if done % self.accumulate == 0:
                        optimizer.step()
                        optimizer.zero_grad()
                        if schedule is not None and done // self.accumulate < steps:
                            schedule.step()
                model.eval()
                with torch.no_grad():
                    medic.log_validation(self.loss(model(validation_x), validation_y))
            return medic.report()


def sgd(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def adam(rate: float = 1e-3) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)


def warm_up(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 50))


def cyclic(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return torch.optim.lr_scheduler.CyclicLR(optimizer, 0.005, 0.1, step_size_up=20)


HEALTHY = {
    "mlp": Training(lambda: mlp(64, 64, 64, 10), adam()),
    "eight rectifier layers": Training(lambda: mlp(64, *[64] * 8, 10), adam()),
    "three sigmoid layers": Training(lambda: mlp(64, 64, 64, 64, 10, activation=nn.Sigmoid), adam(3e-3)),
    "dropout, cosine": Training(lambda: mlp(64, 128, 128, 10, drop=0.5), sgd(0.05), cosine),
    "batch norm, one cycle": Training(lambda: mlp(64, 64, 64, 10, norm=nn.BatchNorm1d), sgd(0.05), one_cycle),
    "cyclic rate": Training(lambda: mlp(64, 64, 10), sgd(0.05), cyclic),
    "cnn": Training(cnn, sgd(0.05), epochs=4),
    "residual": Training(lambda: Residual(6), adamw, epochs=3),
    "lstm": Training(lstm, adam(3e-3), epochs=4),
    "transformer, warm-up": Training(transformer, adamw, warm_up, epochs=3),
    "autoencoder": Training(lambda: mlp(64, 32, 8, 32, 64), adam(), data=reconstruction, loss=nn.MSELoss()),
    "large targets": Training(lambda: mlp(10, 32, 1), adam(1e-2), data=diabetes, loss=nn.MSELoss(), epochs=20),
    "frozen layer": Training(lambda: frozen(mlp(64, 64, 64, 64, 10)), adam()),
    "converged": Training(lambda: mlp(64, 128, 10), adam(1e-2), data=lambda: digits(256), epochs=40),
    "accumulation": Training(lambda: mlp(64, 64, 64, 10), sgd(0.05), accumulate=4),
    "small batches": Training(lambda: mlp(64, 64, 10), sgd(0.01), data=lambda: digits(400), batch=4, epochs=2),
}

SICK = {
    "vanishing-gradient": Training(lambda: mlp(64, *[64] * 8, 10, activation=nn.Sigmoid), adam(), epochs=4),
    "exploding-gradient": Training(lambda: with_weights(mlp(64, *[64] * 5, 10), 2.5), sgd(0.05), epochs=2),
    "dead-relu": Training(lambda: with_biases(mlp(64, 64, 64, 10), -3.0), adam(), epochs=3),
    "overfitting": Training(
        lambda: mlp(10, 128, 128, 1), adam(3e-3), data=scaled_diabetes, loss=nn.MSELoss(), batch=32, epochs=30
    ),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterable[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_are_left_in_peace(name: str) -> None:
    report = HEALTHY[name].run()
    assert [(finding.name, finding.message) for finding in report.findings] == []


@pytest.mark.parametrize("name", SICK)
def test_sick_runs_are_told_by_their_root(name: str) -> None:
    report = SICK[name].run()
    root = {"exploding-gradient": "bad-initialization"}.get(name, name)  # its weights were drawn too large
    assert [finding.name for finding in report.findings if finding.explained_by is None] == [root]
    assert name in [finding.name for finding in report.findings]
