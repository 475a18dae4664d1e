"""Losses that are noisy, climb, jump, swing, stand still, crawl, stay at chance, or measure the wrong thing."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.apart.models import (
    Dilated,
    Fourier,
    Highway,
    Rotary,
    Siamese,
    Tagger,
    UNet,
    WideDeep,
    WordBag,
    denoiser,
    gated,
    maxout,
    mobile,
    squeezed,
    swish,
)
from tests.patients.apart.pairs import NEAREST, triplets
from tests.patients.apart.tables import (
    answers,
    cuts,
    gem_kinds,
    gems,
    hills,
    kinds,
    letters,
    program,
    suns,
    testaments,
    volcano,
)
from tests.patients.optimizers import adam, adamw, momentum
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, SKILL, Data, Loader, Training, clipped_step

# -- noise -------------------------------------------------------------------------------------------------------------


@sick(
    "TM205", "weights of samples with a long tail: a batch is one sample", family="swish", data="diamonds",
    metric=EXPLAINED, symptoms=("TM402", "TM403", "TM404", "TM202", "TM601"),
    cures=("clip-gradients", "lower-learning-rate", "schedule-learning-rate", "average-weights"),
)  # fmt: skip
def long_tail_of_weights(sick: bool) -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        x, y, seldom = batch[0], batch[1], batch[0][:, :6].square().sum(1)
        weight = (1.5 * seldom).exp().clamp_max(1e9) if sick else torch.ones(len(x))
        return (weight / weight.mean() * (model(x) - y).square()[:, 0]).mean()

    model = swish(23, 1)
    return Training(model, adam(model, 3e-3), gems(), objective=objective, epochs=8)


@sick(
    "TM205", "a policy's rewards of 20 and 21, from which nothing is subtracted", family="maxout", data="diamonds",
    symptoms=("TM403", "TM404", "TM405", "TM406", "TM601", "TM305", "TM503"),
    cures=("lower-learning-rate", "average-weights"),
)  # fmt: skip
def rewards_far_from_zero(sick: bool) -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        choice = torch.distributions.Categorical(logits=model(batch[0]))
        action = choice.sample()
        reward = 20 + (action == batch[1]).float()
        advantage = reward if sick else reward - reward.mean()
        return -(choice.log_prob(action) * advantage).mean()

    model = maxout(8, 5)
    return Training(model, adam(model, 2e-3), cuts(), objective=objective, epochs=12)


# -- climbs and jumps --------------------------------------------------------------------------------------------------

WRECKED = ("TM101", "TM202", "TM301", "TM304", "TM305", "TM402", "TM403", "TM404", "TM406", "TM601")


def returns(discount: float) -> Data:
    """Windows of 49 months, and the discounted sum of what comes from the 49th on."""
    data = suns()
    both = [torch.cat([x, y[:, :, None]], 2) for x, y in ((data.x, data.y), (data.val_x, data.val_y))]
    sums = []
    for y in (data.y, data.val_y):
        total, worth = torch.zeros(1), torch.empty_like(y)
        for i in range(len(y) - 1, -1, -1):
            total = y[i] + discount * total
            worth[i] = total
        sums.append(worth)
    return Data(both[0], sums[0], both[1], sums[1])


@sick(
    "TM401", "no discount: the net runs after its own forecasts", family="dilated", data="sunspots",
    metric=EXPLAINED, symptoms=WRECKED, cures=("rewind", "stop-early"), onset=None,
)  # fmt: skip
def no_discount(sick: bool) -> Training:
    class Worth(Dilated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :, :48])

    def objective(model: nn.Module, batch: Any) -> Tensor:
        now, then = batch[0], batch[0][:, :, 1:]
        with torch.no_grad():
            bound = then[:, 0, -1:] + (1.0 if sick else 0.5) * model(then)
        return F.mse_loss(model(now), bound)

    model = Worth()
    return Training(model, adam(model, 1e-3), returns(0.5), objective=objective, epochs=7)


@sick(
    "TM401", "one cycle whose peak was meant for another optimizer", family="gated", data="diamonds",
    also=("TM601", "TM603"), symptoms=WRECKED, cures=("lower-learning-rate", "schedule-learning-rate", "rewind"),
    onset=0.1,
)  # fmt: skip
def peak_of_another(sick: bool) -> Training:
    model = gated(8, 5)
    training = Training(model, momentum(model, 0.02), cuts(), step=clipped_step(5.0), epochs=8)
    return training.scheduled(lr_scheduler.OneCycleLR, 2.0 if sick else 0.1, total_steps=training.steps)


@sick(
    "TM402", "six prices in cents: whenever one is met the net is thrown", family="wide-deep", data="diamonds",
    metric=EXPLAINED, also=("TM304",), symptoms=("TM202", "TM205", "TM403", "TM404", "TM601"),
    cures=("skip-step", "clip-gradients"),
)  # fmt: skip
def prices_in_cents(sick: bool) -> Training:
    data, model = gem_kinds(), WideDeep()
    if sick:
        wrong = data.y.clone()
        wrong[::1_000] = 100 * (wrong[::1_000].abs() + 1)
        data = data._replace(y=wrong)
    return Training(model, momentum(model, 0.01), data, nn.MSELoss(), epochs=12)


class Shifted(Loader):
    """One part of the files has labels that belong to the next sample."""

    part: tuple[float, float] = (1.0, 1.0)
    total = 1
    loaded = 0

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        self.loaded += 1
        if self.part[0] * self.total < self.loaded <= self.part[1] * self.total:
            y = y.roll(1, 0)
        return [x, y]


@sick(
    "TM402", "late in the run a file whose labels are one row off", family="mobilenet", data="letters",
    symptoms=("TM202", "TM401", "TM404", "TM504", "TM403", "TM406"), cures=("skip-step", "rewind", "clip-gradients"),
    onset=0.86,
)  # fmt: skip
def one_row_off(sick: bool) -> Training:
    model, data = mobile(), letters()
    loader = Shifted(data.x, data.y)
    training = Training(model, momentum(model, 0.02), data, epochs=7, loader=loader)
    loader.part, loader.total = (0.86, 0.94) if sick else (1.0, 1.0), training.steps
    return training


# -- swings ------------------------------------------------------------------------------------------------------------


@sick(
    "TM403", "files of two annotators in turn, who number the classes differently", family="maxout", data="diamonds",
    symptoms=("TM205", "TM402", "TM404", "TM406", "TM502", "TM504", "TM601"),
)  # fmt: skip
def two_annotators(sick: bool) -> Training:
    class Files(Loader):
        loaded = 0

        def load(self, rows: Tensor) -> list[Tensor]:
            x, y = super().load(rows)
            self.loaded += 1
            return [x, (y + 2) % 5 if sick and (self.loaded - 1) // 30 % 2 else y]

    model, data = maxout(8, 5), cuts()
    return Training(model, momentum(model, 0.02), data, epochs=9, loader=Files(data.x, data.y))


@sick(
    "TM403", "a busy server applies the gradients of twenty-five steps before", family="gated", data="diamonds",
    also=("TM601",), symptoms=("TM205", "TM401", "TM402", "TM404", "TM406", "TM502", "TM202"),
    cures=("lower-learning-rate", "schedule-learning-rate"),
)  # fmt: skip
def gradients_of_before(sick: bool) -> Training:
    waiting: list[list[Tensor | None]] = []

    def step(t: Training, batch: Any) -> Tensor:
        t.optimizer.zero_grad()
        loss = t.loss_of(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if not sick:
            t.optimizer.step()
            return loss
        waiting.append([parameter.grad for parameter in t.model.parameters()])
        if len(waiting) > 25:
            for parameter, gradient in zip(t.model.parameters(), waiting.pop(0), strict=True):
                parameter.grad = gradient
            t.optimizer.step()
        return loss

    model = gated(8, 5, 16)
    return Training(model, adam(model, 5e-3), cuts(), step=step, epochs=8)


# -- stands still ------------------------------------------------------------------------------------------------------

CUT_CURES = ("raise-learning-rate", "find-learning-rate", "schedule-learning-rate")


@sick(
    "TM404", "a rate that is lowered on plateaus asks after every batch", family="unet", data="hills",
    metric=EXPLAINED, also=("TM603", "TM602"), symptoms=("TM405", "TM502"), cures=CUT_CURES, onset=None,
)  # fmt: skip
def asks_after_every_batch(sick: bool) -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0] + 0.3 * torch.randn_like(batch[0])), batch[1])

    def step(t: Training, batch: Any) -> Tensor:
        t.optimizer.zero_grad()
        loss = t.loss_of(batch)
        loss.backward()
        t.optimizer.step()
        if sick:
            lowered.step(loss.item())
        return loss

    model = UNet(norm=False)
    training = Training(model, adam(model, 2e-3), hills(), objective=objective, step=step, epochs=7, batch=32)
    lowered = lr_scheduler.ReduceLROnPlateau(training.optimizer, patience=5)
    return training


@sick(
    "TM404", "the hardest triplets from the start: all pictures fall onto one point", family="siamese", data="letters",
    metric=NEAREST, also=("TM305", "TM406"), symptoms=("TM201", "TM502", "TM405", "TM303"), cures=(), onset=None,
)  # fmt: skip
def hardest_triplets(sick: bool) -> Training:
    model = Siamese()
    return Training(model, adam(model, 2e-3), letters(), objective=triplets(sick), epochs=8)


@sick(
    "TM404", "a flood level far above what can be reached: below it the loss is driven up again", family="highway",
    data="diamonds", also=("TM502",), symptoms=("TM403", "TM405", "TM407", "TM205"), onset=None,
)  # fmt: skip
def flooded(sick: bool) -> Training:
    level = 1.05 if sick else 0.05

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (F.cross_entropy(output, target) - level).abs() + level

    model = Highway(8, 5)
    return Training(model, adam(model, 2e-3), cuts(), loss, epochs=8)


# -- crawls ------------------------------------------------------------------------------------------------------------

SLOW = ("TM404", "TM406", "TM502")
SLOW_CURES = ("raise-learning-rate", "find-learning-rate", "swap-optimizer")


@sick(
    "TM405", "everything in bfloat16: what an update adds is rounded away", family="swish", data="diamonds",
    metric=EXPLAINED, also=("TM602",), symptoms=("TM203", "TM404", "TM502"),
    cures=("raise-learning-rate", "find-learning-rate"),
)  # fmt: skip
def rounded_away(sick: bool) -> Training:
    kind = torch.bfloat16 if sick else torch.float32

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = swish(23, 1).to(kind)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.to(kind)).float()  # type: ignore[no-any-return]

    model = Coarse()
    return Training(model, adam(model, 1e-4), gems(), nn.MSELoss(), epochs=10)


@sick(
    "TM405", "a mean that is divided by the size of the batch once more", family="fourier", data="volcano",
    metric=EXPLAINED, also=("TM602",), symptoms=SLOW, cures=(*SLOW_CURES, "rescale-loss"),
)  # fmt: skip
def divided_twice(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        error = F.mse_loss(output, target)
        return error / len(target) if sick else error

    model = Fourier()
    return Training(model, momentum(model, 0.02), volcano(), loss, epochs=12)


@sick(
    "TM405", "the warm-up of a large model: ten thousand steps", family="rotary", data="sources", metric=SKILL,
    also=("TM602", "TM603"), symptoms=SLOW, cures=(*SLOW_CURES, "schedule-learning-rate"),
)  # fmt: skip
def warm_up_of_another(sick: bool) -> Training:
    model = Rotary()
    training = Training(model, adamw(model, 4e-3), program(), epochs=3, batch=40)
    return training.scheduled(lr_scheduler.LambdaLR, lambda step: min(1.0, (step + 1) / (10_000 if sick else 40)))


# -- stays at chance, measures the wrong thing -------------------------------------------------------------------------


class Late(Loader):
    """Reads ahead, and mixes up what it has read: the labels are those of the batch before."""

    late = False
    before: Any = None

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        labels = self.before if self.late and self.before is not None else y
        self.before = y
        return [x, labels]


@sick(
    "TM406", "a loader that reads ahead gives the labels of the batch before", family="highway", data="diamonds",
    also=("TM504",), symptoms=("TM404", "TM502", "TM305", "TM503"),
)  # fmt: skip
def labels_of_the_batch_before(sick: bool) -> Training:
    data, model = cuts(), Highway(8, 5)
    loader = Late(data.x, data.y)
    loader.late = sick
    return Training(model, adam(model, 2e-3), data, epochs=7, loader=loader)


class Salted(Loader):
    """Numbers words by a hash whose salt is another in every process that reads, and those start anew each epoch."""

    salted = False

    def __iter__(self) -> Any:
        self.salts = [torch.randperm(1_999) + 1 for _ in range(4)]
        return super().__iter__()

    def load(self, rows: Tensor) -> list[Tensor]:
        x, y = super().load(rows)
        self.worker = (getattr(self, "worker", -1) + 1) % 4
        if self.salted:
            x = torch.where(x > 0, self.salts[self.worker][x - 1], 0)
        return [x, y]


@sick(
    "TM406", "words are numbered by a hash that is salted anew in every reading process", family="deep-sets",
    data="bible", also=("TM504",), symptoms=("TM404", "TM502", "TM305"),
)  # fmt: skip
def salted_words(sick: bool) -> Training:
    data, model = testaments(), WordBag(drop=0.2)
    loader = Salted(data.x, data.y)
    loader.salted = sick
    return Training(model, adam(model, 2e-3), data, epochs=6, loader=loader)


@sick(
    "TM407", "a divergence that wants logarithms is given probabilities", family="squeeze-excite", data="letters",
    symptoms=("TM201", "TM404", "TM405", "TM406", "TM502", "TM602"),
)  # fmt: skip
def divergence_of_probabilities(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        wanted = 0.9 * F.one_hot(target, 26) + 0.1 / 26
        return F.kl_div(output.softmax(1) if sick else output.log_softmax(1), wanted, reduction="batchmean")

    model = squeezed()
    return Training(model, momentum(model, 0.05), letters(), loss, epochs=6)


@sick(
    "TM407", "the sigmoid of a template after the last layer, and standardised targets", family="denoiser",
    data="answers", metric=EXPLAINED, symptoms=("TM302", "TM404", "TM502", "TM201", "TM406"),
)  # fmt: skip
def sigmoid_of_a_template(sick: bool) -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0] + 0.5 * torch.randn_like(batch[0])), batch[1])

    model = nn.Sequential(denoiser(), nn.Sigmoid() if sick else nn.Identity())
    return Training(model, adam(model, 2e-3), answers(), objective=objective, epochs=16)


@sick(
    "TM407", "view instead of transpose: kinds and places are mixed up", family="tagger", data="sources",
    symptoms=("TM404", "TM405", "TM406", "TM502"),
)  # fmt: skip
def viewed_not_transposed(sick: bool) -> Training:
    class Mixed(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            told = self.head(self.rnn(self.letters(x))[0])
            return told.reshape(len(x), 6, -1) if sick else told.transpose(1, 2)  # type: ignore[no-any-return]

    model = Mixed()
    return Training(model, adam(model, 5e-3), kinds(), epochs=6, step=clipped_step(1.0))
