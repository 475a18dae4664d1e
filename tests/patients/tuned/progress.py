"""Losses that climb, jump, swing, stand still, or measure the wrong thing."""

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from tests.patients.optimizers import adam, momentum, sgd
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, Loader, Training, clipped_step
from tests.patients.tuned.data import as_floats, cancer, china, diabetes, digits, raw_diabetes
from tests.patients.tuned.networks import Autoencoder, RowReader, cnn, mlp

WRECKED = ("TM101", "TM202", "TM301", "TM305", "TM402", "TM403", "TM404", "TM406", "TM601")


@sick(
    "TM401", "a warm-up that never ends", family="mlp", data="digits", also=("TM601", "TM603"), symptoms=WRECKED,
    cures=("lower-learning-rate", "schedule-learning-rate", "rewind", "stop-early"), onset=None,
)  # fmt: skip
def endless_warm_up(sick: bool) -> Training:
    def rate(step: int) -> float:
        return (step + 1) / 50 if sick else min(1.0, (step + 1) / 50)

    model = mlp(64, 64, 64, 10)
    training = Training(model, momentum(model, 0.1), digits(), epochs=25)
    return training.scheduled(torch.optim.lr_scheduler.LambdaLR, rate)


@sick(
    "TM401", "a penalty with the wrong sign", family="autoencoder", data="china", metric=EXPLAINED, also=("TM407",),
    symptoms=WRECKED, onset=None,
)  # fmt: skip
def rewarded_code(sick: bool) -> Training:
    def objective(model: Autoencoder, batch: tuple[Tensor, Tensor]) -> Tensor:
        code = model.encoder(batch[0])
        penalty = 1e-3 * code.square().mean()
        return nn.functional.mse_loss(model.decoder(code), batch[1]) + (-30 * penalty if sick else penalty)

    model = Autoencoder()
    return Training(model, adam(model, 2e-3), china(), objective=objective, epochs=10)


class Corrupted(Loader):
    """Some batches come from a broken file: huge values."""

    at: tuple[int, ...] = ()
    factor = 1e3

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        self.loaded = getattr(self, "loaded", -1) + 1
        return [x * self.factor if self.loaded in self.at else x, y]


SPIKE_CURES = ("skip-step", "clip-gradients", "rewind")


@sick(
    "TM402", "four corrupted batches late in the run", family="mlp", data="digits", onset=0.75,
    symptoms=("TM202", "TM301", "TM304", "TM401", "TM404", "TM305", "TM101"), cures=SPIKE_CURES,
)  # fmt: skip
def corrupted_batches(sick: bool) -> Training:
    model, data = mlp(64, 64, 64, 10), digits()
    loader = Corrupted(data.x, data.y)
    loader.at = (225, 255, 280, 296) if sick else ()
    return Training(model, momentum(model, 0.02), data, epochs=15, loader=loader)


@sick(
    "TM402", "a broken patch now and then", family="autoencoder", data="china", metric=EXPLAINED, onset=0.8,
    symptoms=("TM202", "TM301", "TM304", "TM401", "TM404", "TM305", "TM101"), cures=SPIKE_CURES,
)  # fmt: skip
def broken_patches(sick: bool) -> Training:
    model, data = Autoencoder(), china()
    loader = Corrupted(data.x, data.y, 32)
    loader.at, loader.factor = ((480, 525, 560, 590) if sick else ()), 1e4
    return Training(model, momentum(model, 0.02), data, nn.MSELoss(), epochs=8, loader=loader)


@sick(
    "TM403", "batches in the order of the classes", family="mlp", data="digits",
    symptoms=("TM205", "TM402", "TM404", "TM503", "TM504", "TM601", "TM401"),
)  # fmt: skip
def sorted_by_class(sick: bool) -> Training:
    model, data = mlp(64, 64, 10), digits()
    order = data.y.argsort()
    loader = Loader(data.x[order], data.y[order], 32, shuffle=not sick)
    return Training(model, momentum(model, 0.03), data, epochs=10, loader=loader)


@sick(
    "TM403", "momentum 0.99 at a large rate", family="regressor", data="diabetes", metric=EXPLAINED,
    also=("TM601",), symptoms=("TM401", "TM402", "TM404", "TM205", "TM202"),
    cures=("lower-learning-rate", "schedule-learning-rate"),
)  # fmt: skip
def heavy_ball(sick: bool) -> Training:
    model = nn.Sequential(nn.Linear(10, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2 if sick else 0.05, momentum=0.995 if sick else 0.9)
    return Training(model, optimizer, diabetes(), nn.MSELoss(), epochs=80)


@sick(
    "TM404", "a large rate that is never lowered", family="autoencoder", data="china", metric=EXPLAINED,
    also=("TM601",),
    symptoms=("TM205", "TM403", "TM502", "TM405"),
    cures=("schedule-learning-rate", "lower-learning-rate", "find-learning-rate"), onset=None,
)  # fmt: skip
def rate_never_lowered(sick: bool) -> Training:
    model = Autoencoder(activation=nn.Tanh)
    training = Training(model, adam(model, 0.02), china().first(600), nn.MSELoss(), epochs=10, batch=8)
    return training if sick else training.scheduled(CosineAnnealingLR, training.steps)


@sick(
    "TM405", "the norm is clipped to a thousandth", family="lstm", data="digits", also=("TM602",),
    symptoms=("TM404", "TM502", "TM406"), cures=("raise-learning-rate", "find-learning-rate"),
)  # fmt: skip
def clipped_to_nothing(sick: bool) -> Training:
    model = RowReader()
    step = clipped_step(1e-3 if sick else 1.0)
    return Training(model, momentum(model, 0.1), digits(), step=step, epochs=20)


@sick(
    "TM405", "Adam's epsilon of 1", family="lstm", data="digits", also=("TM602",), symptoms=("TM404", "TM502", "TM406"),
    cures=("raise-learning-rate", "find-learning-rate", "swap-optimizer"),
)  # fmt: skip
def large_epsilon(sick: bool) -> Training:
    model = RowReader()
    return Training(model, adam(model, 3e-3, eps=1.0 if sick else 1e-8), digits(), epochs=15)


@sick(
    "TM405", "momentum forgotten", family="autoencoder", data="china", metric=EXPLAINED, also=("TM602",),
    symptoms=("TM404", "TM502"), cures=("raise-learning-rate", "find-learning-rate", "swap-optimizer"),
)  # fmt: skip
def no_momentum(sick: bool) -> Training:
    model = Autoencoder()
    return Training(model, (sgd if sick else momentum)(model, 0.003), china(), nn.MSELoss(), epochs=10)


@sick(
    "TM406", "inputs shuffled without their labels", family="cnn", data="digits", also=("TM504",),
    symptoms=("TM404", "TM501", "TM502", "TM305"),
)  # fmt: skip
def shuffled_apart(sick: bool) -> Training:
    data, model = digits(), cnn()
    if sick:
        data = data._replace(x=data.x[torch.randperm(len(data.x))], val_x=data.val_x[torch.randperm(len(data.val_x))])
    return Training(model, adam(model), data, epochs=8)


@sick(
    "TM406", "a mask that hides every row", family="lstm", data="digits", also=("TM305",),
    symptoms=("TM404", "TM502", "TM203", "TM201", "TM602"),
)  # fmt: skip
def everything_masked(sick: bool) -> Training:
    data = digits().inputs(lambda x: x * (x < 0 if sick else x > 0))
    model = RowReader()
    return Training(model, adam(model, 3e-3), data, epochs=12)


@sick(
    "TM407", "softmax before the cross-entropy", family="cnn", data="digits",
    symptoms=("TM404", "TM405", "TM502", "TM201", "TM602", "TM406"),
)  # fmt: skip
def softmax_twice(sick: bool) -> Training:
    model = nn.Sequential(cnn(norm=False), nn.Softmax(1) if sick else nn.Identity())
    return Training(model, momentum(model, 0.02), digits(), epochs=8)


@sick(
    "TM407", "negative log-likelihood of something that is no logarithm", family="mlp", data="digits",
    symptoms=("TM401", "TM404", "TM406", "TM202", "TM305", "TM101", "TM601"),
)  # fmt: skip
def no_logarithm(sick: bool) -> Training:
    model = nn.Sequential(mlp(64, 64, 10), nn.Identity() if sick else nn.LogSoftmax(1))
    return Training(model, momentum(model, 0.03), digits(), nn.NLLLoss(), epochs=10)


@sick(
    "TM407", "a sigmoid for targets of 25 to 346", family="regressor", data="diabetes", metric=EXPLAINED,
    also=("TM304",), symptoms=("TM302", "TM404", "TM406", "TM502", "TM305", "TM201"),
)  # fmt: skip
def bounded_output(sick: bool) -> Training:
    model = nn.Sequential(mlp(10, 32, 1), nn.Sigmoid() if sick else nn.Identity())
    return Training(model, adam(model, 0.03), raw_diabetes(), nn.MSELoss(), epochs=60)


@sick(
    "TM407", "the sign of the loss flipped", family="mlp", data="cancer",
    symptoms=("TM401", "TM404", "TM406", "TM202", "TM305", "TM101", "TM601", "TM503"),
)  # fmt: skip
def flipped_sign(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        likelihood = -nn.functional.binary_cross_entropy_with_logits(output, target)
        return likelihood if sick else -likelihood

    model = mlp(30, 32, 1)
    return Training(model, adam(model, 3e-3), as_floats(cancer()), loss, epochs=30)
