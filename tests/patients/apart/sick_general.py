"""What the training set shows is not what validation shows, or neither shows much."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.patients.apart.models import Bumps, Factors, WordBag, WordModel, gated, maxout, spelt, squeezed, swish
from tests.patients.apart.tables import (
    cartoons,
    gems,
    genesis,
    letters,
    proper_names,
    ratings,
    testaments,
    volcano,
)
from tests.patients.optimizers import adam, adamw
from tests.patients.patient import sick
from tests.patients.training import BALANCED, EXPLAINED, SKILL, Loader, Training, plain_step

# -- learnt by heart ---------------------------------------------------------------------------------------------------

FITTED = ("TM504", "TM205")
FIT_CURES = ("stop-early", "weight-decay", "dropout", "label-smoothing", "l1")


@sick(
    "TM501", "a vector for every word, and 600 verses", family="deep-sets", data="bible", symptoms=FITTED,
    cures=FIT_CURES, onset=None,
)  # fmt: skip
def six_hundred_verses(sick: bool) -> Training:
    data, model = testaments(), WordBag()
    data = data.first(600) if sick else data.first(6_000)
    return Training(model, adam(model, 3e-3), data, epochs=30 if sick else 4, batch=32 if sick else 64)


@sick(
    "TM501", "factors of thirty-two numbers, nothing that holds them", family="factors", data="lectures",
    metric=EXPLAINED, symptoms=FITTED, cures=FIT_CURES, onset=None,
)  # fmt: skip
def factors_unheld(sick: bool) -> Training:
    model = Factors(32 if sick else 2, 0.1)
    epochs = 8 if sick else 2
    return Training(model, adam(model, 5e-3), ratings(), nn.MSELoss(), epochs=epochs, batch=256)


@sick(
    "TM501", "a chapter read forty times", family="word-model", data="bible", metric=SKILL, symptoms=FITTED,
    cures=FIT_CURES, onset=None,
)  # fmt: skip
def chapter_by_heart(sick: bool) -> Training:
    model = WordModel()
    data = genesis().first(200) if sick else genesis()
    return Training(model, adam(model, 1e-2), data, epochs=32 if sick else 2, batch=25 if sick else 32)


# -- not learnt --------------------------------------------------------------------------------------------------------

SMALL = ("TM404", "TM405", "TM305", "TM406")


@sick(
    "TM502", "one bell for a volcano", family="rbf", data="volcano", metric=EXPLAINED, symptoms=SMALL
)  # fmt: skip
def one_bell(sick: bool) -> Training:
    model = Bumps(2, 1, 1 if sick else 64)
    return Training(model, adam(model, 1e-2), volcano(), nn.MSELoss(), epochs=10)


@sick(
    "TM502", "weights cut to 0.06 after every step, as a critic's are", family="gated", data="diamonds",
    metric=EXPLAINED, also=("TM604",), symptoms=(*SMALL, "TM201", "TM203"),
)  # fmt: skip
def weights_cut(sick: bool) -> Training:
    def step(t: Training, batch: Any) -> Tensor:
        loss = plain_step(t, batch)
        if sick:
            with torch.no_grad():
                for parameter in t.model.parameters():
                    parameter.clamp_(-0.06, 0.06)
        return loss

    model = gated(23, 1)
    return Training(model, adam(model, 2e-3), gems(), nn.MSELoss(), step=step, epochs=7)


# -- the few and the many ----------------------------------------------------------------------------------------------

FEW = ("TM501", "TM504", "TM305", "TM404")


@sick(
    "TM503", "one film in fifteen is a cartoon, and nobody weighs them", family="maxout", data="films",
    metric=BALANCED, symptoms=FEW, cures=("reweight-classes",),
)  # fmt: skip
def unweighted_cartoons(sick: bool) -> Training:
    data, model = cartoons().inputs(lambda x: x[:, [0, 2, 3]]), maxout(3, 2)
    loss = nn.CrossEntropyLoss(None if sick else torch.tensor([1.0, 14.0]))
    return Training(model, adam(model, 2e-3), data, loss, epochs=6)


class Drawn(Loader):
    """Draws each sample as often as the weight of its class says."""

    weights = (1.0, 1.0)

    def __iter__(self) -> Any:
        self.shares = torch.tensor(self.weights)[self.dataset.tensors[1]]
        return super().__iter__()

    def load(self, rows: Tensor) -> list[Tensor]:
        return super().load(torch.multinomial(self.shares, len(rows), replacement=True))


@sick(
    "TM503", "a sampler that is given the counts of the classes, not one by them", family="speller",
    data="dictionary", metric=BALANCED, symptoms=FEW, cures=("reweight-classes",),
)  # fmt: skip
def counts_not_one_by_them(sick: bool) -> Training:
    data, model = proper_names(), spelt(width=16)
    counts = torch.bincount(data.y).float()
    loader = Drawn(data.x, data.y)
    loader.weights = tuple((counts if sick else 1 / counts).tolist())
    return Training(model, adamw(model, 2e-3, weight_decay=0.1), data, epochs=5, loader=loader)


# -- two yardsticks ----------------------------------------------------------------------------------------------------


class InPlace(Loader):
    """Cuts views out of the data, and whoever changes a batch changes the data."""

    noise, kept = 0.0, False

    def load(self, rows: Tensor) -> list[Tensor]:
        start = int(rows[0])
        x, y = (tensor[start : start + len(rows)] for tensor in self.dataset.tensors)
        x = x if self.kept else x.clone()
        x += self.noise * torch.randn_like(x)
        return [x, y]


@sick(
    "TM504", "noise added in place stays in the training data, and is learnt by heart", family="squeeze-excite",
    data="letters", also=("TM501",), symptoms=("TM304", "TM402", "TM404", "TM405", "TM401", "TM502"),
    cures=("stop-early",), onset=None,
)  # fmt: skip
def noise_that_stays(sick: bool) -> Training:
    data, model = letters(), squeezed()
    loader = InPlace(data.x.clone(), data.y, 64, shuffle=False)
    loader.noise, loader.kept = 0.35 if sick else 0.2, sick
    return Training(model, adam(model, 3e-3), data, epochs=10, loader=loader)


@sick(
    "TM504", "the words of validation are numbered by their own counts", family="deep-sets", data="bible",
    symptoms=("TM501",),
)  # fmt: skip
def numbered_anew(sick: bool) -> Training:
    data, model = testaments(), WordBag(drop=0.2)
    if sick:
        common = torch.bincount(data.val_x.flatten(), minlength=2_000)
        common[0] = len(data.val_x) * 16
        number = torch.empty_like(common)
        number[common.argsort(descending=True, stable=True)] = torch.arange(2_000)
        data = data._replace(val_x=number[data.val_x])
    return Training(model, adam(model, 2e-3), data, epochs=6)


@sick(
    "TM504", "logarithms of prices to train on, prices to validate on", family="swish", data="diamonds",
    metric=EXPLAINED, symptoms=("TM501",),
)  # fmt: skip
def prices_and_logarithms(sick: bool) -> Training:
    data, model = gems(), swish(23, 1)
    if sick:
        prices = data.val_y.exp()
        data = data._replace(val_y=(prices - prices.mean()) / prices.std())
    return Training(model, adam(model, 1e-3), data, nn.MSELoss(), epochs=8)
