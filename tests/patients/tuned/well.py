"""Healthy runs, most of which look like something else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.optimizers import adam, adamw, momentum, sgd
from tests.patients.patient import healthy
from tests.patients.training import (
    BALANCED,
    EXPLAINED,
    SKILL,
    Loader,
    Metric,
    Training,
    accumulating_step,
    clipped_step,
)
from tests.patients.tuned.data import as_floats, cancer, china, diabetes, digits, gpl, raw_diabetes
from tests.patients.tuned.networks import GPT, Autoencoder, PixelReader, RowReader, TopK, cnn, deep_cnn, mlp
from tests.patients.weights import he


@healthy("nothing at all", family="mlp", data="digits")
def plain() -> Training:
    model = mlp(64, 64, 64, 10)
    return Training(model, adam(model), digits(), epochs=12)


@healthy("converged: gradients have vanished, the loss stands still", family="mlp", data="digits")
def converged() -> Training:
    model = mlp(64, 128, 64, 10)
    return Training(model, adam(model, 5e-3), digits(), epochs=60)


@healthy("converged after a tenth of the run: tiny data", family="mlp", data="cancer")
def early_converged() -> Training:
    model = mlp(30, 16, 2)
    return Training(model, momentum(model, 0.03, weight_decay=3e-3), cancer(), epochs=80)


@healthy("eight rectified layers: gradients differ through depth", family="mlp", data="digits")
def eight_layers() -> Training:
    model = he(mlp(64, *[64] * 8, 10))
    return Training(model, adam(model), digits(), epochs=12)


@healthy("three sigmoid layers that do train", family="mlp", data="digits")
def three_sigmoids() -> Training:
    model = mlp(64, 64, 64, 64, 10, activation=nn.Sigmoid)
    return Training(model, adam(model, 5e-3), digits(), epochs=15)


@healthy("a cyclical rate: the loss goes up and down", family="cnn", data="digits")
def cyclical_rate() -> Training:
    model = cnn()
    training = Training(model, momentum(model, 0.01), digits(), epochs=10)
    return training.scheduled(lr_scheduler.CyclicLR, 0.005, 0.15, step_size_up=20)


@healthy("one cycle: the rate climbs high, then falls to nothing", family="mlp", data="digits")
def one_cycle() -> Training:
    model = mlp(64, 64, 64, 10, norm=nn.BatchNorm1d)
    training = Training(model, momentum(model, 0.02), digits(), epochs=12)
    return training.scheduled(lr_scheduler.OneCycleLR, 0.2, total_steps=training.steps)


@healthy("warm-up and cosine of a language model", family="gpt", data="gpl", metric=SKILL)
def warm_up_and_cosine() -> Training:
    model = GPT()
    training = Training(model, adamw(model, 1e-2), gpl(), epochs=6, batch=16)
    warm_up = lr_scheduler.LinearLR(training.optimizer, 0.01, total_iters=40)
    cosine = lr_scheduler.CosineAnnealingLR(training.optimizer, training.steps - 40)
    training.scheduler = lr_scheduler.SequentialLR(training.optimizer, [warm_up, cosine], [40])
    return training


@healthy("warm restarts: the loss jumps when the rate does", family="cnn", data="digits")
def warm_restarts() -> Training:
    model = cnn(norm=False)
    training = Training(model, momentum(model, 0.05), digits(), epochs=10)
    return training.scheduled(lr_scheduler.CosineAnnealingWarmRestarts, 70)


def distance_to(real: Tensor, made: Tensor) -> float:
    """Energy distance between two samples of rows."""
    return float(2 * torch.cdist(real, made).mean() - torch.cdist(real, real).mean() - torch.cdist(made, made).mean())


@torch.no_grad()
def likeness(t: Training) -> float:
    """1 - energy distance of generated images from real ones / that of noise."""
    real, generator = t.tensors[0], t.model[0]
    made = generator(torch.randn(450, 16))
    return 1 - distance_to(real, made) / distance_to(real, torch.rand(450, 64))


@healthy("a GAN: neither loss goes down", family="gan", data="digits", metric=Metric("likeness", "max", likeness))
def adversaries() -> Training:
    generator = nn.Sequential(mlp(16, 96, 96, 64, norm=nn.BatchNorm1d), nn.Sigmoid())
    discriminator = mlp(64, 64, 1, activation=lambda: nn.LeakyReLU(0.2))
    models = [generator, discriminator]
    optimizers = [adam(model, rate, betas=(0.5, 0.99)) for model, rate in zip(models, (1e-3, 1e-3), strict=True)]
    bce = F.binary_cross_entropy_with_logits

    def step(t: Training, batch: Any) -> Tensor:
        real = batch[0]
        made = generator(torch.randn(len(real), 16))
        optimizers[1].zero_grad()
        seen, fooled = discriminator(real), discriminator(made.detach())
        loss = bce(seen, torch.full_like(seen, 0.9)) + bce(fooled, torch.zeros_like(fooled))
        loss.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        judged = discriminator(made)
        own = bce(judged, torch.ones_like(judged))
        own.backward()
        optimizers[0].step()
        return own

    return Training(
        models, optimizers, digits(), step=step, epochs=30,
        validate=lambda t: {"likeness": t.metric.score(t)},
    )  # fmt: skip


@healthy("sparse by design: eight units of 128 for each sample", family="mlp", data="digits")
def top_k() -> Training:
    model = nn.Sequential(nn.Linear(64, 128), TopK(8), nn.Linear(128, 10))
    return Training(model, adam(model, 3e-3), digits(), epochs=12)


@healthy("embeddings most of whose rows get no gradient", family="gpt", data="gpl", metric=SKILL)
def rare_tokens() -> Training:
    model = GPT(words=4_000)
    return Training(model, adam(model, 1e-2), gpl(), epochs=5, batch=16)


@healthy("batches of four: noisy losses", family="mlp", data="digits")
def small_batches() -> Training:
    model = mlp(64, 32, 10)
    return Training(model, momentum(model, 0.005), digits(), epochs=2, batch=4)


@healthy("half of the units dropped, decay, smoothed labels: the loss stays high", family="mlp", data="digits")
def strong_regularisation() -> Training:
    model = mlp(64, 128, 128, 10, drop=0.5)
    loss = nn.CrossEntropyLoss(label_smoothing=0.2)
    return Training(model, adamw(model, 2e-3, weight_decay=0.1), digits(), loss, epochs=20)


@healthy("fine-tuning: the lower layers frozen on purpose", family="cnn", data="digits")
def frozen_on_purpose() -> Training:
    model = cnn()
    data = digits()
    teacher, losses = adam(model, 5e-3), nn.CrossEntropyLoss()
    for _ in range(2):  # what was learnt before: odd and even digits
        for x, y in Loader(data.x, data.y):
            teacher.zero_grad()
            losses(model(x), y % 2).backward()
            teacher.step()
    for parameter in list(model.parameters())[:4]:
        parameter.requires_grad_(False).grad = None
    model[-1] = nn.Linear(64, 10)
    return Training(model, adam(model, 3e-3), data, epochs=8)


@healthy("edge of stability: full batches at a large rate", family="mlp", data="cancer")
def edge_of_stability() -> Training:
    model = mlp(30, 64, 64, 2, activation=nn.Tanh)
    return Training(model, sgd(model, 0.5), cancer(), epochs=300, batch=419)


@healthy("gradients accumulated over four batches", family="cnn", data="digits")
def accumulation() -> Training:
    model = cnn(norm=False)
    return Training(model, momentum(model), digits(), step=accumulating_step, parts=4, epochs=15, batch=16)


@healthy("an LSTM whose gradients are clipped at every step", family="lstm", data="digits")
def clipped() -> Training:
    model = RowReader(32, 2)
    return Training(model, adam(model, 5e-3), digits(), step=clipped_step(0.5), epochs=12)


@healthy("one label in ten is known to be wrong, the loss cannot go to zero", family="cnn", data="digits")
def label_noise() -> Training:
    data = digits()
    hit = torch.rand(len(data.y)) < 0.1
    noisy = torch.where(hit, torch.randint(0, 10, (len(data.y),)), data.y)
    model = cnn(4)
    return Training(model, adam(model, 2e-3), data._replace(y=noisy), epochs=10)


@healthy("LBFGS: several evaluations in one step", family="mlp", data="cancer")
def lbfgs() -> Training:
    model = mlp(30, 8, 2)
    data = cancer()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    losses = nn.CrossEntropyLoss()

    def step(t: Training, batch: Any) -> Tensor:
        def closure() -> Tensor:
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in model.parameters())
            loss = losses(model(batch[0]), batch[1]) + 1e-3 * penalty
            loss.backward()
            return loss  # type: ignore[no-any-return]

        return optimizer.step(closure)  # type: ignore[return-value,arg-type]

    return Training(model, optimizer, data, losses, step=step, epochs=60, batch=419)


@healthy("bfloat16 autocast: coarse numbers", family="cnn", data="digits")
def half_precision() -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(batch[0]), batch[1])

    model = cnn()
    return Training(model, adam(model, 2e-3), digits(), objective=objective, epochs=8)


@healthy("a sum over the batch: large losses and gradients", family="autoencoder", data="china", metric=EXPLAINED)
def summed_loss() -> Training:
    model = Autoencoder()
    return Training(model, adam(model, 2e-3), china(), nn.MSELoss(reduction="sum"), epochs=10)


class TwoTasks(nn.Module):
    """One trunk, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.label, self.image = mlp(64, 64, 32), nn.Linear(32, 10), mlp(32, 64, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x).relu()
        return self.label(hidden), self.image(hidden)


@healthy("two tasks of very different scale", family="autoencoder", data="digits")
def two_tasks() -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        label, image = model(batch[0])
        return F.cross_entropy(label, batch[1]) + 50 * F.mse_loss(image, batch[0])

    model = TwoTasks()
    return Training(model, adam(model, 2e-3), digits(), objective=objective, epochs=15)


@healthy("policy gradient: the loss is no measure of anything", family="policy", data="digits")
def policy_gradient() -> Training:
    policy = mlp(64, 64, 10)
    state = {"baseline": 0.0}

    def objective(model: nn.Module, batch: Any) -> Tensor:
        choice = torch.distributions.Categorical(logits=model(batch[0]))
        action = choice.sample()
        reward = (action == batch[1]).float()
        advantage = reward - state["baseline"]
        state["baseline"] += 0.05 * (float(reward.mean()) - state["baseline"])
        return -(choice.log_prob(action) * advantage).mean()

    return Training(policy, adam(policy, 3e-3), digits(), objective=objective, epochs=40)


@healthy("targets of 25 to 346, at a rate that fits them", family="regressor", data="diabetes", metric=EXPLAINED)
def large_targets() -> Training:
    model = mlp(10, 32, 1)
    return Training(model, adam(model, 0.03), raw_diabetes(), nn.MSELoss(), epochs=40)


@healthy("little to be learnt: half of the variance is noise", family="regressor", data="diabetes", metric=EXPLAINED)
def noisy_targets() -> Training:
    model = mlp(10, 8, 1)
    return Training(model, adamw(model, 3e-3, weight_decay=0.1), diabetes(), nn.MSELoss(), epochs=25)


@healthy("classes of one to five, weighted", family="mlp", data="cancer", metric=BALANCED)
def weighted_classes() -> Training:
    data = cancer()
    rows = torch.cat([(data.y == 0).nonzero()[:50, 0], (data.y == 1).nonzero()[:250, 0]])
    data = data._replace(x=data.x[rows], y=data.y[rows])
    model = mlp(30, 16, 1)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(0.2))
    return Training(model, adam(model), as_floats(data), loss, epochs=30, batch=50)


@healthy("nobody logs anything", family="cnn", data="digits")
def silent_user() -> Training:
    model = deep_cnn(4)
    return Training(model, adam(model, 2e-3), digits(), epochs=8, habit="nothing")


@healthy("batch norm learns after a rough start at a large rate", family="cnn", data="digits")
def large_rate_with_norm() -> Training:
    model = cnn()
    training = Training(model, momentum(model, 0.3), digits(), epochs=8, habit="no batches")
    return training.scheduled(lr_scheduler.MultiStepLR, [5, 7], 0.1, per="epoch")


@healthy("slow at first: an LSTM over 64 pixels", family="lstm", data="digits")
def slow_start() -> Training:
    model = PixelReader(32)
    with torch.no_grad():
        model.rnn.bias_hh_l0[32:64] = 1.0
    return Training(model, adam(model, 1e-2), digits(), step=clipped_step(1.0), epochs=10)
