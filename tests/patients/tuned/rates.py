"""Rates, schedules, decay, and optimizers that hold something else."""

import torch
from torch import nn

from tests.patients.optimizers import adam, adamw, momentum
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, SKILL, Training
from tests.patients.tuned.data import china, digits, gpl
from tests.patients.tuned.networks import GPT, Autoencoder, RowReader, cnn, mlp

SHAKEN = ("TM101", "TM202", "TM301", "TM302", "TM305", "TM401", "TM402", "TM403", "TM404", "TM406", "TM502")
FASTER = ("raise-learning-rate", "find-learning-rate", "schedule-learning-rate")
SLOWER = ("lower-learning-rate", "find-learning-rate", "schedule-learning-rate")
CRAWLING = ("TM404", "TM405", "TM406", "TM502")


@sick("TM601", "Adam at 0.3", family="mlp", data="digits", symptoms=SHAKEN, cures=SLOWER)
def adam_hundredfold(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10)
    return Training(model, adam(model, 0.3 if sick else 3e-3), digits(), epochs=12)


@sick("TM601", "momentum at 2, no batches seen", family="cnn", data="digits", symptoms=SHAKEN, cures=SLOWER)
def momentum_hundredfold(sick: bool) -> Training:
    model = cnn(norm=False)
    return Training(model, momentum(model, 2.0 if sick else 0.02), digits(), epochs=6, habit="no batches")


@sick("TM601", "a language model at 0.3", family="gpt", data="gpl", metric=SKILL, symptoms=SHAKEN, cures=SLOWER)
def hot_language_model(sick: bool) -> Training:
    model = GPT()
    return Training(model, adamw(model, 0.3 if sick else 1e-2), gpl(), epochs=5, batch=16)


@sick("TM602", "AdamW at 1e-5", family="gpt", data="gpl", metric=SKILL, symptoms=CRAWLING, cures=FASTER)
def thousandth(sick: bool) -> Training:
    model = GPT()
    return Training(model, adamw(model, 1e-5 if sick else 1e-2), gpl(), epochs=5, batch=16)


@sick("TM602", "momentum at 5e-5", family="mlp", data="digits", symptoms=CRAWLING, cures=FASTER)
def slow_momentum(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10)
    return Training(model, momentum(model, 5e-5 if sick else 0.05), digits(), epochs=15)


@sick(
    "TM603", "StepLR meant for epochs, stepped per batch", family="cnn", data="digits", symptoms=("TM602", *CRAWLING),
    cures=FASTER, onset=None,
)  # fmt: skip
def step_per_batch(sick: bool) -> Training:
    model = cnn(norm=False)
    training = Training(model, momentum(model, 0.02), digits(), epochs=8)
    per = "step" if sick else "epoch"
    return training.scheduled(torch.optim.lr_scheduler.StepLR, 4, 0.5, per=per)


@sick(
    "TM603", "a cosine that ends after a twentieth of the run", family="autoencoder", data="china", metric=EXPLAINED,
    symptoms=("TM602", *CRAWLING), cures=FASTER, onset=None,
)  # fmt: skip
def short_cosine(sick: bool) -> Training:
    model = Autoencoder()
    training = Training(model, adam(model, 3e-3), china(), nn.MSELoss(), epochs=12)
    end = training.steps // 20 if sick else training.steps

    def rate(step: int) -> float:
        return float(0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(1.0, step / end)))))

    return training.scheduled(torch.optim.lr_scheduler.LambdaLR, rate)


SHRUNK = ("TM305", "TM404", "TM406", "TM502", "TM201", "TM301")


@sick(
    "TM604", "weight decay of 0.1 in SGD", family="mlp", data="digits", also=("TM502",), symptoms=SHRUNK,
    cures=("weight-decay",), onset=None,
)  # fmt: skip
def heavy_decay(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10)
    return Training(model, momentum(model, weight_decay=0.1 if sick else 1e-4), digits(), epochs=15)


@sick(
    "TM604", "AdamW with a decay of 30", family="lstm", data="digits", also=("TM502",), symptoms=SHRUNK,
    cures=("weight-decay",), onset=None,
)  # fmt: skip
def heavy_decoupled_decay(sick: bool) -> Training:
    model = RowReader()
    return Training(model, adamw(model, 5e-3, weight_decay=30.0 if sick else 0.01), digits(), epochs=15)


STALE = ("TM203", "TM404", "TM502", "TM405")


@sick("TM605", "the reader replaced after the optimizer was made", family="lstm", data="digits", symptoms=STALE,
      cures=("adopt-parameters",))  # fmt: skip
def reader_replaced(sick: bool) -> Training:
    model = RowReader()
    if sick:
        optimizer = adam(model, 3e-3)
        model.lstm = nn.LSTM(8, 32, batch_first=True)
    else:
        model.lstm = nn.LSTM(8, 32, batch_first=True)
        optimizer = adam(model, 3e-3)
    return Training(model, optimizer, digits(), epochs=15)


@sick("TM605", "layers added after the optimizer was made", family="mlp", data="digits", symptoms=STALE,
      cures=("adopt-parameters",))  # fmt: skip
def layers_added(sick: bool) -> Training:
    model = mlp(64, 32, 16)
    early = adam(model, 2e-3)
    model.extend([nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)])
    return Training(model, early if sick else adam(model, 2e-3), digits(), epochs=12)
