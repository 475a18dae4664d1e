"""Faults at the root as people make them who have never read a rule: each as another took it for a textbook case."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.patients.optimizers import adam, momentum, sgd
from tests.patients.patient import healthy, sick
from tests.patients.training import EXPLAINED, LOGGED, Metric, Training
from tests.patients.tuned.data import cancer, china, diabetes, digits, raw_cancer
from tests.patients.tuned.networks import RowReader, cnn, mlp
from tests.patients.weights import matrices, xavier

CRAWLING = ("TM404", "TM405", "TM406", "TM502", "TM602")
BROKEN = ("TM401", "TM402", "TM404", "TM406")


class OwnEntropy(nn.Module):
    """A cross-entropy of one's own, with a margin that probabilities may fall below."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        right = output.softmax(1).gather(1, target[:, None])
        return -torch.log(right - self.margin if self.margin else right + 1e-7).mean()


@sick("TM101", "the logarithm of a probability less a margin", family="mlp", data="digits", symptoms=BROKEN)
def margin_inside_the_logarithm(sick: bool) -> Training:
    model = mlp(64, 64, 10)
    return Training(model, momentum(model, 0.05), digits(), OwnEntropy(0.05 if sick else 0.0), epochs=12)


@sick(
    "TM201", "an autoencoder of eight sigmoids: it learns the mean, then long nothing", family="autoencoder",
    data="digits", metric=EXPLAINED, symptoms=(*CRAWLING, "TM305"),
    cures=("insert-batchnorm", "replace-activation", "insert-residual"),
)  # fmt: skip
def sigmoids_to_the_code(sick: bool) -> Training:
    model = mlp(64, 48, 32, 16, 8, 16, 32, 48, 64, activation=nn.Sigmoid if sick else nn.ELU)
    data = digits()._replace(y=digits().x, val_y=digits().val_x)
    return Training(model, adam(model, 3e-3), data, nn.MSELoss(), epochs=14, batch=32)


@sick("TM203", "the group of the convolutions has a rate of zero", family="cnn", data="digits", also=("TM605",),
      symptoms=CRAWLING, cures=("unfreeze",))  # fmt: skip
def rate_of_zero(sick: bool) -> Training:
    model = cnn(norm=False)
    body = {"params": model[:-1].parameters(), "lr": 0.0 if sick else 0.05}  # type: ignore[index]
    optimizer = torch.optim.SGD([body, {"params": model[-1].parameters()}], 0.05, momentum=0.9)  # type: ignore[index]
    return Training(model, optimizer, digits(), epochs=6)


@sick("TM302", "tanh layers on grey values of 0 to 255", family="mlp", data="digits", also=("TM304",),
      symptoms=(*CRAWLING, "TM504", "TM501"), cures=("normalize-inputs", "insert-batchnorm"))  # fmt: skip
def tanh_on_grey_values(sick: bool) -> Training:
    model = mlp(64, 12, 12, 10, activation=nn.Tanh)
    data = digits().inputs(lambda x: x * 255) if sick else digits()
    return Training(model, adam(model, 3e-3), data, epochs=15)


@sick(
    "TM303", "weights of an autoencoder three times too large", family="autoencoder", data="china", metric=EXPLAINED,
    symptoms=(*CRAWLING, "TM202", "TM601"), cures=("reinitialize",),
)  # fmt: skip
def loud_autoencoder(sick: bool) -> Training:
    model = mlp(64, 64, 16, 64, 64)
    if sick:
        matrices(model, lambda weight: nn.init.normal_(weight, std=0.6))
    return Training(model, adam(model), china(), nn.MSELoss(), epochs=6)


@sick("TM304", "measures as they come, Adam", family="mlp", data="cancer", also=("TM601",),
      symptoms=("TM301", "TM305", *CRAWLING, "TM402", "TM403"),
      cures=("normalize-inputs", "insert-batchnorm"))  # fmt: skip
def measures_as_they_come(sick: bool) -> Training:
    model = mlp(30, 32, 2)
    return Training(model, adam(model, 3e-4), raw_cancer() if sick else cancer(), epochs=20, batch=32)


def drawn_together(apart: bool) -> Any:
    """A loss for two views of each sample, which may or may not push other samples apart."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        one, two = (model(batch[0] + 0.1 * torch.randn_like(batch[0])) for _ in range(2))
        if not apart:
            return F.mse_loss(one, two)
        alike = F.normalize(one) @ F.normalize(two).T / 0.2
        return F.cross_entropy(alike, torch.arange(len(one)))

    return objective


@torch.no_grad()
def recognised(t: Training) -> float:
    """Share of samples of the validation set that are nearest to another view of themselves."""
    x = t.tensors[0]
    generator = torch.Generator().manual_seed(0)
    one, two = (t.main(x + 0.1 * torch.randn(x.shape, generator=generator)) for _ in range(2))
    one, two = (view - view.mean(0) for view in (one, two))
    return float((torch.cdist(one, two).argmin(1) == torch.arange(len(x))).float().mean())


RECOGNISED = Metric("share recognised", "max", recognised, lambda t: 1 / len(t.tensors[0]))


@sick("TM305", "two views are pulled together, and nothing is pushed apart", family="mlp", data="digits",
      metric=RECOGNISED, symptoms=CRAWLING, onset=None)  # fmt: skip
def nothing_pushes_apart(sick: bool) -> Training:
    model = mlp(64, 64, 16)
    return Training(model, adam(model, 3e-3), digits(), objective=drawn_together(not sick), epochs=15)


@sick("TM306", "a momentum of zero: running statistics that never move", family="cnn", data="digits",
      symptoms=("TM504", "TM501"))  # fmt: skip
def momentum_of_zero(sick: bool) -> Training:
    model = cnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0 if sick else 0.1
    return Training(model, momentum(model, 0.02), digits().inputs(lambda x: x * 16), epochs=6)


@sick("TM601", "Adam at 0.3: it learns all the same, and badly", family="lstm", data="digits",
      symptoms=("TM302", "TM402", "TM403", "TM404", "TM502"),
      cures=("lower-learning-rate", "schedule-learning-rate"))  # fmt: skip
def hot_reader(sick: bool) -> Training:
    model = RowReader()
    return Training(model, adam(model, 0.3 if sick else 5e-3), digits(), epochs=15)


@sick(
    "TM603", "a warm-up of ten times the run", family="mlp", data="digits", symptoms=CRAWLING,
    cures=("raise-learning-rate", "find-learning-rate", "schedule-learning-rate"), onset=None,
)  # fmt: skip
def warm_up_for_ever(sick: bool) -> Training:
    model = mlp(64, 64, 10)
    training = Training(model, sgd(model, 0.1), digits(), epochs=15)
    return training.scheduled(torch.optim.lr_scheduler.LinearLR, 1e-3, 1.0, 3_000 if sick else 30)


@sick("TM604", "a decay of 0.3 inside Adam", family="mlp", data="diabetes", metric=EXPLAINED, also=("TM502",),
      symptoms=("TM305", *CRAWLING, "TM301"), cures=("weight-decay",), onset=None)  # fmt: skip
def decay_inside_adam(sick: bool) -> Training:
    model = mlp(10, 64, 64, 1)
    return Training(model, adam(model, 2e-3, weight_decay=0.3 if sick else 1e-3), diabetes(), nn.MSELoss(), epochs=30)


@sick("TM605", "a head drawn by hand, after the optimizer was made", family="cnn", data="digits", also=("TM203",),
      symptoms=CRAWLING, cures=("adopt-parameters",))  # fmt: skip
def head_drawn_by_hand(sick: bool) -> Training:
    model = cnn()
    early = adam(model)
    model[-1] = nn.Linear(64, 10)  # type: ignore[operator]
    nn.init.normal_(model[-1].weight, std=0.01)  # type: ignore[index]
    return Training(model, early if sick else adam(model), digits(), epochs=4)


@sick("TM801", "the disk was full for a third of the run", family="mlp", data="cancer", metric=LOGGED, onset=0.7)
def full_disk(sick: bool) -> Training:
    model = mlp(30, 32, 2)
    training = Training(model, adam(model, 3e-4), cancer(), epochs=40)
    third = training.steps // 3

    def log(medic: Any, loss: Tensor, step: int) -> None:
        if not (sick and third < step < 2 * third):
            medic.log(loss, step=step)
            training.notes.setdefault("logged", []).append(step)

    training.log = log
    return training


@healthy("eight tanh layers of the right gain", family="mlp", data="digits")
def deep_tanh() -> Training:
    model = xavier(mlp(64, *[48] * 8, 10, activation=nn.Tanh), 5 / 3)
    return Training(model, adam(model), digits(), epochs=15)


@healthy("a warm-up of half of the run", family="mlp", data="digits")
def long_warm_up() -> Training:
    model = mlp(64, 64, 10)
    training = Training(model, sgd(model, 0.2), digits(), epochs=15)
    return training.scheduled(torch.optim.lr_scheduler.LinearLR, 1e-2, 1.0, training.steps // 2)
