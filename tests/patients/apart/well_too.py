"""Healthy runs that look like something else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.apart.models import (
    Bumps,
    Fourier,
    Highway,
    Rotary,
    Siamese,
    WideDeep,
    denoiser,
    gated,
    maxout,
    mobile,
    spelt,
    swish,
)
from tests.patients.apart.pairs import NEAREST, triplets
from tests.patients.apart.tables import (
    answers,
    cuts,
    films,
    gem_kinds,
    gems,
    genesis,
    letters,
    priced_gems,
    proper_names,
    testaments,
    tissues,
    volcano,
)
from tests.patients.optimizers import adam, adamw, momentum, sgd
from tests.patients.patient import healthy
from tests.patients.training import BALANCED, EXPLAINED, SKILL, Loader, Training, accumulating_step


@healthy("converged: most of the run the rate, and the loss, stand still", family="rbf", data="volcano",
         metric=EXPLAINED)  # fmt: skip
def long_tail_of_a_cosine() -> Training:
    model = Bumps(2, 1, 48)
    training = Training(model, adam(model, 2e-2), volcano(), nn.MSELoss(), epochs=16)
    return training.scheduled(lr_scheduler.CosineAnnealingLR, training.steps)


@healthy("converged: tiny data, decay, nothing to be gained for most of the run", family="maxout", data="biopsies")
def soon_through() -> Training:
    model = maxout(9, 2, 8)
    return Training(model, adamw(model, 3e-3, weight_decay=0.3), tissues(), epochs=60, batch=50)


@healthy("a cyclical rate: the loss goes up and down", family="highway", data="diamonds", metric=EXPLAINED)
def rate_to_and_fro() -> Training:
    model = Highway(23, 1, 24, 3)
    training = Training(model, momentum(model, 0.01), gems(), nn.MSELoss(), epochs=8)
    return training.scheduled(lr_scheduler.CyclicLR, 0.002, 0.1, step_size_up=60)


@healthy("restarts of the rate, at which the loss jumps", family="maxout", data="diamonds")
def rate_restarted() -> Training:
    model = maxout(8, 5)
    training = Training(model, momentum(model, 0.08), cuts(), epochs=12)
    return training.scheduled(lr_scheduler.CosineAnnealingWarmRestarts, 186, 2)


@healthy("a warm-up over half of the run: slow at first", family="fourier", data="volcano", metric=EXPLAINED)
def slow_warm_up() -> Training:
    model = Fourier()
    training = Training(model, adam(model, 5e-3), volcano(), nn.MSELoss(), epochs=10)
    half = training.steps // 2
    return training.scheduled(lr_scheduler.LambdaLR, lambda step: min(1.0, (step + 1) / half))


@healthy("adversarial: trained on inputs that are made as hard as may be", family="gated", data="biopsies")
def hard_inputs() -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        if model.training:
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
            x = (x + 0.1 * slope.sign()).detach()
        return F.cross_entropy(model(x), y)

    model = gated(9, 2, 16)
    return Training(model, adam(model, 2e-3), tissues(), objective=objective, epochs=50, batch=50)


@healthy("sparse: two thousand inputs, sixteen of which are not zero", family="swish", data="bible")
def sparse_inputs() -> Training:
    data = testaments().inputs(lambda x: torch.zeros(len(x), 2_000).scatter_(1, x, 1.0)[:, 1:])
    model = nn.Sequential(nn.Linear(1_999, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    return Training(model, adamw(model, 3e-3), data, epochs=4)


@healthy("batches of four: the loss is noise to the eye", family="wide-deep", data="diamonds", metric=EXPLAINED)
def four_diamonds_a_step() -> Training:
    model = WideDeep(24)
    return Training(model, adam(model, 2e-3), gem_kinds(), nn.MSELoss(), epochs=1, batch=4)


@healthy("dropout and decay: training looks far worse than validation", family="maxout", data="diamonds")
def held_back() -> Training:
    model = maxout(8, 5, 48, drop=0.4)
    return Training(model, adamw(model, 2e-3, weight_decay=0.2), cuts(), epochs=9)


@healthy("fine-tuning: what was learnt of fewer classes is frozen", family="highway", data="diamonds")
def frozen_depths() -> Training:
    model, data = Highway(8, 2), cuts()
    before, losses = adam(model, 3e-3), nn.CrossEntropyLoss()
    for x, y in Loader(data.x, data.y):  # what was learnt before: the better and the worse cuts
        before.zero_grad()
        losses(model(x), (y < 2).long()).backward()
        before.step()
    for parameter in model.parameters():
        parameter.requires_grad_(False).grad = None
    model.last = nn.Linear(32, 5)
    return Training(model, adam(model, 5e-3), data, epochs=10)


@healthy("two tasks: the loss is mostly that of the other one", family="swish", data="answers", metric=EXPLAINED)
def answers_and_sums() -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        made = model(x + 0.3 * torch.randn_like(x))
        return F.mse_loss(made, y) + 10 * F.mse_loss(made.mean(1), y.mean(1)) + F.l1_loss(made[:, :5], y[:, :5])

    model = swish(25, 25)
    return Training(model, adam(model, 2e-3), answers(), objective=objective, epochs=20)


@healthy("contrastive: the loss falls little, and no class is told", family="siamese", data="letters", metric=NEAREST)
def alike_and_not() -> Training:
    model = Siamese()
    return Training(model, adam(model, 2e-3), letters(), objective=triplets(False), epochs=6)


@healthy("smoothed labels: the loss has a high floor", family="maxout", data="diamonds")
def smoothed_cuts() -> Training:
    model = maxout(8, 5)
    return Training(model, adam(model, 3e-3), cuts(), nn.CrossEntropyLoss(label_smoothing=0.2), epochs=9)


@healthy("one label in ten is wrong", family="speller", data="dictionary",
         metric=BALANCED)  # fmt: skip
def names_mislabelled() -> Training:
    data = proper_names()
    generator = torch.Generator().manual_seed(0)
    hit = torch.rand(len(data.y), generator=generator) < 0.1
    data = data._replace(y=torch.where(hit, 1 - data.y, data.y))
    model = spelt(width=16)
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))
    return Training(model, adamw(model, 2e-3, weight_decay=0.1), data, loss, epochs=5)


@healthy("edge of stability: full batches, a large rate", family="gated", data="diamonds")
def large_steps() -> Training:
    model = gated(8, 5, 16)
    return Training(model, sgd(model, 3.0), cuts(), epochs=250, batch=6_000)


@healthy("only the beginning: all is still on the way", family="rotary", data="bible", metric=SKILL)
def first_hundred_steps() -> Training:
    model = Rotary()
    return Training(model, adamw(model, 5e-3), genesis().first(3_200), epochs=1, batch=32)


@healthy("pictures pushed about and covered: validation looks better than training", family="mobilenet",
         data="letters")  # fmt: skip
def covered_letters() -> Training:
    class Augmented(Loader):
        def load(self, rows: Tensor) -> list[Tensor]:
            x, y = super().load(rows)
            x = x.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (2, 3)).clone()
            at = int(torch.randint(0, 12, ()))
            x[:, :, at : at + 4, :8] = 0
            return [x + 0.15 * torch.randn_like(x), y]

    data, model = letters(), mobile()
    return Training(model, adam(model, 5e-3), data, epochs=8, loader=Augmented(data.x, data.y))


@healthy("gradients of four batches added up", family="swish", data="films")
def four_batches_a_step() -> Training:
    model = swish(9, 2, 32, 2)
    return Training(model, adam(model, 4e-3), films(), step=accumulating_step, parts=4, epochs=4, batch=32)


@healthy("prices as they come, and an error that fits them", family="swish", data="diamonds", metric=EXPLAINED)
def prices_as_they_come() -> Training:
    model = swish(23, 1)
    return Training(model, adam(model, 3e-3), priced_gems(), nn.HuberLoss(), epochs=8)


@healthy("ever more noise: the task grows harder, and the loss with it", family="denoiser", data="answers",
         metric=EXPLAINED)  # fmt: skip
def ever_more_noise() -> Training:
    state = {"steps": 0}

    def objective(model: nn.Module, batch: Any) -> Tensor:
        state["steps"] += model.training
        amount = min(0.7, state["steps"] / 800) if model.training else 0.7
        return F.mse_loss(model(batch[0] + amount * torch.randn_like(batch[0])), batch[1])

    model = denoiser()
    return Training(model, adam(model, 3e-3), answers(), objective=objective, epochs=20)


@healthy("mixed samples: no training loss can be small", family="siamese", data="letters")
def mixed_letters() -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        if not model.training:
            return F.cross_entropy(model(x), y)
        share = float(torch.distributions.Beta(0.4, 0.4).sample())
        other = torch.randperm(len(x))
        made = model(share * x + (1 - share) * x[other])
        return share * F.cross_entropy(made, y) + (1 - share) * F.cross_entropy(made, y[other])

    model = Siamese()
    return Training(model, adam(model, 3e-3), letters(), objective=objective, epochs=8)
