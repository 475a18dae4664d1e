"""Healthy runs as people log them, drawn at random: losses of any scale and sign, any way of logging, any schedule.

Each family is a function of a random generator and gives one run that nothing is wrong with. A rule that speaks on one
of them is wrong, however it judges the clinic.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.diagnose.curves import correlated, long_tailed, white
from trainmedic.history import History

Array = NDArray[np.float64]
Random = np.random.Generator
Family = Callable[[Random], History]


# -- ingredients -----------------------------------------------------------------------------------------------------


def gone(random: Random, steps: int) -> Array:
    """What is left of the way from the first loss to the last, 1 to nearly 0, in one of the shapes that losses have."""
    t = np.arange(steps) / steps
    shape = random.integers(5)
    if shape == 0:
        return np.exp(-random.uniform(3, 60) * t)
    if shape == 1:
        scale = random.uniform(0.001, 0.1)
        return np.asarray((1 + t / scale) ** -random.uniform(0.3, 1.0))
    if shape == 2:  # a while at the start level, then it learns
        middle, width = random.uniform(0.1, 0.35), random.uniform(0.02, 0.08)
        return np.asarray(1 / (1 + np.exp((t - middle) / width)))
    if shape == 3:  # the rate is cut twice
        cuts = np.sort(random.uniform(0.3, 0.9, 2))
        levels = np.array([0.4, 0.2, 0.12])
        return np.asarray(levels[np.searchsorted(cuts, t, side="right")] + 0.6 * np.exp(-random.uniform(20, 100) * t))
    return np.asarray(0.5 * np.exp(-30 * t) + 0.5 * (1 - t) ** random.uniform(0.5, 2))  # linear to the end


def shaken(random: Random, steps: int, level: float) -> Array:
    """Noise of a batch's loss: white, lasting, or long-tailed."""
    kind = random.integers(3)
    if kind == 0:
        return level * white(random, steps)
    if kind == 1:
        return min(level, 0.25) * correlated(random, steps, random.uniform(0.3, 0.95))  # averages: they vary less
    return level * np.clip(long_tailed(random, steps), -8, 8)


def length(random: Random, most: float = 4.3) -> int:
    """Thirty steps to twenty thousand, by their logarithm."""
    return int(10 ** random.uniform(1.5, most))


def positive(random: Random, steps: int) -> Array:
    """A loss above zero, of any scale: noise multiplies it."""
    floor = random.choice([0.0, 0.01, 0.1, 0.3, 0.6, 0.9])
    curve = floor + (1 - floor) * gone(random, steps)
    return np.asarray(curve * np.exp(np.clip(shaken(random, steps, random.uniform(0.01, 0.3)), -2, 2)))


def rates(random: Random, steps: int) -> tuple[str | None, Array]:
    """A schedule and its rates."""
    t, top = np.arange(steps) / steps, 10 ** random.uniform(-5, -0.5)
    warm = np.minimum(1, (np.arange(steps) + 1) / max(1, random.uniform(0.0, 0.1) * steps))
    kind = random.choice(["none", "cosine", "linear", "steps", "cycles", "once", "exponential"])
    if kind == "cosine":
        return "CosineAnnealingLR", top * warm * (0.5 + 0.5 * np.cos(np.pi * t)) + 1e-3 * top
    if kind == "linear":
        return "LambdaLR", top * warm * (1 - t)
    if kind == "steps":
        return "MultiStepLR", top * 0.1 ** np.searchsorted(np.sort(random.uniform(0.3, 0.9, 2)), t)
    if kind == "cycles":
        return "CosineAnnealingWarmRestarts", top * (0.5 + 0.5 * np.cos(np.pi * (t * random.integers(2, 8) % 1)))
    if kind == "once":
        return "OneCycleLR", top * np.interp(t, [0, 0.3, 1], [0.04, 1, 1e-4])
    if kind == "exponential":
        return "ExponentialLR", top * np.exp(-3 * t)
    return None, np.full(steps, top) * warm


def validated(random: Random, history: History, at: Array, loss: Array) -> None:
    """One to three sets, a gap apart, noisy, some with an accuracy."""
    for name in random.choice(["validation", "validation/a", "validation/b"], random.integers(1, 4), replace=False):
        gap, noise = random.uniform(1.0, 1.3), random.uniform(0.001, 0.08)
        values = gap * np.maximum.accumulate(loss[::-1])[::-1] + noise * np.abs(loss).max() * 0.1 * white(
            random, len(at)
        )
        history.add_series(f"{name}/loss", at.astype(int), values * (1 + noise * white(random, len(at))))
        if random.random() < 0.5:
            known = 1 - 0.9 * np.clip(loss / loss[0], 0, 1)
            history.add_series(f"{name}/accuracy", at.astype(int), np.clip(known, 0, 1))


def smooth(curve: Array, blocks: int) -> Array:
    """Means of a curve over as many stretches of it."""
    return np.array([part.mean() for part in np.array_split(curve, blocks)])


# -- families --------------------------------------------------------------------------------------------------------


def logged_steps(random: Random) -> History:
    """Single batches, at every step or every tenth, of any scale."""
    steps = length(random)
    every = int(random.choice([1, 1, 5, 10, 50, 100]))
    loss = 10 ** random.uniform(-6, 6) * positive(random, steps)
    kind, rate = rates(random, steps)
    history = History()
    history.add_series("train/loss", range(0, steps, every), loss[::every])
    if random.random() < 0.7:
        history.add_series("optimizer/learning_rate", range(0, steps, every), rate[::every])
    if random.random() < 0.5:
        norm = 10 ** random.uniform(-4, 4) * (loss / loss[0]) ** random.uniform(0, 1)
        history.add_series(
            "gradient/norm", range(0, steps, every), (norm * np.exp(shaken(random, steps, 0.3)))[::every]
        )
    if random.random() < 0.5:
        at = np.unique(np.linspace(0, steps - 1, random.integers(3, 60)).astype(int))
        validated(random, history, at, loss_without_noise(loss)[at])
    if kind is not None and random.random() < 0.5:
        history.facts["scheduler"] = kind
    return history


def loss_without_noise(loss: Array) -> Array:
    """The trend of a noisy loss: means over a thirtieth of the run."""
    parts = smooth(loss, min(30, len(loss)))
    return np.interp(np.linspace(0, 1, len(loss)), np.linspace(0, 1, len(parts)), parts)


def epochs_only(random: Random) -> History:
    """One value an epoch, as Keras has it: means over the epoch, validation beside them."""
    epochs = int(random.integers(5, 51))
    loss = 10 ** random.uniform(-5, 5) * smooth(positive(random, 40 * epochs), epochs)
    history = History.of(train_loss=loss, facts={"time": "epoch"})
    validated(random, history, np.arange(epochs), loss)
    if random.random() < 0.5:
        history.add_series("train/accuracy", range(epochs), 1 - 0.9 * np.clip(loss / loss[0], 0, 1))
    return history


def only_accuracy(random: Random) -> History:
    """No loss at all."""
    epochs = int(random.integers(5, 51))
    known = 1 - 0.9 * gone(random, epochs) + 0.01 * white(random, epochs)
    history = History.of(facts={"time": "epoch"}, train_accuracy=np.clip(known, 0, 1))
    history.add_series("validation/accuracy", range(epochs), np.clip(known - 0.05, 0, 1))
    return history


def running_means(random: Random) -> History:
    """Means that are smoothed before they are logged: over the run, over the newest, or anew in each epoch."""
    steps = max(100, length(random, 3.7))
    loss = 10 ** random.uniform(-3, 3) * positive(random, steps)
    kind = random.integers(3)
    if kind == 0:
        shown = np.cumsum(loss) / np.arange(1, steps + 1)
    elif kind == 1:
        from scipy.signal import lfilter

        weight = random.choice([0.9, 0.98, 0.99])
        shown = lfilter([1 - weight], [1, -weight], loss - loss[0]) + loss[0]
    else:
        size = max(10, steps // int(random.integers(2, 20)))
        parts = [loss[i : i + size] for i in range(0, steps, size)]
        shown = np.concatenate([np.cumsum(part) / np.arange(1, len(part) + 1) for part in parts])
    return History.of(train_loss=shown)


def below_zero(random: Random) -> History:
    """Log-likelihoods, ELBOs, contrastive losses: they cross zero, or never see it."""
    steps = length(random)
    scale, top = 10 ** random.uniform(-1, 4), random.uniform(-2, 2)
    loss = scale * (
        top + random.uniform(0.5, 3) * gone(random, steps) + shaken(random, steps, random.uniform(0.01, 0.2))
    )
    return History.of(train_loss=loss, optimizer_learning_rate=rates(random, steps)[1])


def language_model(random: Random) -> History:
    """Warm-up and cosine, a power law, a perplexity, the norm high at first, hardly a spike."""
    steps = max(200, length(random, 4.6))
    t = np.arange(steps) / steps
    loss = random.uniform(1.5, 3.5) + random.uniform(4, 8) * (1 + t * random.uniform(50, 2000)) ** -random.uniform(
        0.3, 0.6
    )
    loss += shaken(random, steps, random.uniform(0.01, 0.1))
    every = int(random.choice([1, 10, 20]))
    rate = np.minimum(1, t / 0.03) * (0.1 + 0.45 * (1 + np.cos(np.pi * t))) * 10 ** random.uniform(-4.5, -2.5)
    norm = 0.5 + 10 * np.exp(-t * 100) + 0.1 * np.abs(white(random, steps))
    history = History()
    for name, values in (("train/loss", loss), ("optimizer/learning_rate", rate), ("gradient/norm", norm)):
        history.add_series(name, range(0, steps, every), values[::every])
    at = np.unique(np.linspace(steps // 20, steps - 1, random.integers(5, 40)).astype(int))
    history.add_series("validation/loss", at, loss_without_noise(loss)[at] + 0.02 + 0.005 * white(random, len(at)))
    return history


def fine_tuning(random: Random) -> History:
    """It begins low, at a tiny rate, for a few epochs; the second epoch begins with a step down."""
    steps = max(30, length(random, 3.5))
    epochs = int(random.integers(1, 5))
    epoch = np.arange(steps) * epochs // steps
    loss = np.array([1.0, 0.7, 0.5, 0.35, 0.25])[epoch] * 10 ** random.uniform(-2, 0.3)
    loss = (
        loss
        * (1 - 0.3 * (1 - np.exp(-np.arange(steps) / 20)))
        * np.exp(np.clip(shaken(random, steps, 0.25), -1.5, 1.5))
    )
    rate = (
        10 ** random.uniform(-6, -4)
        * np.minimum(1, np.arange(1, steps + 1) / (0.06 * steps))
        * (1 - np.arange(steps) / steps)
    )
    history = History.of(train_loss=loss, optimizer_learning_rate=rate)
    ends = [steps * (i + 1) // epochs - 1 for i in range(epochs)]
    apart = np.array([0.8, 0.7, 0.69, 0.7, 0.7])[:epochs] * loss_without_noise(loss)[0]
    history.add_series("validation/loss", ends, apart)
    history.add_series("validation/accuracy", ends, np.array([0.85, 0.88, 0.89, 0.89, 0.89])[:epochs])
    return history


def small_batches(random: Random) -> History:
    """Batches of one to four: losses near zero with hard samples among them, again and again."""
    steps = max(200, length(random))
    easy = positive(random, steps) * random.uniform(0.05, 1)
    loss = easy * random.exponential(1, steps) * np.exp(random.uniform(0.2, 1.2) * white(random, steps))
    return History.of(train_loss=loss, optimizer_learning_rate=rates(random, steps)[1], facts={"batch_size": 2})


def players(random: Random) -> History:
    """A GAN: losses that rise, fall and swing against each other."""
    steps = max(100, length(random))
    t = np.arange(steps) / steps
    wave = random.uniform(0.1, 0.5) * np.sin(2 * np.pi * random.uniform(1, 20) * t)
    history = History()
    named = bool(random.integers(2))
    d, g = ("train/loss_d", "train/loss_g") if named else ("train/loss", "train/g_loss")
    history.add_series(d, range(steps), 0.7 - 0.5 * t + wave + shaken(random, steps, 0.1))
    history.add_series(g, range(steps), 0.7 + random.uniform(0, 4) * t - wave + shaken(random, steps, 0.2))
    if not named:
        history.facts["optimizers"] = 2
    return history


def agents(random: Random) -> History:
    """Reinforcement learning: losses without a meaning of their own, rewards that grow."""
    steps = max(100, length(random, 3.7))
    t = np.arange(steps) / steps
    history = History()
    history.add_series("train/policy_loss", range(steps), shaken(random, steps, 0.05))
    history.add_series("train/loss", range(steps), np.exp(shaken(random, steps, 1.0)) * (1 + 10 * t * (1 - t)))
    history.add_series("train/reward", range(steps), 100 * (1 - np.exp(-5 * t)) + 20 * white(random, steps))
    return history


def at_the_floor(random: Random) -> History:
    """Noise in the targets: down early, then nothing more to be had for most of the run; or all of it had."""
    steps = length(random)
    floor = random.choice([1e-8, 1e-4, 0.05, 0.5, 0.8])
    curve = floor + (1 - floor) * np.exp(-np.arange(steps) * random.uniform(20, 200) / steps)
    loss = 10 ** random.uniform(-3, 3) * curve * np.exp(np.clip(shaken(random, steps, 0.2), -2, 2))
    history = History.of(train_loss=loss, optimizer_learning_rate=rates(random, steps)[1])
    at = np.unique(np.linspace(0, steps - 1, random.integers(3, 60)).astype(int))
    apart = loss_without_noise(loss)[at] + (0.05 + 0.02 * white(random, len(at))) * loss[0]
    history.add_series("validation/loss", at, np.abs(apart))
    return history


def restarts(random: Random) -> History:
    """A rate that goes up and down, and a loss that goes with it."""
    steps = max(100, length(random))
    cycles = int(random.integers(2, 9))
    phase = np.arange(steps) * cycles / steps % 1
    rate = 10 ** random.uniform(-4, -1) * (0.5 + 0.5 * np.cos(np.pi * phase))
    left = 0.3 + 0.7 * gone(random, steps)
    loss = left * (1 + random.uniform(0.1, 1.0) * (0.5 + 0.5 * np.cos(np.pi * phase)))
    loss = 10 ** random.uniform(-3, 3) * loss * np.exp(np.clip(shaken(random, steps, 0.1), -1, 1))
    history = History.of(train_loss=loss)
    if random.random() < 0.7:
        history.add_series("optimizer/learning_rate", range(steps), rate)
    return history


def known_task(random: Random) -> History:
    """What a live run knows beside its curve: classes and chance, updates, the length of the run."""
    steps = max(60, length(random, 3.7))
    classes = int(random.choice([2, 3, 10, 100, 1000]))
    chance = float(np.log(classes))
    floor = random.choice([0.01, 0.1, 0.3, 0.6])
    left = floor + (1 - floor) * gone(random, steps)
    batch = int(random.choice([1, 8, 32, 256]))
    loss = chance * left * np.exp(np.clip(shaken(random, steps, min(0.5, 1 / batch**0.5)), -2, 2))
    facts: dict[str, Any] = {
        "loss": "CrossEntropyLoss", "reduction": "mean", "classes": classes, "batch_size": batch,
        "total_steps": steps, "optimizer": str(random.choice(["SGD", "Adam", "AdamW", "RMSprop"])),
    }  # fmt: skip
    right = 1 - (1 - 1 / classes) * left
    history = History.of(
        train_loss=loss,
        optimizer_learning_rate=rates(random, steps)[1],
        output_accuracy=random.binomial(batch, right) / batch,
        facts=facts,
    )
    at = np.unique(np.linspace(0, steps - 1, random.integers(3, 40)).astype(int))
    history.add_series(
        "validation/loss", at, chance * (left[at] * random.uniform(1, 1.15) + 0.02 * np.abs(white(random, len(at))))
    )
    history.add_series("validation/accuracy", at, right[at] * 0.97)
    return history


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        logged_steps, epochs_only, only_accuracy, running_means, below_zero, language_model, fine_tuning,
        small_batches, players, agents, at_the_floor, restarts, known_task,
    )
}  # fmt: skip
