"""What shows in the curves only: few looks at validation, small models, rates cut too early, losses of one's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, StepLR

from tests.patients.optimizers import adam, momentum, sgd
from tests.patients.patient import healthy, sick
from tests.patients.training import EXPLAINED, Data, Training, validation
from tests.patients.tuned.data import diabetes, digits
from tests.patients.tuned.networks import RowReader, mlp

SMALL = ("TM404", "TM405", "TM305", "TM406")
FITTED = ("TM504", "TM205")
FIT_CURES = ("stop-early", "weight-decay", "dropout", "label-smoothing", "l1")


def seldom(epochs: int, *only: str) -> Callable[[Training], dict[str, Any]]:
    """Validate once in so many epochs, and log ``only`` these."""

    def validate(t: Training) -> dict[str, Any]:
        t.notes["epoch"] = t.notes.get("epoch", 0) + 1
        found = validation(t) if t.notes["epoch"] % epochs == 0 else {}
        return {name: value for name, value in found.items() if name in (only or found)}

    return validate


def mislabelled(data: Data, share: float) -> Data:
    """With so many of the training labels drawn anew."""
    hit = torch.rand(len(data.y)) < share
    return data._replace(y=torch.where(hit, torch.randint(0, 10, (len(data.y),)), data.y))


@sick(
    "TM501", "only the accuracy is logged, and falls as wrong labels are learnt", family="mlp", data="digits",
    symptoms=FITTED, cures=FIT_CURES, onset=None,
)  # fmt: skip
def accuracy_alone(sick: bool) -> Training:
    data, model = digits().first(400), mlp(64, 256, 10)
    data = mislabelled(data, 0.4) if sick else data
    epochs = 60 if sick else 20
    return Training(model, adam(model, 2e-3), data, epochs=epochs, batch=32, validate=seldom(2, "accuracy"))


@sick(
    "TM501", "validated six times, and worse four times in a row", family="mlp", data="digits", symptoms=FITTED,
    cures=FIT_CURES, onset=None,
)  # fmt: skip
def six_looks(sick: bool) -> Training:
    data, model = digits(), mlp(64, 256, 256, 10)
    data = mislabelled(data.first(200), 0.4) if sick else data
    epochs = 36 if sick else 12
    return Training(model, adam(model, 2e-3), data, epochs=epochs, batch=20, validate=seldom(epochs // 6))


@sick(
    "TM501", "it rose after the first of ten looks, and stays up there", family="regressor", data="diabetes",
    metric=EXPLAINED, symptoms=FITTED, cures=FIT_CURES, onset=None,
)  # fmt: skip
def up_and_stays(sick: bool) -> Training:
    model = mlp(10, 128, 128, 1) if sick else mlp(10, 8, 1)
    epochs = 100 if sick else 20
    return Training(
        model, momentum(model, 0.03), diabetes(), nn.MSELoss(), epochs=epochs, batch=32, validate=seldom(epochs // 10)
    )  # fmt: skip


@sick("TM502", "one unit for ten classes", family="mlp", data="digits", symptoms=(*SMALL, "TM301"))
def one_unit(sick: bool) -> Training:
    model = mlp(64, 1 if sick else 64, 10)
    return Training(model, adam(model, 5e-3), digits(), epochs=20)


def products() -> Data:
    """Points of a square, and whether both of their coordinates have one sign: no line parts them."""
    x = torch.rand(2_000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Data.split(x, (x.prod(1) > 0).long(), 400)


@sick("TM502", "a line for exclusive or", family="linear", data="xor", also=("TM406",), symptoms=SMALL)
def line_for_xor(sick: bool) -> Training:
    model = nn.Sequential(nn.Linear(2, 2)) if sick else mlp(2, 32, 2)
    return Training(model, momentum(model, 0.1), products(), epochs=20)


@sick(
    "TM502", "noise of a dozen times the images, in a loss of one's own", family="mlp", data="digits", also=("TM406",),
    symptoms=SMALL,
)  # fmt: skip
def drowned(sick: bool) -> Training:
    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(model(x + (5.0 if sick else 0.1) * torch.randn_like(x)), y)

    model = mlp(64, 64, 10)
    return Training(model, adam(model), digits(), objective=objective, epochs=25)


@sick(
    "TM404", "steps of the rate that were meant to be epochs", family="lstm", data="digits", also=("TM603", "TM602"),
    symptoms=("TM405", "TM406", "TM502"), cures=("raise-learning-rate", "find-learning-rate", "schedule-learning-rate"),
)  # fmt: skip
def cut_while_it_fell(sick: bool) -> Training:
    model = RowReader()
    training = Training(model, adam(model, 1e-2), digits(), epochs=20)
    return training.scheduled(StepLR, 20 if sick else 200, 0.2)


@sick(
    "TM405", "gradient descent at a thirtieth of the usual rate", family="mlp", data="digits", also=("TM602",),
    symptoms=("TM404", "TM502", "TM406"), cures=("raise-learning-rate", "find-learning-rate", "swap-optimizer"),
)  # fmt: skip
def steady_crawl(sick: bool) -> Training:
    model = mlp(64, 64, 10)
    return Training(model, sgd(model, 0.006 if sick else 0.2), digits(), epochs=15)


@sick(
    "TM205", "one image a step at a rate for thirty-two", family="mlp", data="digits", also=("TM601",),
    symptoms=("TM403", "TM404", "TM402"), cures=("lower-learning-rate", "schedule-learning-rate", "average-weights"),
)  # fmt: skip
def one_image_a_step(sick: bool) -> Training:
    model = mlp(64, 32, 10)
    return Training(model, sgd(model, 0.15), digits(), epochs=1 if sick else 20, batch=1 if sick else 32)


@sick(
    "TM401", "resumed at fifty times the rate", family="lstm", data="digits", onset=0.6,
    also=("TM601", "TM402", "TM603"),
    symptoms=("TM202", "TM301", "TM302", "TM305", "TM403", "TM404", "TM406"),
    cures=("lower-learning-rate", "rewind", "stop-early"),
)  # fmt: skip
def resumed_too_fast(sick: bool) -> Training:
    model = RowReader()
    training = Training(model, adam(model, 5e-3), digits(), epochs=20)
    return training.scheduled(LambdaLR, lambda step: 50.0 if sick and step > 0.6 * training.steps else 1.0)


@sick(
    "TM407", "each output against every target, in a loss of one's own", family="regressor", data="diabetes",
    metric=EXPLAINED, also=("TM406",), symptoms=("TM404", "TM502", "TM305"),
)  # fmt: skip
def rows_against_rows(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - (target.squeeze(1) if sick else target)).square().mean()

    model = mlp(10, 32, 1)
    return Training(model, adam(model, 3e-3), diabetes(), loss, epochs=60, batch=32)


@healthy("learnt by heart far beyond convergence; the accuracy stays", family="mlp", data="digits")
def long_after() -> Training:
    model = mlp(64, 128, 10)
    return Training(model, adam(model), digits(), epochs=60)


@healthy("a third of the labels is wrong everywhere", family="mlp", data="digits")
def wrong_everywhere() -> Training:
    data = mislabelled(digits(), 0.35)
    data = data._replace(val_y=mislabelled(data._replace(y=data.val_y), 0.35).y)
    model = mlp(64, 16, 10)
    return Training(model, sgd(model, 0.1), data, epochs=20)


@healthy("a line, where one answer in four is luck", family="linear", data="coin tosses")
def partly_luck() -> Training:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3_000, 10, generator=generator)
    y = (torch.rand(3_000, generator=generator) < torch.sigmoid(2 * x[:, 0] - 1.5 * x[:, 1])).long()
    model = nn.Sequential(nn.Linear(10, 2))
    return Training(model, adam(model, 1e-2), Data.split(x, y, 600), epochs=20)


@healthy("four images a step at a rate that fits them", family="mlp", data="digits")
def four_images_a_step() -> Training:
    model = mlp(64, 64, 10)
    return Training(model, sgd(model, 0.02), digits(), epochs=4, batch=4)
