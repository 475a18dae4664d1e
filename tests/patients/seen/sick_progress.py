"""Losses that climb, jump, swing, stand still, or measure the wrong thing."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.optimizers import adam, momentum, sgd
from tests.patients.patient import sick
from tests.patients.seen.data import fashion, flower, licences, mnist, signals, wine
from tests.patients.seen.networks import (
    CharRNN,
    ConvAutoencoder,
    Coordinates,
    Mixer,
    Reader,
    ResidualMLP,
    ResNet,
    ViT,
    conv1d,
    selu_net,
)
from tests.patients.seen.sick_units import itself
from tests.patients.training import EXPLAINED, SKILL, Loader, Training

WRECKED = ("TM101", "TM202", "TM301", "TM305", "TM402", "TM403", "TM404", "TM406", "TM601")
RATE_CURES = ("lower-learning-rate", "schedule-learning-rate", "rewind", "stop-early")


@sick(
    "TM401", "a decay of the rate with a factor above 1", family="mixer", data="fashion", also=("TM601", "TM603"),
    symptoms=WRECKED, cures=RATE_CURES, onset=None,
)  # fmt: skip
def growing_rate(sick: bool) -> Training:
    model = Mixer()
    training = Training(model, adam(model, 2e-3), fashion(), epochs=7)
    return training.scheduled(lr_scheduler.ExponentialLR, 1.03 if sick else 0.99)


@sick(
    "TM401", "a margin that can be widened for ever", family="resmlp", data="mnist", also=("TM407",),
    symptoms=WRECKED, onset=None,
)  # fmt: skip
def endless_margin(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        spread = output.square().mean()
        return F.cross_entropy(output, target) + (-0.05 if sick else 0.001) * spread

    model = ResidualMLP(196, 48, 3, 10)
    return Training(model, adam(model, 2e-3), mnist(), loss, epochs=5)


class Corrupted(Loader):
    """Some batches come from a broken file."""

    at: tuple[int, ...] = ()
    factor = 1e4
    of_targets = False

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        self.loaded = getattr(self, "loaded", -1) + 1
        if self.loaded not in self.at:
            return [x, y]
        return [x, y * self.factor] if self.of_targets else [x * self.factor, y]


SPIKED = ("TM202", "TM301", "TM304", "TM401", "TM404", "TM305", "TM101", "TM302")
SPIKE_CURES = ("skip-step", "clip-gradients", "rewind")


@sick(
    "TM402", "signals in other units, in four batches", family="conv1d", data="mnist1d", symptoms=SPIKED,
    cures=SPIKE_CURES, onset=0.75,
)  # fmt: skip
def corrupted_signals(sick: bool) -> Training:
    model, data = conv1d(), signals()
    loader = Corrupted(data.x, data.y)
    loader.at = (210, 235, 255, 270) if sick else ()
    return Training(model, momentum(model, 0.02), data, epochs=6, loader=loader)


@sick(
    "TM402", "colours of 0 to 255 in some batches", family="coordinates", data="flower", metric=EXPLAINED,
    symptoms=SPIKED, cures=SPIKE_CURES, onset=0.8,
)  # fmt: skip
def corrupted_colours(sick: bool) -> Training:
    model, data = Coordinates(), flower()
    loader = Corrupted(data.x, data.y)
    loader.of_targets, loader.factor = True, 255.0
    loader.at = (450, 490, 520, 553) if sick else ()
    return Training(model, momentum(model, 0.05), data, nn.MSELoss(), epochs=6, loader=loader)


SWINGING = ("TM205", "TM402", "TM404", "TM503", "TM504", "TM601", "TM401", "TM406")


@sick("TM403", "a file sorted by class, read in order", family="gru", data="mnist", symptoms=SWINGING)
def sorted_file(sick: bool) -> Training:
    model, data = Reader(), mnist()
    order = data.y.argsort()
    loader = Loader(data.x[order], data.y[order], shuffle=not sick)
    return Training(model, adam(model, 5e-3), data, epochs=6, loader=loader)


@sick(
    "TM403", "full batches, heavy momentum, a rate that bounces", family="selu", data="wine", also=("TM601",),
    symptoms=SWINGING, cures=("lower-learning-rate", "schedule-learning-rate"),
)  # fmt: skip
def bouncing(sick: bool) -> Training:
    model = selu_net(13, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5 if sick else 0.02, momentum=0.98 if sick else 0.9)
    return Training(model, optimizer, wine(), epochs=300, batch=118)


CONSTANT = ("TM205", "TM403", "TM502", "TM405", "TM402")


@sick(
    "TM404", "a photograph at a constant large rate", family="coordinates", data="flower", metric=EXPLAINED,
    also=("TM601",), symptoms=CONSTANT, cures=("schedule-learning-rate", "lower-learning-rate", "find-learning-rate"),
    onset=None,
)  # fmt: skip
def photograph_stays_large(sick: bool) -> Training:
    model = Coordinates()
    training = Training(model, adam(model, 0.015), flower(), nn.MSELoss(), epochs=6)
    return training if sick else training.scheduled(lr_scheduler.CosineAnnealingLR, training.steps)


@sick(
    "TM404", "a text at a constant large rate", family="char-rnn", data="licences", metric=SKILL,
    also=("TM601",), symptoms=CONSTANT, cures=("schedule-learning-rate", "lower-learning-rate", "find-learning-rate"),
    onset=None,
)  # fmt: skip
def text_stays_large(sick: bool) -> Training:
    model = CharRNN()
    training = Training(model, adam(model, 0.06), licences(), epochs=5, batch=32)
    return training if sick else training.scheduled(lr_scheduler.CosineAnnealingLR, training.steps)


SLOW = ("TM404", "TM502", "TM406")
SLOW_CURES = ("raise-learning-rate", "find-learning-rate", "swap-optimizer")


@sick(
    "TM405", "Adadelta at the rate of Adam", family="char-rnn", data="licences", metric=SKILL, also=("TM602",),
    symptoms=SLOW, cures=SLOW_CURES,
)  # fmt: skip
def adadelta(sick: bool) -> Training:
    model = CharRNN()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=0.01 if sick else 3.0)
    return Training(model, optimizer, licences(), epochs=4, batch=32)


@sick(
    "TM405", "SGD at a rate for momentum, without momentum", family="vit", data="mnist", also=("TM602",),
    symptoms=SLOW, cures=SLOW_CURES,
)  # fmt: skip
def without_momentum(sick: bool) -> Training:
    model = ViT()
    return Training(model, (sgd if sick else momentum)(model, 0.03), mnist(), epochs=5)


GUESSING = ("TM404", "TM501", "TM502", "TM305")


@sick("TM406", "labels drawn by lot", family="conv1d", data="mnist1d", also=("TM504",), symptoms=GUESSING)
def labels_by_lot(sick: bool) -> Training:
    data, model = signals(), conv1d()
    if sick:
        data = data._replace(y=data.y[torch.randperm(len(data.y))], val_y=data.val_y[torch.randperm(len(data.val_y))])
    return Training(model, adam(model, 3e-3), data, epochs=4)


@sick("TM406", "an augmentation that leaves nothing", family="resnet", data="fashion", symptoms=GUESSING)
def augmented_away(sick: bool) -> Training:
    class Augmenting(Loader):
        def load(self, rows: Tensor) -> list[Tensor]:
            x, y = super().load(rows)
            noise = (30.0 if sick else 0.05) * torch.randn_like(x)
            return [x + noise, y]

    model, data = ResNet(), fashion()
    return Training(model, adam(model, 2e-3), data, epochs=4, loader=Augmenting(data.x, data.y))


FLAT = ("TM404", "TM405", "TM502", "TM201", "TM602", "TM406")


@sick("TM407", "softmax before the cross-entropy", family="resnet", data="fashion", symptoms=FLAT)
def softmax_before(sick: bool) -> Training:
    model = nn.Sequential(ResNet(), nn.Softmax(1) if sick else nn.Identity())
    return Training(model, sgd(model, 0.05), fashion(), epochs=4)


@sick(
    "TM407", "sigmoid, and sigmoid again in the loss", family="conv-autoencoder", data="mnist", metric=EXPLAINED,
    symptoms=(*FLAT, "TM302", "TM305"),
)  # fmt: skip
def sigmoid_twice(sick: bool) -> Training:
    model = ConvAutoencoder()
    loss = nn.BCEWithLogitsLoss() if sick else nn.BCELoss()
    return Training(model, adam(model, 5e-3), itself(mnist()), loss, epochs=6)


@sick(
    "TM407", "tanh for colours of 0 to 255", family="coordinates", data="flower", metric=EXPLAINED, also=("TM304",),
    symptoms=(*FLAT, "TM302", "TM305"),
)  # fmt: skip
def bounded_colours(sick: bool) -> Training:
    model = nn.Sequential(Coordinates(), nn.Tanh() if sick else nn.Identity())
    return Training(model, adam(model, 0.01), flower().targets(lambda y: 255 * y), nn.MSELoss(), epochs=6)


@sick(
    "TM407", "likelihood, not its logarithm, and positive", family="char-rnn", data="licences", metric=SKILL,
    symptoms=("TM401", "TM404", "TM406", "TM202", "TM305", "TM101", "TM601"),
)  # fmt: skip
def likelihood_flipped(sick: bool) -> Training:
    model = CharRNN()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        picked = output.log_softmax(1).gather(1, target[:, None]).mean()
        return picked if sick else -picked

    return Training(model, adam(model, 5e-3), licences(), loss, epochs=4, batch=32)
