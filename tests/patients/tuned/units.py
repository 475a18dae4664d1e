"""Units that are dead, stuck, all alike or wrongly fed."""

import torch
from torch import Tensor, nn

from tests.patients.optimizers import adam, momentum
from tests.patients.patient import sick
from tests.patients.training import EXPLAINED, PROBABILITY, SKILL, Training
from tests.patients.tuned.data import as_floats, cancer, diabetes, digits, gpl, raw_cancer, raw_diabetes
from tests.patients.tuned.networks import GPT, Autoencoder, cnn, deep_cnn, mlp
from tests.patients.weights import constant, he, hidden_biases, matrices

STUCK = ("TM404", "TM405", "TM406", "TM502", "TM201")


@sick(
    "TM301", "biases of -3", family="mlp", data="digits", symptoms=(*STUCK, "TM303", "TM305"), also=("TM303",),
    cures=("reinitialize", "replace-activation", "insert-batchnorm"),
)  # fmt: skip
def biases_of_minus_three(sick: bool) -> Training:
    model = mlp(64, 64, 64, 64, 10)
    return Training(hidden_biases(model, -3.0) if sick else model, adam(model), digits(), epochs=10)


@sick(
    "TM301", "nobody logs, and the convolutions are silent", family="cnn", data="digits",
    symptoms=(*STUCK, "TM303", "TM305"), also=("TM303",),
    cures=("reinitialize", "replace-activation", "insert-batchnorm"),
)  # fmt: skip
def silent_convolutions(sick: bool) -> Training:
    model = cnn(norm=False)
    return Training(
        hidden_biases(model, -2.0) if sick else model, momentum(model, 0.02), digits(), epochs=6, habit="nothing"
    )  # fmt: skip


@sick(
    "TM302", "tanh on weights of standard deviation 1", family="mlp", data="digits", also=("TM303",),
    symptoms=(*STUCK, "TM202", "TM501"), cures=("reinitialize", "insert-batchnorm", "replace-activation"),
)  # fmt: skip
def large_tanh(sick: bool) -> Training:
    model = mlp(64, 64, 64, 64, 10, activation=nn.Tanh)
    if sick:
        matrices(model, nn.init.normal_)
    return Training(model, adam(model), digits(), epochs=12)


@sick(
    "TM302", "sigmoids after weights of standard deviation 5", family="autoencoder", data="digits", metric=EXPLAINED,
    also=("TM303",), symptoms=STUCK, cures=("reinitialize", "insert-batchnorm", "replace-activation"),
)  # fmt: skip
def stuck_sigmoids(sick: bool) -> Training:
    data = digits()
    model = Autoencoder(activation=nn.Sigmoid)
    if sick:
        matrices(model.encoder, lambda weight: nn.init.normal_(weight, std=5.0))
    return Training(model, adam(model, 1e-2), data._replace(y=data.x, val_y=data.val_x), nn.MSELoss(), epochs=25)


@sick(
    "TM303", "every weight 0.05", family="mlp", data="digits", symptoms=(*STUCK, "TM203"), cures=("reinitialize",)
)  # fmt: skip
def constant_weights(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10)
    return Training(constant(model, 0.05) if sick else model, adam(model), digits(), epochs=12)


@sick(
    "TM303", "a fifth of He's weights through eight convolutions", family="cnn", data="digits",
    symptoms=(*STUCK, "TM602", "TM305"), also=("TM201",),
    cures=("reinitialize", "insert-batchnorm", "insert-residual"),
)  # fmt: skip
def faint_convolutions(sick: bool) -> Training:
    model = he(deep_cnn(8), 0.2 if sick else 1.0)
    return Training(model, adam(model, 2e-3), digits(), epochs=6)


@sick(
    "TM303", "a language model drawn from a normal law of 1", family="gpt", data="gpl", metric=SKILL,
    symptoms=(*STUCK, "TM202", "TM302", "TM304", "TM601"), cures=("reinitialize",),
)  # fmt: skip
def wild_language_model(sick: bool) -> Training:
    model = GPT()
    if sick:
        matrices(model, nn.init.normal_)
    return Training(model, adam(model, 1e-2), gpl(), epochs=5, batch=16)


SKEWED = ("TM301", "TM302", "TM401", "TM402", "TM403", "TM404", "TM405", "TM406", "TM502", "TM601", "TM202", "TM305")


@sick(
    "TM304", "measures of 0.001 and of 4,000 side by side", family="mlp", data="cancer", symptoms=SKEWED,
    cures=("normalize-inputs", "insert-batchnorm"),
)  # fmt: skip
def raw_measures(sick: bool) -> Training:
    model = mlp(30, 32, 32, 1)
    data = raw_cancer() if sick else cancer()
    return Training(model, momentum(model, 0.01), as_floats(data), nn.BCEWithLogitsLoss(), epochs=50)


@sick(
    "TM304", "one feature in millionths", family="regressor", data="diabetes", metric=EXPLAINED, symptoms=SKEWED,
    cures=("normalize-inputs", "insert-batchnorm"),
)  # fmt: skip
def other_units(sick: bool) -> Training:
    scale = torch.ones(10)
    scale[2] = 1e4 if sick else 1.0
    model = mlp(10, 32, 1)
    return Training(model, adam(model, 3e-3), diabetes().inputs(lambda x: x * scale), nn.MSELoss(), epochs=60)


@sick(
    "TM304", "targets of 25 to 346 at a usual rate", family="regressor", data="diabetes", metric=EXPLAINED,
    symptoms=("TM405", "TM404", "TM602", "TM502"), cures=("raise-learning-rate", "find-learning-rate"),
)  # fmt: skip
def raw_targets(sick: bool) -> Training:
    model = mlp(10, 32, 32, 1)
    return Training(model, adam(model), raw_diabetes() if sick else diabetes(), nn.MSELoss(), epochs=60)


@sick(
    "TM305", "softmax over a single unit", family="mlp", data="cancer", also=("TM407",),
    metric=PROBABILITY, symptoms=("TM201", "TM203", "TM404", "TM406", "TM503", "TM502"),
)  # fmt: skip
def softmax_of_one(sick: bool) -> Training:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.last = mlp(30, 32, 1), nn.Softmax(dim=1) if sick else nn.Sigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layers(x))  # type: ignore[no-any-return]

    model = Classifier()
    return Training(model, adam(model, 3e-3), as_floats(cancer()), nn.BCELoss(), epochs=40)


@sick(
    "TM305", "a rectifier after the last layer of a regression", family="regressor", data="diabetes",
    metric=EXPLAINED, also=("TM301", "TM407"), symptoms=("TM404", "TM406", "TM502", "TM203", "TM201"),
)  # fmt: skip
def rectified_output(sick: bool) -> Training:
    model = nn.Sequential(mlp(10, 32, 1), nn.ReLU() if sick else nn.Identity())
    data = diabetes().targets(lambda y: y - 3)
    return Training(model, adam(model, 3e-3), data, nn.MSELoss(), epochs=60)


@sick(
    "TM306", "momentum meant as elsewhere: running statistics that hardly move", family="cnn", data="digits",
    symptoms=("TM504", "TM501"),
)  # fmt: skip
def other_momentum(sick: bool) -> Training:
    model = cnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1e-4 if sick else 0.1
    return Training(model, momentum(model), digits().inputs(lambda x: x * 16), epochs=6)


@sick(
    "TM306", "two samples a batch through batch norm", family="mlp", data="digits",
    symptoms=("TM205", "TM504", "TM501", "TM403", "TM404", "TM502"),
)  # fmt: skip
def tiny_norm_batches(sick: bool) -> Training:
    model = mlp(64, 64, 64, 10, norm=nn.BatchNorm1d)
    data = digits().first(1_000 if sick else 1_347)
    return Training(model, adam(model), data, epochs=1 if sick else 25, batch=2 if sick else 64)
