"""Healthy runs: ordinary good trainings with ordinary settings, of many architectures."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.apart.models import (
    Bumps,
    Dense,
    Dilated,
    Factors,
    Flow,
    Fourier,
    Highway,
    Mixture,
    Neighbours,
    Perceiver,
    Rotary,
    Sequences,
    Tagger,
    UNet,
    WideDeep,
    WordBag,
    WordModel,
    denoiser,
    gated,
    likelihood,
    maxout,
    mobile,
    spelt,
    squeezed,
    swish,
)
from tests.patients.apart.tables import (
    answers,
    cuts,
    films,
    gem_kinds,
    gems,
    genesis,
    hills,
    kinds,
    letters,
    program,
    proper_names,
    quakes,
    ratings,
    spellings,
    suns,
    testaments,
    tissues,
    volcano,
)
from tests.patients.optimizers import adam, adamw, momentum
from tests.patients.patient import healthy
from tests.patients.training import BALANCED, EXPLAINED, SKILL, Metric, Training, clipped_step


def noisy(amount: float) -> Any:
    """The squared error of what is made of noisy inputs; validation too is noisy."""

    def objective(model: nn.Module, batch: Any) -> Tensor:
        return F.mse_loss(model(batch[0] + amount * torch.randn_like(batch[0])), batch[1])

    return objective


@healthy("nothing at all: a U-Net that takes noise away", family="unet", data="hills", metric=EXPLAINED)
def noise_taken_away() -> Training:
    model = UNet()
    return Training(model, adam(model, 2e-3), hills(), objective=noisy(0.3), epochs=5, batch=32)


@healthy("nothing at all: densely connected convolutions", family="densenet", data="letters")
def plain_dense() -> Training:
    model = Dense()
    return Training(model, adamw(model, 3e-3), letters(), epochs=7)


@healthy("nothing at all: separable convolutions", family="mobilenet", data="letters")
def plain_mobile() -> Training:
    model = mobile()
    training = Training(model, adamw(model, 5e-3, weight_decay=0.02), letters(), epochs=9)
    return training.scheduled(lr_scheduler.CosineAnnealingLR, training.steps)


@healthy("nothing at all: channels squeezed and excited, group norm", family="squeeze-excite", data="letters")
def plain_squeezed() -> Training:
    model = squeezed()
    return Training(model, adam(model, 2e-3), letters(), epochs=8)


@healthy("nothing at all: latent vectors that look at a picture", family="perceiver", data="letters")
def plain_perceiver() -> Training:
    model = Perceiver()
    training = Training(model, adamw(model, 3e-3, weight_decay=0.01), letters(), epochs=10)
    end = training.steps // 10
    return training.scheduled(lr_scheduler.LambdaLR, lambda step: min(1.0, (step + 1) / end))


@healthy("nothing at all: a highway net prices diamonds", family="highway", data="diamonds", metric=EXPLAINED)
def plain_highway() -> Training:
    model = Highway(23, 1)
    return Training(model, adam(model, 1e-3), gems(), nn.MSELoss(), epochs=10)


@healthy("nothing at all: tables of vectors for kinds", family="wide-deep", data="diamonds", metric=EXPLAINED)
def plain_wide_and_deep() -> Training:
    model = WideDeep()
    return Training(model, adam(model, 3e-3), gem_kinds(), nn.MSELoss(), epochs=12)


@healthy("nothing at all: maxout tells the cut of a diamond", family="maxout", data="diamonds")
def plain_maxout() -> Training:
    model = maxout(8, 5)
    return Training(model, momentum(model, 0.02), cuts(), epochs=12)


@healthy("nothing at all: gated units", family="gated", data="biopsies")
def plain_gated() -> Training:
    model = gated(9, 2, width=16)
    return Training(model, adam(model, 1e-3), tissues(), epochs=40, batch=32)


@healthy("nothing at all: SiLU and RMSNorm, films above the average", family="swish", data="films")
def plain_swish() -> Training:
    model = swish(9, 2)
    return Training(model, adamw(model, 1e-3, weight_decay=0.05), films(), epochs=6)


@healthy("nothing at all: dilated convolutions over months", family="dilated", data="sunspots", metric=EXPLAINED)
def plain_dilated() -> Training:
    model = Dilated()
    return Training(model, adam(model, 1e-3), suns(), nn.MSELoss(), epochs=12)


@healthy("nothing at all: characters tagged", family="tagger", data="sources")
def plain_tagger() -> Training:
    model = Tagger()
    return Training(model, adam(model, 5e-3), kinds(), epochs=6, batch=64, step=clipped_step(1.0))


@healthy("nothing at all: words written backwards", family="seq2seq", data="dictionary")
def plain_sequences() -> Training:
    model = Sequences()
    return Training(model, adam(model, 3e-3), spellings(), epochs=6, step=clipped_step(1.0))


@healthy("nothing at all: bags of words", family="deep-sets", data="bible")
def plain_bags() -> Training:
    model = WordBag(drop=0.2)
    return Training(model, adam(model, 2e-3), testaments(), epochs=6)


@healthy("nothing at all: a model of words with tied tables", family="word-model", data="sources", metric=SKILL)
def plain_words() -> Training:
    model = WordModel(drop=0.1)
    return Training(model, adam(model, 5e-3), program(), epochs=3, batch=40, step=clipped_step(1.0))


@healthy("nothing at all: a small transformer, warm-up and cosine", family="rotary", data="bible", metric=SKILL)
def plain_rotary() -> Training:
    model = Rotary()
    training = Training(model, adamw(model, 5e-3, weight_decay=0.1), genesis(), epochs=3, batch=32)
    return training.scheduled(lr_scheduler.OneCycleLR, 5e-3, total_steps=training.steps, pct_start=0.1)


@healthy("nothing at all: bells at places that are learnt", family="rbf", data="volcano", metric=EXPLAINED)
def plain_bumps() -> Training:
    model = Bumps(2, 1)
    return Training(model, adam(model, 1e-2), volcano(), nn.MSELoss(), epochs=10)


@healthy("nothing at all: a map seen through waves", family="fourier", data="volcano", metric=EXPLAINED)
def plain_waves() -> Training:
    model = Fourier()
    return Training(model, adam(model, 2e-3), volcano(), nn.MSELoss(), epochs=12)


@healthy("nothing at all: answers hidden by noise", family="denoiser", data="answers", metric=EXPLAINED)
def plain_denoiser() -> Training:
    model = denoiser()
    return Training(model, adam(model, 2e-3), answers(), objective=noisy(0.5), epochs=20)


def gain(t: Training) -> float:
    """1 - negative log-likelihood / that of independent normal distributions."""
    data = t.tensors[0]
    independent = 0.5 * (data.square() + 1.8379).sum(1).mean()
    return float(t.main(data).mean() + independent) / float(independent)


@healthy(
    "a flow: the loss is a density, and may have any sign", family="flow", data="answers",
    metric=Metric("gain over independence", "max", gain, learnt=0.05),
)  # fmt: skip
def density() -> Training:
    model = Flow()
    return Training(
        model, adam(model, 1e-3), answers(), objective=lambda model, batch: -model(batch[0]).mean(), epochs=15
    )  # fmt: skip


@healthy("a mixture of normals: the loss goes below zero", family="mixture", data="quakes", metric=EXPLAINED)
def below_zero() -> Training:
    model = Mixture(4)
    return Training(model, adam(model, 5e-3), quakes(), objective=likelihood, epochs=30, batch=50)


@healthy("graph convolutions over full batches", family="graph", data="quakes", metric=EXPLAINED)
def neighbours() -> Training:
    model = Neighbours(4)
    return Training(model, adam(model, 3e-3), quakes(), nn.MSELoss(), epochs=150, batch=800)


@healthy(
    "marks by people whom one hardly knows: nine tenths of the variance is noise", family="factors", data="lectures",
    metric=Metric("explained variance", "max", EXPLAINED.score, learnt=0.06),
)  # fmt: skip
def marks() -> Training:
    model = Factors(4, 0.05)
    return Training(model, adam(model, 5e-3, weight_decay=1e-4), ratings(), nn.MSELoss(), epochs=1, batch=64)


@healthy("one word in seven is a name: imbalanced, and learnt all the same", family="speller", data="dictionary",
         metric=BALANCED)  # fmt: skip
def names_weighted() -> Training:
    model = spelt(width=16)
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 4.0]))
    return Training(model, adamw(model, 2e-3, weight_decay=0.1), proper_names(), loss, epochs=6)
