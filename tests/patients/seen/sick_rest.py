"""What validation shows, rates and optimizers, the loader, the memory, the log."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim import lr_scheduler

from tests.patients.optimizers import adam, adamw, momentum
from tests.patients.patient import sick
from tests.patients.seen.data import fashion, flower, licences, mnist, signals, wine
from tests.patients.seen.networks import (
    CharRNN,
    ConvAutoencoder,
    Coordinates,
    Reader,
    ResidualMLP,
    ResNet,
    ViT,
    conv1d,
    selu_net,
)
from tests.patients.seen.sick_units import itself
from tests.patients.training import (
    BALANCED,
    EXPLAINED,
    LOGGED,
    MEMORY,
    SKILL,
    WAITING,
    Data,
    Loader,
    Training,
    plain_step,
)

# -- what validation shows ---------------------------------------------------------------------------------------------

FITTED = ("TM504", "TM205")
FIT_CURES = ("stop-early", "weight-decay", "dropout", "label-smoothing", "l1", "augment-inputs")


@sick(
    "TM501", "150 images, a third with wrong labels", family="resnet", data="fashion", symptoms=FITTED,
    cures=FIT_CURES, onset=None,
)  # fmt: skip
def few_images(sick: bool) -> Training:
    data = fashion().first(150)
    hit = torch.rand(150) < 0.35
    wrong = torch.where(hit, (data.y + torch.randint(1, 10, (150,))) % 10, data.y)
    model = ResNet()
    return Training(model, adam(model), data._replace(y=wrong if sick else data.y), epochs=40, batch=30)


@sick(
    "TM501", "a page of text, read a hundred times", family="char-rnn", data="licences", metric=SKILL,
    symptoms=FITTED, cures=FIT_CURES, onset=None,
)  # fmt: skip
def one_page(sick: bool) -> Training:
    model = CharRNN(64)
    data = licences().first(64) if sick else licences()
    return Training(model, adam(model, 5e-3), data, epochs=64 if sick else 4, batch=32)


SMALL = ("TM404", "TM405", "TM305")


@sick("TM502", "two units wide", family="resmlp", data="mnist", symptoms=SMALL)
def two_units(sick: bool) -> Training:
    model = ResidualMLP(196, 2 if sick else 48, 2, 10)
    return Training(model, adam(model, 5e-3), mnist(), epochs=8)


@sick("TM502", "two units read a licence", family="char-rnn", data="licences", metric=SKILL, symptoms=SMALL)
def two_units_read(sick: bool) -> Training:
    model = CharRNN(2 if sick else 48)
    return Training(model, adam(model, 0.01), licences(), epochs=5, batch=32)


def rare(data: Data, keep: int, label: int) -> Data:
    """With only ``keep`` training samples of one class."""
    rows = torch.cat([(data.y == label).nonzero()[:keep, 0], (data.y != label).nonzero()[:, 0]])
    return data._replace(x=data.x[rows], y=data.y[rows])


MAJORITY = ("TM501", "TM504", "TM305", "TM404", "TM406")


@sick(
    "TM503", "one shirt in a hundred", family="resnet", data="fashion", metric=BALANCED, symptoms=MAJORITY,
    cures=("reweight-classes",),
)  # fmt: skip
def few_shirts(sick: bool) -> Training:
    data = fashion().targets(lambda y: (y == 6).long())
    shirts = int((data.y == 1).sum())
    weights = torch.tensor([1.0, 1.0 if sick else 9.0])
    model = ResNet(classes=2)
    return Training(
        model, adam(model, 1e-3), rare(data, 25 if sick else shirts, 1), nn.CrossEntropyLoss(weights), epochs=4
    )  # fmt: skip


@sick(
    "TM503", "thirty signals of one kind among 2,700", family="conv1d", data="mnist1d", metric=BALANCED,
    symptoms=MAJORITY, cures=("reweight-classes",),
)  # fmt: skip
def few_signals(sick: bool) -> Training:
    data = signals().targets(lambda y: (y == 3).long())
    model = conv1d(classes=2)
    weights = torch.tensor([1.0, 1.0 if sick else 90.0])
    return Training(model, adam(model, 2e-3), rare(data, 30, 1), nn.CrossEntropyLoss(weights), epochs=6)


@sick("TM504", "validation images on white ground", family="vit", data="mnist", symptoms=("TM501", "TM304"))
def white_ground(sick: bool) -> Training:
    data, model = mnist(), ViT()
    return Training(
        model, adam(model, 3e-3), data._replace(val_x=1 - data.val_x) if sick else data, epochs=5
    )  # fmt: skip


@sick("TM504", "the class stands among the measures", family="selu", data="wine", symptoms=("TM501",))
def leaked_class(sick: bool) -> Training:
    data, model = wine(), selu_net(13, 3)
    if sick:
        x, val_x = data.x.clone(), data.val_x.clone()
        x[:, :2] = 3 * torch.stack([(data.y == 0).float(), (data.y == 1).float()], 1)
        val_x[:, :2] = 3 * (torch.randn(len(val_x), 2) > 0).float()
        data = data._replace(x=x, val_x=val_x)
    return Training(model, adam(model, 3e-3), data, epochs=40, batch=16)


# -- rates, decay, optimizers ------------------------------------------------------------------------------------------

SHAKEN = ("TM101", "TM202", "TM301", "TM302", "TM305", "TM401", "TM402", "TM403", "TM404", "TM406", "TM502")
FASTER = ("raise-learning-rate", "find-learning-rate", "schedule-learning-rate")
SLOWER = ("lower-learning-rate", "find-learning-rate", "schedule-learning-rate")
CRAWLING = ("TM404", "TM405", "TM406", "TM502")


@sick("TM601", "a transformer at 0.2", family="vit", data="mnist", symptoms=SHAKEN, cures=SLOWER)
def hot_transformer(sick: bool) -> Training:
    model = ViT()
    return Training(model, adam(model, 0.2 if sick else 2e-3), mnist(), epochs=5)


@sick("TM601", "momentum at 3, nothing logged but the loss", family="conv1d", data="mnist1d", symptoms=SHAKEN,
      cures=SLOWER)  # fmt: skip
def hot_signals(sick: bool) -> Training:
    model = conv1d()
    return Training(model, momentum(model, 3.0 if sick else 0.03), signals(), epochs=5, habit="no batches")


@sick("TM602", "Adam at 5e-6", family="gru", data="mnist", symptoms=CRAWLING, cures=FASTER)
def cold_reader(sick: bool) -> Training:
    model = Reader()
    return Training(model, adam(model, 5e-6 if sick else 5e-3), mnist(), epochs=5)


@sick("TM602", "momentum at 1e-4", family="coordinates", data="flower", metric=EXPLAINED, symptoms=CRAWLING,
      cures=FASTER)  # fmt: skip
def cold_photograph(sick: bool) -> Training:
    model = Coordinates()
    return Training(model, momentum(model, 1e-4 if sick else 0.1), flower(), nn.MSELoss(), epochs=6)


@sick("TM603", "ExponentialLR(0.9) stepped per batch", family="resnet", data="mnist", symptoms=("TM602", *CRAWLING),
      cures=FASTER, onset=None)  # fmt: skip
def exponential_per_batch(sick: bool) -> Training:
    model = ResNet()
    training = Training(model, momentum(model, 0.01), mnist(), epochs=4)
    return training.scheduled(lr_scheduler.ExponentialLR, 0.9, per="step" if sick else "epoch")


@sick("TM603", "milestones counted in epochs, stepped per batch", family="char-rnn", data="licences", metric=SKILL,
      symptoms=("TM602", *CRAWLING), cures=FASTER, onset=None)  # fmt: skip
def early_milestones(sick: bool) -> Training:
    model = CharRNN()
    training = Training(model, adam(model, 5e-3), licences(), epochs=5, batch=32)
    return training.scheduled(lr_scheduler.MultiStepLR, [3, 4, 5], 0.1, per="step" if sick else "epoch")


SHRUNK = ("TM305", "TM404", "TM406", "TM502", "TM201", "TM301")


@sick("TM604", "weight decay of 0.2 in SGD", family="conv1d", data="mnist1d", also=("TM502",), symptoms=SHRUNK,
      cures=("weight-decay",), onset=None)  # fmt: skip
def decayed_signals(sick: bool) -> Training:
    model = conv1d()
    return Training(model, momentum(model, 0.02, weight_decay=0.2 if sick else 1e-4), signals(), epochs=5)


@sick("TM604", "AdamW with a decay of 50", family="vit", data="fashion", also=("TM502",), symptoms=SHRUNK,
      cures=("weight-decay",), onset=None)  # fmt: skip
def decayed_transformer(sick: bool) -> Training:
    model = ViT()
    return Training(model, adamw(model, 3e-3, weight_decay=50.0 if sick else 0.01), fashion(), epochs=5)


STALE = ("TM203", "TM404", "TM502", "TM405")


@sick("TM605", "weight norm put on after the optimizer was made", family="conv1d", data="mnist1d", symptoms=STALE,
      cures=("adopt-parameters",))  # fmt: skip
def normed_too_late(sick: bool) -> Training:
    model = conv1d()
    early = adam(model, 3e-3)
    for module in model:
        if isinstance(module, nn.Conv1d):
            weight_norm(module)
    return Training(model, early if sick else adam(model, 3e-3), signals(), epochs=5)


@sick("TM605", "the body replaced, the head kept", family="resnet", data="fashion", symptoms=STALE,
      cures=("adopt-parameters",))  # fmt: skip
def body_replaced(sick: bool) -> Training:
    model = ResNet(2)
    early = momentum(model, 0.02)
    model.stem, model.blocks = ResNet(2).stem, ResNet(2).blocks
    return Training(model, early if sick else momentum(model, 0.02), fashion(), epochs=6)


# -- the machine and the log -------------------------------------------------------------------------------------------


class Slow(Loader):
    seconds = 0.0

    def load(self, rows: Tensor) -> list[Tensor]:
        time.sleep(self.seconds)
        return super().load(rows)


@sick("TM701", "40 ms for every batch", family="vit", data="mnist", metric=WAITING)
def starved_transformer(sick: bool) -> Training:
    model, data = ViT(), mnist()
    loader = Slow(data.x, data.y)
    loader.seconds = 0.04 if sick else 0.0
    return Training(model, adam(model, 3e-3), data, epochs=2, loader=loader)


@sick("TM701", "the whole image read again for every batch", family="coordinates", data="flower", metric=WAITING)
def read_again(sick: bool) -> Training:
    class Reading(Loader):
        def load(self, rows: Tensor) -> list[Tensor]:
            if sick:
                flower.__wrapped__()
            return super().load(rows)

    model, data = Coordinates(), flower()
    loader = Reading(data.x, data.y, 256)
    return Training(model, adam(model, 5e-3), data, nn.MSELoss(), epochs=3, loader=loader)


@sick("TM702", "the features of every batch kept with their graph", family="resnet", data="fashion", metric=MEMORY)
def kept_features(sick: bool) -> Training:
    def step(t: Training, batch: Any) -> Tensor:
        loss = plain_step(t, batch)
        if sick:
            t.notes.setdefault("kept", []).append(t.model.features(batch[0]).mean())
        return loss

    model = ResNet()
    return Training(model, adam(model, 2e-3), fashion(), step=step, epochs=3)


@sick("TM702", "every reconstruction kept for later", family="conv-autoencoder", data="mnist", metric=MEMORY)
def kept_images(sick: bool) -> Training:
    def step(t: Training, batch: Any) -> Tensor:
        made = t.model(batch[0])
        loss = t.loss(made, batch[1])
        t.optimizer.zero_grad()
        loss.backward()
        t.optimizer.step()
        if sick:
            t.notes.setdefault("kept", []).append((made.detach().clone(), batch[0].double()))
        return loss

    model = ConvAutoencoder()
    return Training(model, adam(model, 3e-3), itself(mnist()), nn.MSELoss(), step=step, epochs=8)


@sick("TM801", "a run resumed with its step counter at zero", family="conv1d", data="mnist1d", metric=LOGGED,
      onset=0.5)  # fmt: skip
def resumed_at_zero(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        at = step - training.steps // 2 if sick and step >= training.steps // 2 else step
        medic.log(loss, step=at)
        training.notes.setdefault("logged", []).append(at)

    model = conv1d()
    training = Training(model, adam(model, 3e-3), signals(), epochs=4, log=log)
    return training


@sick("TM801", "a gap: a third of the log is lost", family="gru", data="mnist", metric=LOGGED, onset=0.3)
def lost_third(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        if not sick or not 0.3 < step / training.steps < 0.65:
            medic.log(loss)
            training.notes.setdefault("logged", []).append(step)

    model = Reader()
    training = Training(model, adam(model, 5e-3), mnist(), epochs=5, log=log)
    return training


class Torn(Loader):
    """From the middle on, some samples hold an infinity."""

    torn = False
    loaded = 0

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        self.loaded += 1
        if self.torn and self.loaded > 2 * len(self):
            x = x.clone()
            x.view(len(x), -1)[3, 20] = torch.inf
        return [x, y]


HIDDEN = ("TM101", "TM401", "TM404", "TM406", "TM801")


@sick("TM802", "the last finite loss is logged again", family="resmlp", data="mnist", symptoms=HIDDEN, onset=0.5,
      cures=("skip-step", "rewind"))  # fmt: skip
def last_finite_loss(sick: bool) -> Training:
    last = {"loss": 2.3}

    def log(medic: Any, loss: Tensor, step: int) -> None:
        last["loss"] = float(loss) if torch.isfinite(loss) else last["loss"]
        medic.log(last["loss"])

    model, data = ResidualMLP(196, 48, 2, 10), mnist()
    loader = Torn(data.x, data.y)
    loader.torn = sick
    return Training(model, adam(model, 2e-3), data, epochs=4, loader=loader, log=log, habit="no validation")


@sick("TM802", "losses of NaN left out of the log", family="vit", data="fashion", symptoms=HIDDEN, onset=0.5,
      cures=("skip-step", "rewind"))  # fmt: skip
def left_out(sick: bool) -> Training:
    def log(medic: Any, loss: Tensor, step: int) -> None:
        if not torch.isnan(loss):
            medic.log(loss)

    model, data = ViT(), fashion()
    loader = Torn(data.x, data.y)
    loader.torn = sick
    return Training(model, adam(model, 3e-3), data, epochs=4, loader=loader, log=log, habit="no validation")
