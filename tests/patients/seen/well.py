"""Healthy runs, most of which look like something else."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import lr_scheduler

from tests.patients.optimizers import adam, adamw, momentum, sgd
from tests.patients.patient import healthy
from tests.patients.seen.data import fashion, flower, licences, mnist, proline, signals, wine
from tests.patients.seen.networks import (
    VAE,
    CharRNN,
    ConvAutoencoder,
    Coordinates,
    Mixer,
    Reader,
    ResidualMLP,
    ResNet,
    ViT,
    conv1d,
    selu_net,
    vae_objective,
)
from tests.patients.seen.sick_units import itself
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


@healthy("nothing at all", family="resnet", data="mnist")
def plain_resnet() -> Training:
    model = ResNet()
    return Training(model, momentum(model, 0.02), mnist(), epochs=4)


@healthy("twenty residual blocks: gradients differ through depth", family="resmlp", data="mnist")
def deep_residual() -> Training:
    model = ResidualMLP(196, 24, 20, 10)
    return Training(model, adamw(model, 2e-3), mnist(), epochs=3)


@healthy("converged: tiny data, the loss is zero for most of the run", family="selu", data="wine")
def converged_wine() -> Training:
    model = selu_net(13, 3)
    return Training(model, adam(model, 3e-3), wine(), epochs=80, batch=16)


@healthy("converged: an image learnt as well as it goes", family="coordinates", data="flower", metric=EXPLAINED)
def converged_photograph() -> Training:
    model = Coordinates()
    training = Training(model, adam(model, 5e-3), flower(), nn.MSELoss(), epochs=12)
    return training.scheduled(lr_scheduler.CosineAnnealingLR, training.steps)


@healthy("a triangular rate", family="conv1d", data="mnist1d")
def triangular_rate() -> Training:
    model = conv1d(norm=True)
    training = Training(model, momentum(model, 0.01), signals(), epochs=6)
    return training.scheduled(lr_scheduler.CyclicLR, 0.002, 0.1, step_size_up=25, mode="triangular")


@healthy("one cycle of a transformer", family="vit", data="fashion")
def one_cycle_transformer() -> Training:
    model = ViT()
    training = Training(model, adamw(model, 1e-3), fashion(), epochs=6)
    return training.scheduled(lr_scheduler.OneCycleLR, 0.01, total_steps=training.steps)


@healthy("a warm-up over a third of the run", family="vit", data="mnist")
def long_warm_up() -> Training:
    model = ViT()
    training = Training(model, adamw(model, 4e-3), mnist(), epochs=6)
    end = training.steps // 3
    return training.scheduled(lr_scheduler.LambdaLR, lambda step: min(1.0, (step + 1) / end))


@healthy("restarts of a recurrent model's rate", family="char-rnn", data="licences", metric=SKILL)
def restarted_text() -> Training:
    model = CharRNN()
    training = Training(model, adam(model, 0.01), licences(), epochs=4, batch=32)
    return training.scheduled(lr_scheduler.CosineAnnealingWarmRestarts, 40)


@healthy("an embedding of which most is never used", family="char-rnn", data="licences", metric=SKILL)
def rare_characters() -> Training:
    model = CharRNN(64)
    model.words = nn.Embedding(3_000, 64)
    return Training(model, adam(model, 5e-3), licences(), epochs=3, step=clipped_step(1.0), batch=32)


@healthy(
    "a variational autoencoder: one term rises while the other falls", family="vae", data="mnist", metric=EXPLAINED
)
def two_terms() -> Training:
    model = VAE()
    return Training(model, adam(model, 3e-3), itself(mnist()), objective=vae_objective(0.5), epochs=10)


@healthy(
    "cross-entropy of grey pixels has a floor far from zero", family="conv-autoencoder", data="mnist", metric=EXPLAINED
)
def high_floor() -> Training:
    model = ConvAutoencoder()
    return Training(model, adam(model, 5e-3), itself(mnist()), nn.BCELoss(), epochs=6)


@healthy("a sum over pixels and batch", family="conv-autoencoder", data="fashion", metric=EXPLAINED)
def summed_pixels() -> Training:
    model = ConvAutoencoder()
    return Training(model, adam(model, 3e-3), itself(fashion()), nn.MSELoss(reduction="sum"), epochs=6)


@healthy("batches of four signals", family="conv1d", data="mnist1d")
def few_signals_a_batch() -> Training:
    model = conv1d()
    return Training(model, adam(model, 2e-3), signals(), epochs=1, batch=4)


@healthy("dropout and smoothed labels: training looks worse than validation", family="mixer", data="mnist")
def regularised_mixer() -> Training:
    model = nn.Sequential(nn.Dropout(0.3), Mixer())
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    return Training(model, adamw(model, 3e-3, weight_decay=0.1), mnist(), loss, epochs=8)


@healthy("fine-tuning: the body is frozen on purpose", family="resnet", data="fashion")
def frozen_body() -> Training:
    model, data = ResNet(), fashion()
    before, losses = adam(model, 3e-3), nn.CrossEntropyLoss()
    for x, y in Loader(data.x, data.y):  # what was learnt before: two kinds of clothing
        before.zero_grad()
        losses(model(x), (y < 5).long()).backward()
        before.step()
    for parameter in model.parameters():
        parameter.requires_grad_(False).grad = None
    model.head = nn.Linear(128, 10)
    return Training(model, adam(model, 3e-3), data, epochs=5)


@healthy("edge of stability: full batches, a large rate", family="resmlp", data="wine")
def edge() -> Training:
    model = ResidualMLP(13, 32, 3, 3)
    return Training(model, sgd(model, 0.3), wine(), epochs=250, batch=118)


@healthy("gradients accumulated over four batches", family="vit", data="mnist")
def accumulated() -> Training:
    model = ViT()
    return Training(model, adam(model, 5e-3), mnist(), step=accumulating_step, parts=4, epochs=3, batch=16)


@healthy("every gradient clipped, most of them by far", family="gru", data="mnist")
def clipped_reader() -> Training:
    model = Reader()
    return Training(model, adam(model, 5e-3), mnist(), step=clipped_step(0.1), epochs=6)


@healthy("labels with noise that nobody can learn", family="resnet", data="mnist")
def noisy_labels() -> Training:
    data = mnist()
    hit = torch.rand(len(data.y)) < 0.15
    noisy = torch.where(hit, torch.randint(0, 10, (len(data.y),)), data.y)
    model = ResNet(6)
    return Training(model, adam(model, 2e-3), data._replace(y=noisy), epochs=5)


@healthy("LBFGS on a photograph", family="coordinates", data="flower", metric=EXPLAINED)
def lbfgs_photograph() -> Training:
    model = Coordinates(32, 2)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    losses = nn.MSELoss()

    def step(t: Training, batch: Any) -> Tensor:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = losses(model(batch[0]), batch[1])
            loss.backward()
            return loss  # type: ignore[no-any-return]

        return optimizer.step(closure)  # type: ignore[return-value,arg-type]

    return Training(model, optimizer, flower().first(2_000), losses, step=step, epochs=60, batch=2_000)


@healthy("bfloat16 autocast", family="resmlp", data="fashion")
def coarse_numbers() -> Training:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(batch[0]), batch[1])

    model = ResidualMLP(196, 48, 3, 10)
    return Training(model, adam(model, 2e-3), fashion(), objective=objective, epochs=5)


@healthy("two tasks: the class, and the image itself, a hundred times as heavy", family="vit", data="fashion")
def class_and_image() -> Training:
    class Both(ViT):
        def __init__(self) -> None:
            super().__init__()
            self.image = nn.Linear(32, 196)

    def objective(model: Both, batch: Any) -> Tensor:
        features = model.features(batch[0])
        drawn = model.image(features)
        return F.cross_entropy(model.head(features), batch[1]) + 100 * F.mse_loss(drawn, batch[0].flatten(1))

    model = Both()
    return Training(model, adam(model, 3e-3), fashion(), objective=objective, epochs=5)


@healthy("actor and critic: neither loss tells how well it goes", family="resmlp", data="mnist")
def actor_and_critic() -> Training:
    class Agent(ResidualMLP):
        def __init__(self) -> None:
            super().__init__(196, 48, 1, 10)
            self.critic = nn.Sequential(nn.Linear(196, 16), nn.ReLU(), nn.Linear(16, 1))

    def objective(model: Agent, batch: Any) -> Tensor:
        chosen = torch.distributions.Categorical(logits=model(batch[0]))
        action, worth = chosen.sample(), model.critic(batch[0].flatten(1))[:, 0]
        advantage = (action == batch[1]).float() - worth
        policy = -(chosen.log_prob(action) * advantage.detach()).mean()
        return policy + 0.5 * advantage.square().mean() - 0.01 * chosen.entropy().mean()

    model = Agent()
    return Training(model, adam(model, 2e-3), mnist(), objective=objective, epochs=10)


@healthy("targets of 278 to 1,680 at a rate that fits them", family="selu", data="wine", metric=EXPLAINED)
def uncentred_targets() -> Training:
    model = selu_net(12, 1)
    return Training(model, adam(model, 0.01), proline(), nn.L1Loss(), epochs=60, batch=16)


def colours_like(t: Training) -> float:
    """1 - distance of the made colours from the real ones / that of evenly drawn ones."""
    real, noise = t.tensors[1], torch.randn(1_000, 4)

    def distance(made: Tensor) -> Tensor:
        return (
            2 * torch.cdist(real, made).mean() - torch.cdist(real, real).mean() - torch.cdist(made, made).mean()
        )  # fmt: skip

    with torch.no_grad():
        return 1 - float(distance(t.model[0](noise)) / distance(torch.rand(1_000, 3)))


LIKENESS = Metric("likeness", "max", colours_like)


@healthy("a Wasserstein GAN: the critic's loss is negative and wanders", family="gan", data="flower", metric=LIKENESS)
def critic_of_colours() -> Training:
    generator = nn.Sequential(selu_net(4, 3, 32, 2), nn.Sigmoid())
    critic = nn.Sequential(nn.Linear(3, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))
    optimizers = [adam(generator, 1e-3, betas=(0.5, 0.9)), adam(critic, 3e-3, betas=(0.5, 0.9))]

    def step(t: Training, batch: Any) -> Tensor:
        real = batch[1]
        made = generator(torch.randn(len(real), 4))
        optimizers[1].zero_grad()
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * made.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        worth = critic(made.detach()).mean() - critic(real).mean()
        (worth + 3 * (slope.norm(dim=1) - 1).square().mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        own = -critic(made).mean()
        own.backward()
        optimizers[0].step()
        return own

    return Training(
        [generator, critic], optimizers, flower(), step=step,
        epochs=6, validate=lambda t: {"likeness": colours_like(t)},
    )  # fmt: skip


@healthy("classes of one to twenty, weighted", family="conv1d", data="mnist1d", metric=BALANCED)
def weighted_signals() -> Training:
    data = signals().targets(lambda y: (y == 0).long())
    rows = torch.cat([(data.y == 1).nonzero()[:130, 0], (data.y == 0).nonzero()[:, 0]])
    model = conv1d(classes=2)
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 20.0]))
    return Training(model, adam(model, 2e-3), data._replace(x=data.x[rows], y=data.y[rows]), loss, epochs=5)


class Experts(nn.Module):
    """Each sample goes to one of eight experts: the others are idle by design."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(196, 8)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(196, 24), nn.ReLU(), nn.Linear(24, 10)) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        weight, chosen = self.gate(x).softmax(1).max(1)
        return weight[:, None] * torch.stack([expert(x) for expert in self.experts], 1)[torch.arange(len(x)), chosen]


@healthy("one expert in eight for each sample", family="experts", data="mnist")
def sparse_experts() -> Training:
    model = Experts()
    return Training(model, adam(model, 3e-3), mnist(), epochs=6)


@healthy("nobody logs anything", family="mixer", data="fashion")
def silent_mixer() -> Training:
    model = Mixer()
    return Training(model, adam(model, 2e-3), fashion(), epochs=5, habit="nothing")


@healthy("RMSprop, and a rate lowered on plateaus", family="gru", data="mnist")
def lowered_on_plateaus() -> Training:
    model = Reader(48)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, optimizer, mnist(), epochs=6, habit="no batches").scheduled(
        lr_scheduler.StepLR, 3, 0.3, per="epoch"
    )  # fmt: skip
