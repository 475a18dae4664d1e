"""Numbers that are none, gradients that die, explode, pile up or never arrive."""

import torch
from torch import Tensor, nn

from tests.patients.optimizers import adam, momentum, sgd
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, Training, plain_step, step_without_zero_grad
from tests.patients.tuned.data import cancer, china, diabetes, digits
from tests.patients.tuned.networks import Autoencoder, PixelReader, RowReader, cnn, deep_cnn, mlp
from tests.patients.weights import he

LOST = ("TM401", "TM404", "TM406")
"""What is true of a run whose weights are no numbers any more."""


@sick("TM101", "a cross-entropy of one's own meets log(0)", family="mlp", data="cancer", symptoms=LOST)
def log_of_zero(sick: bool) -> Training:
    def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
        p, y = torch.sigmoid(output[:, 0]), target.float()
        if not sick:
            p = p.clamp(1e-6, 1 - 1e-6)
        return -(y * p.log() + (1 - y) * (1 - p).log()).mean()

    model = mlp(30, 64, 64, 1)
    return Training(model, adam(model, 1e-2), cancer(), cross_entropy, epochs=50)


@sick(
    "TM101", "the root of a squared distance that is zero", family="autoencoder", data="china", metric=EXPLAINED,
    symptoms=LOST,
)  # fmt: skip
def root_of_zero(sick: bool) -> Training:
    def objective(model: Autoencoder, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The code should hardly change when a few pixels are missing."""
        x, y = batch
        code, other = model.encoder(x), model.encoder(x * (torch.rand_like(x) > 0.05))
        distance = ((code - other).square().sum(1) + (0 if sick else 1e-6)).sqrt()
        return nn.functional.mse_loss(model.decoder(code), y) + 0.01 * distance.mean()

    model = Autoencoder()
    return Training(model, adam(model), china(), objective=objective, epochs=10)


@sick(
    "TM102", "a softmax of one's own, in half precision: exp(12) overflows", family="mlp", data="digits",
    symptoms=("TM101", *LOST), onset=None,
)  # fmt: skip
def half_overflow(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10)
    scaler = torch.amp.GradScaler("cpu")

    def objective(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            similarity = model(batch[0]) / 0.02
        if not sick:
            return nn.functional.cross_entropy(similarity.float(), batch[1])
        powers = similarity.exp()
        return -(powers / powers.sum(1, keepdim=True))[torch.arange(len(powers)), batch[1]].float().log().mean()

    def step(t: Training, batch: tuple[Tensor, Tensor]) -> Tensor:
        t.optimizer.zero_grad()
        loss = t.loss_of(batch)
        scaler.scale(loss).backward()
        scaler.step(t.optimizer)
        scaler.update()
        return loss

    return Training(
        model, adam(model), digits(), objective=objective, step=step, scaler=scaler, epochs=12
    )  # fmt: skip


VANISHED = ("TM303", "TM404", "TM406", "TM405", "TM502", "TM602")
DEPTH_CURES = ("replace-activation", "insert-batchnorm", "insert-residual", "reinitialize")


@sick("TM201", "eight sigmoid layers", family="mlp", data="digits", symptoms=VANISHED, cures=DEPTH_CURES)
def deep_sigmoid(sick: bool) -> Training:
    model = mlp(64, *[64] * 8, 10, activation=nn.Sigmoid) if sick else he(mlp(64, *[64] * 8, 10))
    return Training(model, adam(model), digits(), epochs=15)


@sick("TM201", "six sigmoid convolutions", family="cnn", data="digits", symptoms=VANISHED, cures=DEPTH_CURES)
def sigmoid_convolutions(sick: bool) -> Training:
    model = deep_cnn(6, nn.Sigmoid) if sick else he(deep_cnn(6))
    return Training(model, adam(model, 2e-3), digits(), epochs=8)


EXPLODED = ("TM101", "TM401", "TM402", "TM403", "TM404", "TM406", "TM601", "TM301", "TM304", "TM305")


@sick(
    "TM202", "weights two and a half times too large", family="mlp", data="digits", also=("TM303",),
    symptoms=EXPLODED, cures=("clip-gradients", "lower-learning-rate", "reinitialize", "insert-batchnorm"),
)  # fmt: skip
def large_weights(sick: bool) -> Training:
    model = he(mlp(64, *[64] * 5, 10), 2.5 if sick else 1.0)
    return Training(model, momentum(model), digits(), epochs=15)


@sick(
    "TM202", "recurrent weights that grow over 16 steps", family="lstm", data="digits", also=("TM303",),
    symptoms=EXPLODED, cures=("clip-gradients", "lower-learning-rate", "reinitialize", "replace-recurrent"),
)  # fmt: skip
def growing_recurrence(sick: bool) -> Training:
    model = PixelReader(32, lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options), pixels=4)
    with torch.no_grad():
        model.rnn.weight_hh_l0.copy_(torch.eye(32) * (1.7 if sick else 1.0))
    return Training(model, adam(model, 2e-3), digits(), epochs=12)


class Reported(nn.Module):
    """A perceptron whose hidden layer somebody wanted to look at."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.lower, self.upper, self.detached = mlp(64, 16, 8), mlp(8, 32, 10), detached

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.lower(x)
        self.seen = hidden.detach()
        return self.upper((self.seen if self.detached else hidden).relu())  # type: ignore[no-any-return]


@sick("TM203", "the detached copy is passed on", family="mlp", data="digits", symptoms=("TM404", "TM502", "TM405"))
def detached_copy(sick: bool) -> Training:
    model = Reported(sick)
    return Training(model, adam(model, 3e-3), digits(), epochs=15)


class Careful(RowReader):
    """Its reading part runs under ``no_grad``, as it was left from a demonstration."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            read, _ = self.lstm(x.view(-1, 8, 8))
        return self.head(read[:, -1])  # type: ignore[no-any-return]


@sick("TM203", "no_grad around the LSTM", family="lstm", data="digits", symptoms=("TM404", "TM502", "TM405"))
def no_grad_left(sick: bool) -> Training:
    model = Careful() if sick else RowReader()
    return Training(model, adam(model, 5e-3), digits(), epochs=15)


PILED = ("TM202", "TM401", "TM402", "TM403", "TM404", "TM406", "TM601", "TM301", "TM305", "TM101")


@sick("TM204", "zero_grad forgotten", family="mlp", data="digits", symptoms=PILED, cures=("zero-gradients",))
def forgotten_zero_grad(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10)
    step = step_without_zero_grad if sick else plain_step
    return Training(model, sgd(model, 0.1), digits(), step=step, epochs=15)


@sick(
    "TM204", "zero_grad once per epoch", family="cnn", data="digits", symptoms=PILED, cures=("zero-gradients",)
)  # fmt: skip
def zero_grad_per_epoch(sick: bool) -> Training:
    def start_epoch(t: Training) -> None:
        t.model.train()
        t.optimizer.zero_grad()

    model = cnn(norm=False)
    step = step_without_zero_grad if sick else plain_step
    return Training(model, adam(model, 3e-3), digits(), step=step, start_epoch=start_epoch, epochs=8)


NOISY = ("TM403", "TM404", "TM501", "TM601")


@sick(
    "TM205", "two samples a batch at a rate for sixty-four", family="regressor", data="diabetes", metric=EXPLAINED,
    symptoms=NOISY, also=("TM601",), cures=("lower-learning-rate", "schedule-learning-rate", "average-weights"),
)  # fmt: skip
def two_a_batch(sick: bool) -> Training:
    model = mlp(10, 32, 1)
    optimizer = momentum(model, 0.01)
    return Training(
        model, optimizer, diabetes(), nn.MSELoss(), epochs=3 if sick else 100, batch=2 if sick else 64
    )  # fmt: skip


@sick(
    "TM205", "one patch a batch", family="autoencoder", data="china", metric=EXPLAINED, symptoms=NOISY,
    also=("TM601",), cures=("lower-learning-rate", "schedule-learning-rate", "average-weights"),
)  # fmt: skip
def one_a_batch(sick: bool) -> Training:
    model, data = Autoencoder(), china()
    small = data.first(600 if sick else 2_400)
    return Training(
        model, adam(model, 5e-3), small, nn.MSELoss(), epochs=1 if sick else 16, batch=1 if sick else 64
    )  # fmt: skip
