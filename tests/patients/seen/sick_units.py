"""Units that are dead, stuck, all alike or wrongly fed."""

import torch
from torch import Tensor, nn

from tests.patients.optimizers import adam, momentum, sgd
from tests.patients.patient import sick
from tests.patients.seen.data import flower, mnist, proline, raw_wine, signals, wine
from tests.patients.seen.networks import (
    VAE,
    Coordinates,
    Mixer,
    ResidualMLP,
    conv1d,
    selu_net,
    vae_objective,
)
from tests.patients.training import EXPLAINED, Data, Training
from tests.patients.weights import hidden_biases, matrices

STUCK = ("TM404", "TM405", "TM406", "TM502", "TM201", "TM303", "TM305")
UNIT_CURES = ("reinitialize", "replace-activation", "insert-batchnorm")


@sick("TM301", "biases of -4", family="conv1d", data="mnist1d", symptoms=STUCK, also=("TM303",), cures=UNIT_CURES)
def silent_signal(sick: bool) -> Training:
    model = conv1d()
    return Training(hidden_biases(model, -4.0) if sick else model, adam(model, 3e-3), signals(), epochs=5)


@sick(
    "TM301", "one step that was far too large", family="mixer", data="mnist", symptoms=(*STUCK, "TM402", "TM601"),
    also=("TM601", "TM402"), cures=(*UNIT_CURES, "rewind"), onset=0.1,
)  # fmt: skip
def one_large_step(sick: bool) -> Training:
    def rate(step: int) -> float:
        return 3_000.0 if sick and step == 25 else 1.0

    model = Mixer()
    return Training(model, adam(model, 2e-3), mnist(), epochs=6).scheduled(torch.optim.lr_scheduler.LambdaLR, rate)


@sick(
    "TM302", "tanh on kernels of standard deviation 1.5", family="conv1d", data="mnist1d", also=("TM303",),
    symptoms=(*STUCK, "TM202", "TM501", "TM601"), cures=UNIT_CURES,
)  # fmt: skip
def hard_signal(sick: bool) -> Training:
    model = conv1d(4, activation=nn.Tanh)
    if sick:
        matrices(model, lambda weight: nn.init.normal_(weight, std=1.5))
    return Training(model, adam(model, 3e-3), signals(), epochs=4)


@sick(
    "TM302", "tanh on weights of standard deviation 2", family="coordinates", data="flower", metric=EXPLAINED,
    also=("TM303",), symptoms=(*STUCK, "TM202", "TM501"), cures=UNIT_CURES,
)  # fmt: skip
def hard_photograph(sick: bool) -> Training:
    model = Coordinates(activation=nn.Tanh)
    if sick:
        matrices(model, lambda weight: nn.init.normal_(weight, std=2.0))
    return Training(model, adam(model, 2e-3), flower(), nn.MSELoss(), epochs=6)


@sick("TM303", "every weight zero", family="conv1d", data="mnist1d", symptoms=(*STUCK, "TM203"), cures=UNIT_CURES)
def zero_weights(sick: bool) -> Training:
    model = conv1d()
    return Training(
        matrices(model, nn.init.zeros_) if sick else model, adam(model, 3e-3), signals(), epochs=5
    )  # fmt: skip


@sick(
    "TM303", "a thirtieth of the usual weights through six mixing layers", family="mixer", data="mnist",
    also=("TM201",), symptoms=STUCK, cures=(*UNIT_CURES, "insert-residual"),
)  # fmt: skip
def faint_mixer(sick: bool) -> Training:
    model = Mixer(6)
    if sick:
        matrices(model, lambda weight: weight.mul_(0.03))
    return Training(model, adam(model, 2e-3), mnist(), epochs=6)


SKEWED = ("TM301", "TM302", "TM401", "TM402", "TM403", "TM404", "TM405", "TM406", "TM502", "TM601", "TM202", "TM305")
SCALE_CURES = ("normalize-inputs", "insert-batchnorm")


@sick("TM304", "pixels of 0 to 255", family="resmlp", data="mnist", symptoms=SKEWED, cures=SCALE_CURES)
def bytes_as_they_come(sick: bool) -> Training:
    model = ResidualMLP(196, 48, 2, 10, norm=False)
    return Training(model, momentum(model, 0.01), mnist().inputs(lambda x: x * (255 if sick else 1)), epochs=5)


@sick("TM304", "proline of 1,000 beside hues of 1", family="selu", data="wine", symptoms=SKEWED, cures=SCALE_CURES)
def raw_wines(sick: bool) -> Training:
    model = selu_net(13, 3)
    return Training(model, sgd(model, 0.02), raw_wine() if sick else wine(), epochs=60, batch=16)


@sick(
    "TM304", "places counted in pixels", family="coordinates", data="flower", metric=EXPLAINED, symptoms=SKEWED,
    cures=SCALE_CURES,
)  # fmt: skip
def places_in_pixels(sick: bool) -> Training:
    model = Coordinates(waves=0, activation=nn.Tanh)
    data = flower().inputs(lambda x: (x + 1) * 300 if sick else x * 2)
    return Training(model, adam(model, 5e-3), data, nn.MSELoss(), epochs=6)


def itself(data: Data) -> Data:
    """Inputs as their own targets."""
    return data._replace(y=data.x, val_y=data.val_x)


@sick(
    "TM305", "the divergence weighs too much: every output is the mean", family="vae", data="mnist",
    metric=EXPLAINED, symptoms=("TM404", "TM406", "TM502", "TM405"),
)  # fmt: skip
def collapsed_code(sick: bool) -> Training:
    model = VAE()
    objective = vae_objective(30.0 if sick else 0.3)
    return Training(model, adam(model, 3e-3), itself(mnist()), objective=objective, epochs=8)


@sick(
    "TM305", "a rectifier before the loss, and it closes", family="resmlp", data="wine", metric=EXPLAINED,
    also=("TM301", "TM407"), symptoms=("TM404", "TM406", "TM502", "TM203", "TM201"),
)  # fmt: skip
def closed_output(sick: bool) -> Training:
    data = proline()
    mean, spread = data.y.mean(), data.y.std()
    model = nn.Sequential(ResidualMLP(12, 24, 2, 1), nn.ReLU() if sick else nn.Identity())
    data = data.targets(lambda y: (y - mean) / spread - 3)
    return Training(model, adam(model, 3e-3), data, nn.MSELoss(), epochs=40, batch=16)


@sick(
    "TM306", "model.eval() left on: nothing is normalised", family="conv1d", data="mnist1d",
    symptoms=("TM404", "TM405", "TM406", "TM502", "TM201", "TM303"),
)  # fmt: skip
def eval_left_on(sick: bool) -> Training:
    model = conv1d(8, norm=True)
    training = Training(model, adam(model, 2e-3), signals(), epochs=4)
    training.start_epoch = lambda t: t.model.train(not sick)
    return training


@sick(
    "TM306", "running statistics with momentum 0", family="conv1d", data="mnist1d", symptoms=("TM504", "TM501")
)  # fmt: skip
def still_statistics(sick: bool) -> Training:
    model = conv1d(4, norm=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.0 if sick else 0.1
    return Training(model, adam(model, 3e-3), signals(), epochs=5)


_ = Tensor
