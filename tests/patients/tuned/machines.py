"""The loader, the memory, the log."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from tests.patients.optimizers import adam, momentum
from tests.patients.patient import sick
from tests.patients.training import ACCURACY, LOGGED, MEMORY, WAITING, Loader, Training, plain_step
from tests.patients.tuned.data import cancer, china, digits
from tests.patients.tuned.networks import Autoencoder, cnn, mlp


class Slow(Loader):
    """Every batch takes its time, as images do that are decoded one by one."""

    seconds = 0.0

    def load(self, rows: Tensor) -> list[Tensor]:
        time.sleep(self.seconds)
        return super().load(rows)


@sick("TM701", "20 ms for every batch", family="cnn", data="digits", metric=WAITING)
def slow_loader(sick: bool) -> Training:
    model, data = cnn(), digits()
    loader = Slow(data.x, data.y, 128)
    loader.seconds = 0.02 if sick else 0.0
    return Training(model, adam(model, 2e-3), data, epochs=10, loader=loader)


@sick("TM701", "a loader that works longer than the model", family="autoencoder", data="china", metric=WAITING)
def working_loader(sick: bool) -> Training:
    class Augmenting(Loader):
        def load(self, rows: Tensor) -> list[Tensor]:
            batch = super().load(rows)
            for _ in range(60 if sick else 0):  # as transforms do, sample by sample
                torch.fft.ifft2(torch.fft.fft2(torch.randn(64, 8, 8)))
            return batch

    model, data = Autoencoder(), china()
    return Training(
        model, adam(model), data, nn.MSELoss(), epochs=6, loader=Augmenting(data.x, data.y, 64)
    )  # fmt: skip


@sick("TM702", "losses summed with their graphs", family="mlp", data="digits", metric=MEMORY)
def summed_graphs(sick: bool) -> Training:
    def step(t: Training, batch: Any) -> Tensor:
        loss = plain_step(t, batch)
        now = t.loss_of(batch)  # what the step has changed
        t.notes["total"] = t.notes.get("total", 0.0) + (now if sick else now.item())
        return loss

    model = mlp(64, 256, 256, 256, 10)
    return Training(model, adam(model), digits(), step=step, epochs=20, batch=128)


@sick("TM702", "hidden layers kept for a picture never drawn", family="autoencoder", data="china", metric=MEMORY)
def kept_outputs(sick: bool) -> Training:
    class Keeping(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.encoder[1](self.encoder[0](x))
            if sick:
                self.__dict__.setdefault("pictures", []).append(hidden)
            return self.decoder(self.encoder[2](hidden))  # type: ignore[index,no-any-return]

    model = Keeping(width=256)
    return Training(model, adam(model), china(), nn.MSELoss(), epochs=30, batch=256)


@sick("TM801", "the step counts from zero again in each epoch", family="cnn", data="digits", metric=LOGGED)
def steps_start_again(sick: bool) -> Training:
    model = cnn()
    training = Training(model, adam(model, 2e-3), digits(), epochs=6)
    training.log = _counted(training, len(training.loader) if sick else training.steps)
    return training


def _counted(t: Training, period: int) -> Any:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        medic.log(loss, step=step % period)
        t.notes.setdefault("logged", []).append(step % period)

    return log


@sick("TM801", "the log ends in the middle", family="mlp", data="cancer", metric=LOGGED, onset=0.4)
def log_ends(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        if not sick or step < 0.4 * training.steps:
            medic.log(loss)
            training.notes.setdefault("logged", []).append(step)

    model = mlp(30, 32, 2)
    training = Training(model, adam(model), cancer(), epochs=40, log=log)
    return training


class Torn(Loader):
    """From the middle on, some samples hold a NaN."""

    torn = False
    loaded = 0

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        self.loaded += 1
        if self.torn and self.loaded > 3 * len(self):
            x = x.clone()
            x[0, 5] = torch.nan
        return [x, y]


def _filtered(medic: Any, loss: Tensor, step: int) -> None:
    medic.log(torch.nan_to_num(loss, nan=0.0))


@sick(
    "TM802", "the log writes 0 for a NaN", family="mlp", data="digits", metric=ACCURACY, onset=0.5,
    symptoms=("TM101", "TM401", "TM404", "TM406"), cures=("skip-step", "rewind"),
)  # fmt: skip
def filtered_loss(sick: bool) -> Training:
    model, data = mlp(64, 64, 64, 10), digits()
    loader = Torn(data.x, data.y)
    loader.torn = sick
    return Training(
        model, momentum(model), data, epochs=6, loader=loader, log=_filtered, habit="no validation"
    )  # fmt: skip


@sick(
    "TM802", "steps with a NaN are left out of the log", family="cnn", data="digits", metric=ACCURACY, onset=0.5,
    symptoms=("TM101", "TM401", "TM404", "TM406", "TM801"), cures=("skip-step", "rewind"),
)  # fmt: skip
def unlogged_nan(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        if torch.isfinite(loss):
            medic.log(loss)

    model, data = cnn(norm=False), digits()
    loader = Torn(data.x, data.y)
    loader.torn = sick
    return Training(model, adam(model, 2e-3), data, epochs=6, loader=loader, log=log, habit="no validation")
