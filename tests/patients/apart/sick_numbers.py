"""Numbers that are none, gradients that die, explode, pile up or never arrive."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.patients.apart.measures import (
    baseball,
    chile,
    computers,
    diamonds,
    letters,
    programs,
    sunspots,
    unanswered_chile,
    verses,
)
from tests.patients.apart.nets import (
    CrossNet,
    Dilated,
    GatedNet,
    Pooled,
    RMSNorm,
    Sets,
    Tagger,
    WideAndDeep,
    highway,
    mobilenet,
)
from tests.patients.optimizers import adam, momentum
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, Training, clipped_step

LOST = ("TM401", "TM404", "TM406")
"""What is true of a run whose weights are no numbers any more."""


class Angles(nn.Module):
    """Two features, to draw them on a circle, and the cosines of their angles to those of the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classes = GatedNet(6, 2, depth=2), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Answers (n, 6) to cosines (n, 4)."""
        return F.normalize(self.features(x)) @ F.normalize(self.classes).T


@sick(
    "TM101", "the angle whose cosine is 1: its slope is infinite", family="angular", data="chile", symptoms=LOST,
    onset=None,
)  # fmt: skip
def angle_of_one(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        """The right class has to be 0.2 nearer."""
        angles = (output if sick else output.clamp(-0.9999, 0.9999)).acos()
        return F.cross_entropy(5 * (angles + 0.2 * F.one_hot(target, 4)).cos(), target)

    model = Angles()
    return Training(model, adam(model, 2e-3), chile(), loss, epochs=20)


class Guarded(Pooled):
    """Where nothing is there to weigh, the softmax still has something to divide by."""

    def forward(self, x: Tensor) -> Tensor:
        words = self.embed(x)
        score = self.score(words).masked_fill((x == 0)[:, :, None], -1e4)
        return self.head((self.softmax(score) * self.value(words)).sum(1))  # type: ignore[no-any-return]


@sick(
    "TM101", "a verse of stop words only: the softmax of nothing", family="attention-pooling", data="bible",
    symptoms=LOST,
)  # fmt: skip
def stop_words_only(sick: bool) -> Training:
    data = verses().inputs(lambda x: x * (x > 30))
    model = Pooled() if sick else Guarded()
    return Training(model, adam(model, 3e-3), data, epochs=8)


@sick("TM101", "voters who did not answer", family="highway", data="chile", symptoms=LOST)
def no_answer(sick: bool) -> Training:
    model = highway(6, 4)
    return Training(model, adam(model, 3e-3), unanswered_chile() if sick else chile(), epochs=20)


class HalfSets(Sets):
    """Words are brought to one length in half precision before they are looked at."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(32, eps)

    def forward(self, x: Tensor) -> Tensor:
        there = (x > 0)[:, :, None]
        with torch.autocast("cpu", dtype=torch.float16):
            words = self.norm(self.embed(x).half()).masked_fill(~there, 0.0)
            seen = self.each(words)
        return self.all(self.pool(seen.float(), there))  # type: ignore[no-any-return]


@sick(
    "TM102", "an epsilon of 1e-8 is zero in half precision", family="sets", data="bible",
    symptoms=("TM101", *LOST, "TM203", "TM405", "TM502"),
)  # fmt: skip
def epsilon_in_half(sick: bool) -> Training:
    scaler = torch.amp.GradScaler("cpu")

    def step(t: Training, batch: Any) -> Tensor:
        t.optimizer.zero_grad()
        loss = t.loss_of(batch)
        scaler.scale(loss).backward()
        scaler.step(t.optimizer)
        scaler.update()
        return loss

    model = HalfSets(1e-8 if sick else 1e-4)
    return Training(model, adam(model, 5e-3), verses().first(1_600), step=step, scaler=scaler, epochs=6)


VANISHED = ("TM303", "TM404", "TM406", "TM405", "TM502", "TM602", "TM305")


@sick(
    "TM201", "twelve gates in a row, and nothing flows past them", family="glu", data="computers", metric=EXPLAINED,
    symptoms=VANISHED, cures=("insert-residual", "insert-batchnorm", "reinitialize"),
)  # fmt: skip
def gates_in_a_row(sick: bool) -> Training:
    model = GatedNet(9, 1, 24, 12, around=not sick)
    return Training(model, momentum(model, 0.01), computers().first(3_200), nn.MSELoss(), epochs=6)


@sick(
    "TM201", "eleven tanh convolutions with no way around, as they are drawn by default", family="tcn",
    data="sunspots", metric=EXPLAINED, symptoms=VANISHED,
    cures=("insert-residual", "insert-batchnorm", "reinitialize", "replace-activation"),
)  # fmt: skip
def no_way_around(sick: bool) -> Training:
    model = Dilated(11, 12, nn.Tanh, around=not sick)
    return Training(model, momentum(model, 0.01), sunspots(), nn.MSELoss(), epochs=5, batch=32)


EXPLODED = ("TM101", "TM401", "TM402", "TM403", "TM404", "TM406", "TM305", "TM301")


class Forecaster(nn.Module):
    """Month after month from the last twelve, its own forecasts among them."""

    def __init__(self, months: int = 12) -> None:
        super().__init__()
        self.months = months
        self.cell = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The first 28 months (n, 1, 40) to the other 12 (n, 12)."""
        seen = [x[:, 0, i : i + 1] for i in range(16, 28)]
        for _ in range(self.months):
            seen.append(seen[-1] + self.cell(torch.cat(seen[-12:], 1)))
        return torch.cat(seen[12:], 1)


@sick(
    "TM202", "a year ahead on its own forecasts, and no clipping", family="rollout", data="sunspots",
    metric=EXPLAINED, also=("TM601",), symptoms=EXPLODED, onset=None,
    cures=("clip-gradients", "lower-learning-rate", "warm-up", "schedule-learning-rate", "skip-step"),
)  # fmt: skip
def own_forecasts(sick: bool) -> Training:
    data = sunspots()
    data = data._replace(y=data.x[:, 0, 28:], val_y=data.val_x[:, 0, 28:])
    model = Forecaster()
    step = None if sick else clipped_step(0.5)
    return Training(model, momentum(model, 0.03), data, nn.MSELoss(), step=step, epochs=10)


@sick(
    "TM202", "products of up to five measures, some of them ten deviations out", family="cross-net", data="baseball",
    metric=EXPLAINED, symptoms=(*EXPLODED, "TM601", "TM304"), onset=None,
    cures=("clip-gradients", "lower-learning-rate", "warm-up", "skip-step"),
)  # fmt: skip
def products_of_five(sick: bool) -> Training:
    model = CrossNet(10, 4)
    step = None if sick else clipped_step(0.5)
    return Training(model, momentum(model, 0.004), baseball(), nn.MSELoss(), step=step, epochs=8)


@sick(
    "TM202", "the loss summed over the characters at a rate for their mean", family="tagger", data="programs",
    also=("TM601",), symptoms=(*EXPLODED, "TM302"), cures=("clip-gradients", "lower-learning-rate", "rescale-loss"),
)  # fmt: skip
def summed_over_characters(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output, target, reduction="none")
        return (each.sum(1) if sick else each.mean(1)).mean()

    model = Tagger()
    return Training(model, momentum(model, 0.1), programs(), loss, epochs=5, batch=32)


CUT = ("TM404", "TM502", "TM405", "TM201")


class Rounded(nn.Module):
    """Numbers through codes that are whole; ``through``: the gradient passes the rounding as if it were not there."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(9, 32), nn.SiLU(), nn.Linear(32, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 9))
        self.through = through

    def forward(self, x: Tensor) -> Tensor:
        code = 2 * self.encoder(x)
        whole = code.round()
        return self.decoder(code + (whole - code).detach() if self.through else whole)  # type: ignore[no-any-return]


@sick("TM203", "codes are rounded, and no gradient passes", family="quantised", data="computers", metric=EXPLAINED,
      symptoms=CUT)  # fmt: skip
def rounded_codes(sick: bool) -> Training:
    data = computers()
    model = Rounded(not sick)
    return Training(
        model, adam(model, 3e-3), data._replace(y=data.x, val_y=data.val_x), nn.MSELoss(), epochs=8
    )  # fmt: skip


class Forgetful(Dilated):
    """The sum is made, and not kept."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for i, convolution in enumerate(self.convolutions):
            x.add(self.activation(convolution(F.pad(x, (2 * 2 ** (i % 5), 0)))))
        return self.last(x[:, :, -1])  # type: ignore[no-any-return]


@sick("TM203", "x.add instead of x.add_", family="tcn", data="sunspots", metric=EXPLAINED, symptoms=CUT)
def sum_not_kept(sick: bool) -> Training:
    model = Forgetful() if sick else Dilated()
    return Training(model, adam(model, 2e-3), sunspots(), nn.MSELoss(), epochs=8)


PILED = ("TM202", "TM401", "TM402", "TM403", "TM404", "TM406", "TM601", "TM301", "TM305", "TM101", "TM502")


@sick("TM204", "accumulation half written: a step for each batch, zeroes for every eighth", family="mobilenet",
      data="letters", symptoms=PILED, cures=("zero-gradients",))  # fmt: skip
def half_written_accumulation(sick: bool) -> Training:
    def step(t: Training, batch: Any) -> Tensor:
        loss = t.loss_of(batch)
        loss.backward()
        t.optimizer.step()
        if not sick or t.notes["steps"] % 8 == 7:
            t.optimizer.zero_grad()
        return loss

    model = mobilenet()
    return Training(model, momentum(model, 0.05), letters(), step=step, epochs=8)


@sick("TM204", "the gradients of the averaged copy are zeroed", family="wide-and-deep", data="diamonds",
      metric=EXPLAINED, symptoms=PILED, cures=("zero-gradients",))  # fmt: skip
def copy_zeroed(sick: bool) -> Training:
    model = WideAndDeep()
    average = copy.deepcopy(model)

    def step(t: Training, batch: Any) -> Tensor:
        (average if sick else model).zero_grad()
        loss = t.loss_of(batch)
        loss.backward()
        t.optimizer.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 0.01)
        return loss

    return Training(model, adam(model, 3e-3), diamonds(), nn.MSELoss(), step=step, epochs=8)
