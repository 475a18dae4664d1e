"""Healthy and sick curves, drawn with a seed: what tests of the rules on curves share."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainmedic.history import History, Layer

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int], Array]


def white(random: np.random.Generator, count: int) -> Array:
    return random.standard_normal(count)


def correlated(random: np.random.Generator, count: int, rho: float = 0.9) -> Array:
    """Autoregressive noise of unit variance, as losses have that are averaged before they are logged."""
    from scipy.signal import lfilter

    drawn = random.standard_normal(count) * (1 - rho**2) ** 0.5
    return np.asarray(lfilter([1.0], [1.0, -rho], drawn))


def long_tailed(random: np.random.Generator, count: int) -> Array:
    """Student's t with three degrees of freedom: batches of a few samples."""
    return random.standard_t(3, count)


NOISES: dict[str, Noise] = {"white": white, "correlated": correlated, "long-tailed": long_tailed}


def exponential(count: int, floor: float = 0.0) -> Array:
    return floor + (2.3 - floor) * np.exp(-np.arange(count) * 6 / count)


def power(count: int, floor: float = 1.5) -> Array:
    return floor + 9.0 * (1 + np.arange(count)) ** -0.4


def early(count: int, floor: float = 0.5) -> Array:
    """Down within a twentieth of the run, then on a floor that noise in the labels sets."""
    return floor + (2.3 - floor) * np.exp(-np.arange(count) * 60 / count)


def stairs(count: int) -> Array:
    """A rate that is cut twice."""
    thirds = np.minimum(np.arange(count) * 3 // count, 2)
    return np.array([0.9, 0.4, 0.3])[thirds] + np.where(thirds == 0, 1.4 * np.exp(-np.arange(count) * 20 / count), 0)


def waits(count: int) -> Array:
    """A quarter of the run at chance, then it learns."""
    return 0.2 + 2.1 / (1 + np.exp((np.arange(count) - 0.35 * count) / (0.04 * count)))


def restarts(count: int) -> Array:
    """Five cosine cycles: the loss jumps up with the rate."""
    phase = np.arange(count) * 5 / count % 1
    return (0.2 + 0.5 * (1 + np.cos(np.pi * phase))) * (1 - 0.5 * np.arange(count) / count)


def flat(count: int) -> Array:
    """Fine-tuning: low from the beginning."""
    return np.full(count, 0.08)


def likelihood(count: int) -> Array:
    """A negative log-likelihood that goes below zero."""
    return 5 - 12 * (1 - np.exp(-np.arange(count) * 4 / count))


SHAPES: dict[str, Callable[[int], Array]] = {
    shape.__name__: shape for shape in (exponential, power, early, stairs, waits, restarts, flat, likelihood)
}


def healthy(shape: str, noise: str, level: float, count: int, seed: int) -> Array:
    """A curve with noise of ``level``, a share of its height; where it is positive, noise multiplies."""
    random = np.random.default_rng(seed)
    curve, drawn = SHAPES[shape](count), NOISES[noise](random, count)
    if shape == "likelihood":
        return curve + level * 5 * drawn
    return curve * np.exp(np.clip(level * drawn, -3, 3))


def quadratic(rate: float, noise: float, floor: float = 1.0, steps: int = 1_000, **facts: Any) -> History:
    """SGD on x^2 / 2 in 64 dimensions, with a noisy gradient and a loss that cannot go below a floor."""
    random = np.random.default_rng(0)
    x = np.full(64, 0.5)
    losses, norms, cosines = [], [], []
    before = np.zeros(64)
    for _ in range(steps):
        gradient = x + noise * random.standard_normal(64)
        losses.append(floor + float(x @ x) / 2)
        norms.append(float(np.linalg.norm(gradient)))
        cosines.append(float(gradient @ before / (np.linalg.norm(gradient) * np.linalg.norm(before) + 1e-12)))
        x, before = x - rate * gradient, gradient
    values: dict[str, Any] = {"a.weight__gradient_cosine": cosines, "gradient_norm": norms}
    values |= {"optimizer_learning_rate": [rate] * steps, "a.weight__update_ratio": [0.01] * steps}
    known = {"optimizer": "SGD", "optimizer_options": {"momentum": 0}, "loss": "MSELoss", "batch_size": 2, **facts}
    layers = [Layer("a.weight", "parameter", 0, (8, 8))]
    return History.of(train_loss=losses, layers=layers, facts=known, **values)
