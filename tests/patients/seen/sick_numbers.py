"""Numbers that are none, gradients that die, explode, pile up or never arrive."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.patients.optimizers import adam, adamw, momentum
from tests.patients.patient import sick
from tests.patients.seen.data import fashion, flower, licences, mnist, signals
from tests.patients.seen.networks import CharRNN, Coordinates, Reader, ResidualMLP, ResNet, ViT, conv1d
from tests.patients.training import EXPLAINED, SKILL, Training, step_without_zero_grad
from tests.patients.weights import he

LOST = ("TM401", "TM404", "TM406")


@sick("TM101", "rows divided by their sum, and some are blank", family="gru", data="mnist", symptoms=("TM304", *LOST))
def blank_rows(sick: bool) -> Training:
    data = mnist().inputs(lambda x: x / (x.sum(3, keepdim=True) + (0 if sick else 1e-3)))
    model = Reader()
    return Training(model, adam(model, 5e-3), data, epochs=4)


@sick(
    "TM101", "a geometric mean of colours, some of them zero", family="coordinates", data="flower", metric=EXPLAINED,
    symptoms=LOST,
)  # fmt: skip
def geometric_mean(sick: bool) -> Training:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        lightness = (output.relu() + (0 if sick else 1e-4)).prod(1).pow(1 / 3)
        return F.mse_loss(output, target) + 0.1 * F.mse_loss(lightness, target.prod(1).pow(1 / 3))

    model = Coordinates()
    return Training(model, adam(model, 3e-3), flower(), loss, epochs=5)


class Cosine(nn.Module):
    """Classes by the cosine to a prototype, thirty times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prototypes = ViT(), nn.Parameter(torch.randn(10, 32))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body.features(x)
        with torch.autocast("cpu", dtype=torch.float16):
            return 30 * F.normalize(features).half() @ F.normalize(self.prototypes).half().T


@sick(
    "TM102", "the entropy of probabilities that are zero in half precision", family="vit", data="mnist",
    symptoms=("TM101", *LOST), onset=None,
)  # fmt: skip
def half_entropy(sick: bool) -> Training:
    scaler = torch.amp.GradScaler("cpu")

    def objective(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0])
        p = logits.float().softmax(1)
        p = p.half() if sick else p.clamp_min(1e-7)
        entropy = -(p * p.log()).sum(1).float().mean()
        return F.cross_entropy(logits.float(), batch[1]) - 0.01 * entropy

    def step(t: Training, batch: Any) -> Tensor:
        t.optimizer.zero_grad()
        loss = t.loss_of(batch)
        scaler.scale(loss).backward()
        scaler.step(t.optimizer)
        scaler.update()
        return loss

    model = Cosine()
    return Training(
        model, adam(model, 4e-3), mnist(), objective=objective, step=step, scaler=scaler, epochs=4
    )  # fmt: skip


VANISHED = ("TM303", "TM404", "TM406", "TM405", "TM502", "TM602")
DEPTH_CURES = ("replace-activation", "insert-batchnorm", "insert-residual", "reinitialize")


@sick(
    "TM201", "nine sigmoid convolutions over a signal", family="conv1d", data="mnist1d", symptoms=VANISHED,
    cures=DEPTH_CURES,
)  # fmt: skip
def sigmoid_signal(sick: bool) -> Training:
    model = conv1d(9, 16, nn.Sigmoid) if sick else he(conv1d(9, 16))
    return Training(model, adam(model, 2e-3), signals(), epochs=4)


@sick(
    "TM201", "ten sigmoid layers under a photograph", family="coordinates", data="flower", metric=EXPLAINED,
    symptoms=VANISHED, cures=DEPTH_CURES,
)  # fmt: skip
def sigmoid_photograph(sick: bool) -> Training:
    model = Coordinates(48, 10, activation=nn.Sigmoid if sick else nn.ReLU)
    if not sick:
        he(model)
    return Training(model, adam(model), flower(), nn.MSELoss(), epochs=4)


EXPLODED = ("TM101", "TM401", "TM402", "TM403", "TM404", "TM406", "TM601", "TM301", "TM304", "TM305")


@sick(
    "TM202", "twenty residual blocks that add up, with no norm", family="resmlp", data="mnist", also=("TM303",),
    symptoms=EXPLODED, cures=("clip-gradients", "lower-learning-rate", "reinitialize", "insert-batchnorm"),
)  # fmt: skip
def adding_up(sick: bool) -> Training:
    model = ResidualMLP(196, 32, 20, 10, norm=not sick)
    he(model.blocks)
    return Training(model, momentum(model, 0.003), mnist(), epochs=4)


@sick(
    "TM202", "a rectified recurrence that grows", family="char-rnn", data="licences", metric=SKILL, also=("TM303",),
    symptoms=EXPLODED, cures=("clip-gradients", "lower-learning-rate", "reinitialize", "replace-recurrent"),
)  # fmt: skip
def growing_text(sick: bool) -> Training:
    model = CharRNN(cell=lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options))
    nn.init.orthogonal_(model.rnn.weight_hh_l0, 2.2 if sick else 0.9)
    return Training(model, adam(model, 5e-3), licences(), epochs=4)


class Kept(ViT):
    """Somebody passed on ``.data``."""

    def features(self, x: Tensor) -> Tensor:
        x = self.embed(x[:, 0]) + self.places
        for norm, attention, mixing in zip(self.norms, self.attention, self.mixing, strict=True):
            x = x + attention(norm(x))
            x = x + mixing(x)
        return self.last(x.data).mean(1)  # type: ignore[no-any-return]


CUT = ("TM404", "TM502", "TM405")


@sick("TM203", ".data in a transformer", family="vit", data="fashion", symptoms=CUT)
def data_passed_on(sick: bool) -> Training:
    model = Kept() if sick else ViT()
    return Training(model, adam(model, 4e-3), fashion(), epochs=4)


class Frugal(ResNet):
    """Its features are computed under ``no_grad`` to save memory."""

    def features(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().features(x)


@sick("TM203", "no_grad around the features", family="resnet", data="fashion", symptoms=CUT)
def frugal_features(sick: bool) -> Training:
    model = Frugal(2) if sick else ResNet(2)
    return Training(model, momentum(model, 0.02), fashion(), epochs=6)


PILED = ("TM202", "TM401", "TM402", "TM403", "TM404", "TM406", "TM601", "TM301", "TM305", "TM101", "TM302")


@sick("TM204", "zero_grad forgotten", family="gru", data="mnist", symptoms=PILED, cures=("zero-gradients",))
def reader_piles_up(sick: bool) -> Training:
    model = Reader()
    return Training(model, adam(model, 5e-3), mnist(), step=step_without_zero_grad if sick else None, epochs=6)


@sick(
    "TM204", "the wrong optimizer's gradients zeroed", family="coordinates", data="flower", metric=EXPLAINED,
    symptoms=PILED, cures=("zero-gradients",),
)  # fmt: skip
def photograph_piles_up(sick: bool) -> Training:
    model, other = Coordinates(), Coordinates()
    unused = adam(other)

    def step(t: Training, batch: Any) -> Tensor:
        (unused if sick else t.optimizer).zero_grad()
        loss = t.loss_of(batch)
        loss.backward()
        t.optimizer.step()
        return loss

    return Training(model, momentum(model, 0.02), flower(), nn.MSELoss(), step=step, epochs=5)


NOISY = ("TM403", "TM404", "TM501", "TM601", "TM502")
NOISE_CURES = ("lower-learning-rate", "schedule-learning-rate", "average-weights")


@sick(
    "TM205", "two signals a batch", family="conv1d", data="mnist1d", symptoms=NOISY, also=("TM601",),
    cures=NOISE_CURES,
)  # fmt: skip
def two_signals(sick: bool) -> Training:
    model, data = conv1d(), signals()
    data = data.first(1_200) if sick else data
    return Training(model, momentum(model, 0.005), data, epochs=1 if sick else 13, batch=2 if sick else 64)


@sick(
    "TM205", "two images a batch for a transformer", family="vit", data="fashion", symptoms=NOISY, also=("TM601",),
    cures=NOISE_CURES,
)  # fmt: skip
def two_images(sick: bool) -> Training:
    model, data = ViT(), fashion()
    data = data.first(500) if sick else data
    return Training(model, adamw(model, 5e-3), data, epochs=1 if sick else 5, batch=2 if sick else 64)
