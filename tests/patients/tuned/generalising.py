"""What the training set shows is not what validation shows."""

import torch
from torch import nn

from tests.patients.optimizers import adam, adamw, momentum
from tests.patients.patient import sick
from tests.patients.training import BALANCED, EXPLAINED, SKILL, Data, Training
from tests.patients.tuned.data import cancer, china, diabetes, digits, gpl, raw_cancer
from tests.patients.tuned.networks import GPT, Autoencoder, cnn, mlp

FITTED = ("TM504", "TM205")
FIT_CURES = ("stop-early", "weight-decay", "dropout", "label-smoothing", "l1")


@sick(
    "TM501", "300 images, four labels in ten wrong, a wide net", family="mlp", data="digits", symptoms=FITTED,
    cures=FIT_CURES, onset=None,
)  # fmt: skip
def wrong_labels_learnt(sick: bool) -> Training:
    data = digits().first(300)
    hit = torch.rand(300) < 0.4
    wrong = torch.where(hit, (data.y + torch.randint(1, 10, (300,))) % 10, data.y)
    model = mlp(64, 256, 256, 10)
    return Training(model, adam(model), data._replace(y=wrong if sick else data.y), epochs=60, batch=32)


@sick(
    "TM501", "100 patients, thousands of weights", family="regressor", data="diabetes", metric=EXPLAINED,
    symptoms=FITTED, cures=FIT_CURES, onset=None,
)  # fmt: skip
def hundred_patients(sick: bool) -> Training:
    model = mlp(10, 128, 128, 1) if sick else mlp(10, 8, 1)
    return Training(
        model, adam(model, 3e-3), diabetes().first(100), nn.MSELoss(), epochs=100 if sick else 40, batch=20
    )  # fmt: skip


@sick(
    "TM501", "a language model on forty lines", family="gpt", data="gpl", metric=SKILL, symptoms=FITTED,
    cures=FIT_CURES, onset=None,
)  # fmt: skip
def forty_lines(sick: bool) -> Training:
    model = GPT()
    data = gpl().first(48) if sick else gpl()
    return Training(model, adamw(model, 1e-2), data, epochs=80 if sick else 5, batch=16)


SMALL = ("TM404", "TM405", "TM305")


@sick("TM502", "one number for a patch", family="autoencoder", data="china", metric=EXPLAINED, symptoms=SMALL)
def narrow_code(sick: bool) -> Training:
    model = Autoencoder(1 if sick else 16)
    return Training(model, adam(model, 3e-3), china(), nn.MSELoss(), epochs=15)


@sick(
    "TM502", "nineteen units in twenty dropped", family="mlp", data="digits", symptoms=(*SMALL, "TM205", "TM504")
)  # fmt: skip
def dropped_away(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10, drop=0.95 if sick else 0.1)
    return Training(model, adam(model, 3e-3), digits(), epochs=20)


def rare(data: Data, keep: int, label: int) -> Data:
    """With only ``keep`` training samples of one class."""
    rare, common = (data.y == label).nonzero()[:keep, 0], (data.y != label).nonzero()[:, 0]
    rows = torch.cat([rare, common])
    return data._replace(x=data.x[rows], y=data.y[rows])


@sick(
    "TM503", "three of one class to 260 of the other", family="mlp", data="cancer", metric=BALANCED,
    symptoms=("TM501", "TM504", "TM305", "TM404"), cures=("reweight-classes",),
)  # fmt: skip
def three_to_many(sick: bool) -> Training:
    model = mlp(30, 8, 2)
    data = rare(cancer(), 3, 0) if sick else cancer()
    return Training(model, momentum(model, 0.005), data, epochs=40)


@sick(
    "TM503", "one digit against all, one in a hundred", family="cnn", data="digits", metric=BALANCED,
    symptoms=("TM501", "TM504", "TM305", "TM404"), cures=("reweight-classes",),
)  # fmt: skip
def one_in_a_hundred(sick: bool) -> Training:
    model = cnn(classes=2)
    data = digits().targets(lambda y: (y == 8).long())
    data = rare(data, 12, 1) if sick else data
    return Training(model, adam(model, 5e-3), data, epochs=8)


@sick("TM504", "validation not standardised", family="mlp", data="cancer", symptoms=("TM304", "TM501", "TM503"))
def other_scale(sick: bool) -> Training:
    data = cancer()
    if sick:
        data = data._replace(val_x=raw_cancer().val_x)
    model = mlp(30, 32, 2)
    return Training(model, adam(model), data, epochs=40)


@sick(
    "TM504", "the target stands among the inputs", family="regressor", data="diabetes", metric=EXPLAINED,
    symptoms=("TM501",),
)  # fmt: skip
def leaked_target(sick: bool) -> Training:
    data = diabetes()
    if sick:
        noisy = data.y + 0.05 * torch.randn_like(data.y)
        unknown = torch.randn_like(data.val_y)
        data = data._replace(x=torch.cat([data.x, noisy], 1), val_x=torch.cat([data.val_x, unknown], 1))
    model = mlp(11 if sick else 10, 16, 1)
    return Training(model, adam(model, 3e-3), data, nn.MSELoss(), epochs=60)


@sick("TM504", "validation labels from another file", family="cnn", data="digits", symptoms=("TM501",))
def other_labels(sick: bool) -> Training:
    data, model = digits(), cnn()
    if sick:
        data = data._replace(val_y=data.val_y[torch.randperm(len(data.val_y))])
    return Training(model, adam(model, 2e-3), data, epochs=8)
