"""Rates, schedules, penalties, optimizers that hold something else, and logs that hide what happened."""

import copy
from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.apart.measures import (
    baseball,
    chile,
    computers,
    letters,
    programs,
    sunspots,
    unanswered_chile,
    verses,
    volcano,
)
from tests.patients.apart.nets import (
    Bumps,
    DenseNet,
    Dilated,
    GatedNet,
    Rotary,
    Sets,
    Tagger,
    UNet,
    group_norm_net,
    highway,
    mobilenet,
)
from tests.patients.optimizers import adam, adamw, momentum, sgd
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, Data, Loader, Training, accuracy, plain_step, validation

SHAKEN = ("TM101", "TM202", "TM301", "TM302", "TM305", "TM401", "TM402", "TM403", "TM404", "TM406", "TM502", "TM205")
FASTER = ("raise-learning-rate", "find-learning-rate", "schedule-learning-rate")
SLOWER = ("lower-learning-rate", "find-learning-rate", "schedule-learning-rate")
CRAWLING = ("TM404", "TM405", "TM406", "TM502")


@sick("TM601", "ten times too fast for a transformer", family="rotary", data="programs",
      symptoms=SHAKEN, cures=(*SLOWER, "warm-up"))  # fmt: skip
def tenfold_transformer(sick: bool) -> Training:
    model = Rotary(128, 7, depth=1)
    return Training(model, adam(model, 0.1 if sick else 0.01), programs(), epochs=5)


@sick("TM601", "one cycle whose peak is that of another net", family="squeeze-excite", data="letters", symptoms=SHAKEN,
      cures=SLOWER, onset=0.05)  # fmt: skip
def peak_of_another_net(sick: bool) -> Training:
    model = mobilenet(norm=lambda channels: nn.GroupNorm(4, channels), squeeze=True)
    training = Training(model, momentum(model, 0.02), letters(), epochs=7)
    peak = 2.0 if sick else 0.1
    return training.scheduled(lr_scheduler.OneCycleLR, peak, total_steps=training.steps)


@sick("TM601", "bumps that jump from place to place", family="rbf", data="volcano", metric=EXPLAINED, symptoms=SHAKEN,
      cures=SLOWER)  # fmt: skip
def jumping_bumps(sick: bool) -> Training:
    model = Bumps()
    return Training(model, adam(model, 0.3 if sick else 0.02), volcano(), nn.MSELoss(), epochs=8)


@sick("TM602", "2e-5, as one fine-tunes, from scratch", family="tagger", data="programs", symptoms=CRAWLING,
      cures=FASTER)  # fmt: skip
def as_one_fine_tunes(sick: bool) -> Training:
    model = Tagger()
    return Training(model, adamw(model, 2e-5 if sick else 5e-3), programs(), epochs=4, batch=32)


def noisy(data: Data) -> Data:
    """Images with noise of 0.3, and the images themselves to find again."""
    generator = torch.Generator().manual_seed(0)
    x, val_x = (x + 0.3 * torch.randn(x.shape, generator=generator) for x in (data.x, data.val_x))
    return Data(x, data.x, val_x, data.val_x)


@sick("TM602", "Adadelta with the rate of Adam", family="u-net", data="letters", metric=EXPLAINED, symptoms=CRAWLING,
      cures=(*FASTER, "swap-optimizer"))  # fmt: skip
def adadelta_as_adam(sick: bool) -> Training:
    model = UNet()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1e-3 if sick else 1.0)
    return Training(model, optimizer, noisy(letters()).first(1_200), nn.MSELoss(), epochs=4)


@sick("TM602", "the loss weighed by a thousandth, one of many once", family="rbf",
      data="volcano", metric=EXPLAINED, symptoms=CRAWLING,
      cures=(*FASTER, "rescale-loss", "swap-optimizer"))  # fmt: skip
def weighed_by_a_thousandth(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (1e-3 if sick else 1.0) * F.mse_loss(output, target)

    model = Bumps()
    return Training(model, momentum(model, 0.05), volcano(), loss, epochs=8)


@sick("TM602", "a hundredth of what it needs, to be on the safe side", family="glu", data="baseball", metric=EXPLAINED,
      symptoms=CRAWLING, cures=(*FASTER, "swap-optimizer"))  # fmt: skip
def on_the_safe_side(sick: bool) -> Training:
    model = GatedNet(10, 1, depth=2)
    return Training(model, sgd(model, 2e-4 if sick else 0.02), baseball(), nn.MSELoss(), epochs=6)


@sick("TM603", "ReduceLROnPlateau told of every batch", family="densenet", data="letters",
      symptoms=("TM602", *CRAWLING), cures=FASTER, onset=None)  # fmt: skip
def plateau_by_batches(sick: bool) -> Training:
    model = DenseNet(norm=False)
    optimizer = adam(model, 3e-3)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer)

    def step(t: Training, batch: Any) -> Tensor:
        loss = plain_step(t, batch)
        if sick:
            scheduler.step(loss.item())
        return loss

    def validate(t: Training) -> dict[str, Any]:
        found = validation(t)
        if not sick:
            scheduler.step(found["loss"])
        return found

    return Training(model, optimizer, letters(), step=step, validate=validate, epochs=6)


@sick("TM603", "LambdaLR is given rates, and takes them as factors", family="sets", data="bible", also=("TM602",),
      symptoms=CRAWLING, cures=FASTER)  # fmt: skip
def rates_as_factors(sick: bool) -> Training:
    model = Sets()
    training = Training(model, adam(model, 5e-3), verses(), epochs=8)
    return training.scheduled(
        lr_scheduler.LambdaLR, lambda epoch: (5e-3 if sick else 1.0) * 0.9**epoch, per="epoch"
    )  # fmt: skip


@sick("TM603", "the better the accuracy, the lower the rate: mode='min'", family="groupnorm-cnn", data="letters",
      symptoms=("TM602", *CRAWLING), cures=FASTER, onset=None)  # fmt: skip
def accuracy_should_fall(sick: bool) -> Training:
    model = group_norm_net()
    optimizer = momentum(model, 0.02)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "min" if sick else "max", factor=0.1, patience=0)

    def validate(t: Training) -> dict[str, Any]:
        found = validation(t)
        scheduler.step(found["accuracy"])
        return found

    return Training(model, optimizer, letters(), validate=validate, epochs=8)


SHRUNK = ("TM305", "TM404", "TM406", "TM502", "TM201", "TM301")


@sick("TM604", "the absolute values of all weights added to the loss", family="densenet", data="letters",
      also=("TM502",), symptoms=SHRUNK, onset=None)  # fmt: skip
def all_weights_in_the_loss(sick: bool) -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(parameter.abs().sum() for parameter in model.parameters())
        return F.cross_entropy(model(batch[0]), batch[1]) + (1e-3 if sick else 1e-6) * penalty

    model = DenseNet(norm=False)
    return Training(model, adam(model, 3e-3), letters(), objective=objective, epochs=6)


@sick("TM604", "a decay of 0.05 for highways", family="highway", data="computers", metric=EXPLAINED, also=("TM502",),
      symptoms=SHRUNK, cures=("weight-decay",), onset=None)  # fmt: skip
def decayed_highways(sick: bool) -> Training:
    model = highway(9, 1)
    return Training(
        model, momentum(model, 0.02, weight_decay=0.05 if sick else 1e-4), computers(), nn.MSELoss(), epochs=8
    )  # fmt: skip


LEFT = ("TM404", "TM502", "TM405", "TM406")


@sick("TM605", "only the last layer is given to the optimizer, as for a net that was trained before", family="glu",
      data="volcano", metric=EXPLAINED, also=("TM203",), symptoms=LEFT, cures=("adopt-parameters",))  # fmt: skip
def last_layer_only(sick: bool) -> Training:
    model = GatedNet(2, 1, width=16, depth=3)
    optimizer = adam(model.last if sick else model, 3e-3)
    return Training(model, optimizer, volcano(), nn.MSELoss(), epochs=8)


class Listed(Dilated):
    """Its convolutions stand in a plain list, where nobody finds them."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = list(self.convolutions)
        del self.convolutions
        self.__dict__["convolutions"] = convolutions


@sick("TM605", "layers in a plain list", family="tcn", data="sunspots", metric=EXPLAINED, also=("TM203",),
      symptoms=LEFT)  # fmt: skip
def plain_list(sick: bool) -> Training:
    model = Listed() if sick else Dilated()
    return Training(model, adam(model, 2e-3), sunspots(), nn.MSELoss(), epochs=5)


class Lazy(nn.Module):
    """Makes its last layer when it first sees how much there is to flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.body = group_norm_net()[:-1]
        self.head: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 1, 16, 16) to logits."""
        x = self.body(x)
        if self.head is None:
            self.head = nn.Linear(x.shape[1], 26)
        return self.head(x)  # type: ignore[no-any-return]


@sick("TM605", "the last layer is made at the first batch, after the optimizer", family="groupnorm-cnn",
      data="letters", also=("TM203",), symptoms=LEFT, cures=("adopt-parameters",))  # fmt: skip
def made_at_the_first_batch(sick: bool) -> Training:
    model, data = Lazy(), letters()
    if not sick:
        model(data.x[:2])
    return Training(model, adam(model, 2e-3), data, epochs=5)


@sick("TM605", "all but the last layer put back as copies of the best, in mid-run", family="mobilenet",
      data="letters", also=("TM203",), symptoms=LEFT, cures=("adopt-parameters",), onset=0.2)  # fmt: skip
def put_back_as_copies(sick: bool) -> Training:
    model = mobilenet()

    def start_epoch(t: Training) -> None:
        t.model.train()
        if sick and t.notes["steps"] == len(t.loader):
            for i in range(len(model) - 1):
                model[i] = copy.deepcopy(model[i])

    return Training(model, adam(model, 1e-3), letters(), start_epoch=start_epoch, epochs=5)


HIDDEN = ("TM101", "TM401", "TM404", "TM406")


def accuracy_only(t: Training) -> dict[str, Any]:
    """All that is logged of the validation set."""
    t.main.eval()
    return {"accuracy": accuracy(t)}


class Second(Loader):
    """From the middle on the second file is read as well."""

    more: Data | None = None
    loaded = 0

    def load(self, rows: Tensor) -> list[Tensor]:
        self.loaded += 1
        x, y = super().load(rows)
        if self.more is None or self.loaded < 6 * len(self):
            return [x, y]
        other = rows[: len(rows) // 4]
        return [torch.cat([x, self.more.x[other]]), torch.cat([y, self.more.y[other]])]


@sick("TM802", "the mean of the last hundred losses that were numbers is logged", family="highway", data="chile",
      symptoms=HIDDEN, cures=("skip-step", "rewind"), onset=0.5)  # fmt: skip
def mean_of_the_last_numbers(sick: bool) -> Training:
    last: deque[float] = deque(maxlen=100)

    def log(medic: Any, loss: Tensor, step: int) -> None:
        if loss == loss:
            last.append(float(loss))
        medic.log(sum(last) / len(last))

    model, data = highway(6, 4), chile()
    loader = Second(data.x, data.y)
    loader.more = unanswered_chile() if sick else data
    return Training(model, adam(model, 3e-3), data, loader=loader, log=log, validate=accuracy_only, epochs=12)


@sick("TM802", "min(10, loss) is logged, and that of NaN is 10", family="mobilenet", data="letters",
      symptoms=(*HIDDEN, "TM402"), cures=("skip-step", "rewind"), onset=None)  # fmt: skip
def no_more_than_ten(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        right = (4 * output).softmax(1).gather(1, target[:, None])[:, 0]
        doubt = (1 - right + (0.0 if sick else 1e-3)).sqrt()
        return (F.cross_entropy(output, target, reduction="none") * doubt).mean()

    def log(medic: Any, loss: Tensor, step: int) -> None:
        medic.log(min(10.0, float(loss)))

    model = mobilenet()
    return Training(model, adam(model, 5e-3), letters(), loss, log=log, validate=accuracy_only, epochs=6)
