"""TM205: what the noise of small batches adds to the loss is a good part of it."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import matrices, several
from trainmedic.diagnose.learnt import SPAN, learnt
from trainmedic.diagnose.robust import Array, chance_level, median, medians
from trainmedic.history import History, Layer

FEW_SAMPLES = 64
"""Samples whose mean loss is the first level of a run: that of one is luck."""
ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "RMSprop")
"""Optimizers whose step is the rate times a gradient of about unit size, element by element."""


def _run(losses: list[float], norm: float, cosine: float = 0.05, rates: list[float] | None = None) -> History:
    """An example: plain SGD with one weight matrix."""
    count = len(losses)
    values: dict[str, Any] = {"a.weight__gradient_cosine": [cosine] * count, "gradient_norm": [norm] * count}
    facts = {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "loss": "MSELoss"}
    layers = [Layer("a.weight", "parameter", 0, (8, 8))]
    values["optimizer_learning_rate"] = rates or [0.01] * count
    return History.of(train_loss=losses, layers=layers, facts=facts, **values)


class Rest(NamedTuple):
    """Where a run stands still: onset, step at which that was seen, mean loss, share of it that is noise, cosine."""

    step: int
    detected_at: int
    level: float
    share: float
    cosine: float


class NoisyGradient(Rule):
    """The run stands still above what it could reach: each step walks at random about as far as it descends.

    Why it is bad: the loss stays up by what the noise adds, whatever the length of the run.
    Usual causes: batches of a few samples at the rate of large ones; a rate that is never lowered; no averaging.
    Formula: at rest, noise holds the loss up by rate / (1 - momentum) x |gradient|^2 / 4 in SGD, and by rate x 1.25 sum
    of |gradient elements| / 4 in Adam and its kin (times the clipping). Told where that is above `excess` of the mean
    loss in the newer half of the run, or above `of_gain` of what that has come down by, and more than as long a run
    again would bring at the pace of the newest quarter (less `sigmas` standard errors, by `blocks` block means over the
    newer three quarters), while consecutive gradients have a mean cosine below `agree` (noise, not curvature), at least
    `least` losses were logged, and the mean loss has come down by more than `learnt` and less than `works` of that of
    the best constant answer, or of its first level (by the accuracy too). Batches of more than `batch` samples are left
    to learning-rate-too-high, which asks for a loss that does not fall at all (Kendall's tau of those blocks,
    one-sided, p above `significance`).
    Remedies: schedule-learning-rate, lower-learning-rate, average-weights, enlarge-batch.
    Known limits: silent where a scheduler is in use, as the rate is going to fall, and where the loss is no known
    criterion (of rewards a loss tells nothing).
    Source: the stationary variance of SGD on a quadratic, rate x noise / (2 curvature) in each direction (Mandt et al.
    2017, arXiv:1704.04289), times curvature / 2; McCandlish et al. 2018, arXiv:1812.06162, on what batch size does to
    it.
    """

    code: ClassVar[str] = "TM205"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.LEARNING_RATE
    needs: ClassVar[tuple[str, ...]] = (
        "gradient_mean_abs|gradient/norm",
        "gradient_cosine",
        "optimizer/learning_rate",
        "train/loss",
    )
    remedies: ClassVar[tuple[str, ...]] = (
        "schedule-learning-rate",
        "lower-learning-rate",
        "average-weights",
        "enlarge-batch",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "loss-oscillation",
        "plateau",
        "slow-convergence",
        "underfitting",
    )
    advice: ClassVar[str] = (
        "Usually means that the batches are too small for the learning rate. "
        "Do this: let the rate fall to zero over the run (CosineAnnealingLR), or make batches four times as large. "
        "Otherwise check (a) the samples: is the loss of a few of them hundreds of times that of the others? "
        "(b) averaged weights: torch.optim.swa_utils.AveragedModel; (c) gradients added up over several batches: "
        "(loss / k).backward() k times before each step()."
    )

    excess: float = Field(
        0.1, gt=0, description="share of the loss, 0 to 1 (a tenth; that of healthy runs is below 0.04)"
    )
    of_gain: float = Field(
        0.33, gt=0, description="the same over what the loss has come down by (a third of all that was won)"
    )
    agree: float = Field(
        0.4, gt=0, le=1, description="mean cosine, -1 to 1 (above it they point one way, or to and fro)"
    )
    blocks: int = Field(12, ge=6, description="blocks of the newer three quarters, a number (enough for a rank test)")
    sigmas: float = Field(3.0, gt=0, description="fall, standard errors (one of 700 that stand still falls more)")
    significance: float = Field(0.05, gt=0, lt=0.5, description="p, one-sided (one of 20 that fall looks at rest)")
    least: int = Field(120, ge=48, description="losses (blocks of seven)")
    batch: int = Field(4, ge=1, description="samples a step (with more of them the rate is to blame, not the batch)")
    learnt: float = Field(0.03, gt=0, lt=1, description="share of the first loss, 0 to 1 (not at chance any more)")
    works: float = Field(0.9, gt=0, le=1, description="share of the first loss, 0 to 1 (what is left does not matter)")

    def check(self, history: History) -> Iterator[Finding]:
        rest = self.rest(history) if self.small(history) else None
        if rest is not None:
            batch = history.facts.get("batch_size")
            of = f" of {batch}" if isinstance(batch, int) else ""
            yield self.finding(
                step=rest.step,
                detected_at=rest.detected_at,
                where=("gradient/norm",),
                message=f"the loss has stopped at {rest.level:.3g}, and the noise of batches{of} at this learning rate "
                f"alone makes up about {100 * min(rest.share, 1.0):.0f} % of it",
                evidence=self.told(rest),
                confidence=0.7,
            )

    def told(self, rest: "Rest") -> list[Evidence]:
        """What was seen, in numbers."""
        share, limit = 100 * rest.share, 100 * self.excess
        return [
            Evidence(name="part of the loss that noise holds up", value=share, limit=limit, unit="%"),
            Evidence(name="cosine between consecutive gradients", value=rest.cosine, limit=self.agree),
        ]

    def rest(self, history: History) -> "Rest | None":
        """Where the run stands still because of noise, whatever its batches; ``None`` where it does not."""
        if (
            several(history)
            or learnt(history) > self.works
            or "scheduler" in history.facts
            or not history.facts.get("loss")
            or self.unmet(history)
        ):
            return None
        steps, excess = _excess(history)
        losses = history.series("train/loss")
        if len(losses.steps) < self.least or not len(steps):
            return None
        seen, newest, moved = None, (0.0, 0.0), False
        for end in self._looks(len(losses.steps))[::-1]:  # from the newest: most runs end here
            found = self._at_rest(history, losses.steps[: end + 1], losses.values[: end + 1], steps, excess)
            if found is None and (moved or not self.small(history)):
                break
            moved = found is None  # of few samples, one look in 700 falls by chance
            if found is not None:
                newest, seen = (found if seen is None else newest), int(end)
        if seen is None:
            return None
        level = float(np.mean(losses.values[len(losses.values) // 2 :]))
        return Rest(int(losses.steps[seen // 4]), int(losses.steps[seen]), level, *newest)

    def _looks(self, count: int) -> NDArray[np.int64]:
        """Places to look at, each a twentieth further than the one before, whatever the length of the run."""
        number = int(np.log(max(count, 1) / self.least) / np.log(1.05)) + 2
        places = np.unique((self.least * 1.05 ** np.arange(max(number, 1))).astype(np.int64)) - 1
        return np.asarray(places[places < count])

    def _at_rest(
        self, history: History, steps: NDArray[np.int64], losses: Array, at: NDArray[np.int64], excess: Array
    ) -> tuple[float, float] | None:
        """Share of the loss that is noise, and the cosine, where the run stands still by then; otherwise ``None``."""
        newer = losses[len(losses) // 4 :]
        if not np.isfinite(newer).all():
            return None
        size = len(newer) // self.blocks
        with np.errstate(all="ignore"):
            levels = newer[len(newer) - size * self.blocks :].reshape(self.blocks, size).mean(axis=1)
            level = float(losses[len(losses) // 2 :].mean())
            since = steps[len(steps) // 2]
            held = excess[(at >= since) & (at <= steps[-1])]
            share = float(np.mean(held[np.isfinite(held)])) / level if np.isfinite(held).any() and level > 0 else 0.0
        gained = self._gained(history, steps, losses, level)
        if gained is None or not min(self.excess * level, self.of_gain * gained) < share * level < np.inf:
            return None
        cosine = _cosine(history, int(since), int(steps[-1]))
        if not abs(cosine) < self.agree or _rate_varies(history, int(steps[len(steps) // 4]), int(steps[-1])):
            return None
        return (share, cosine) if self._rests(history, levels, share * level) else None

    def _rests(self, history: History, levels: Array, held: float) -> bool:
        """Whether noise costs more than as long a run again would bring; of larger batches, whether the run stands."""
        third = self.blocks // 3  # the newer three quarters are judged: a third of them is a quarter of all
        before, now = levels[-2 * third : -third], levels[-third:]
        doubt = float(np.hypot(before.std(ddof=1), now.std(ddof=1))) / third**0.5
        if 4 * (before.mean() - now.mean() - self.sigmas * doubt) >= held:
            return False
        if self.small(history):
            return True
        from scipy.stats import kendalltau

        trend = kendalltau(np.arange(self.blocks), levels, alternative="less")  # their gradients are signal, too
        return bool(trend.pvalue > self.significance)

    def small(self, history: History) -> bool:
        """Whether a step is taken on a few samples only; of unknown ones it is."""
        batch, parts = history.facts.get("batch_size"), history.facts.get("accumulation", 1)
        return not (isinstance(batch, int) and isinstance(parts, int) and batch * parts > self.batch)

    def _gained(self, history: History, steps: NDArray[np.int64], losses: Array, level: float) -> float | None:
        """By how much the loss has come down; ``None`` where that is nothing yet, or nearly all."""
        start = chance_level(history, int(steps[-1]))
        if start is None or not start > 0:
            size = history.facts.get("batch_size")
            few = max(SPAN, -(-FEW_SAMPLES // size)) if isinstance(size, int) and size > 0 else SPAN
            start = float(losses[:few].mean())
        known = np.isfinite(start) and self.learnt * abs(start) < start - level < self.works * abs(start)
        return start - level if known else None

    sick: ClassVar = (
        _run([1.2] * 40 + [0.6 + 0.3 * ((7 * i) % 11 - 5) / 5 for i in range(400)], 2.0),
        _run([1.0] * 20 + [0.7 + 0.4 * ((5 * i) % 13 - 6) / 6 for i in range(1000)], 2.5),
    )
    healthy: ClassVar = (
        # small batches at a rate that fits them
        _run([1.2] * 40 + [0.6 + 0.3 * ((7 * i) % 11 - 5) / 5 for i in range(400)], 0.5),
        # it still comes down
        _run([1.2 * 0.995**i * (1 + 0.3 * ((7 * i) % 11 - 5) / 5) for i in range(400)], 2.0),
        # gradients that agree: another illness, or none
        _run([1.2] * 40 + [0.6] * 400, 2.0, cosine=0.9),
        # a rate that goes up and down
        _run([1.2] * 40 + [0.6] * 400, 2.0, rates=[0.01 * (1 + i % 40) for i in range(440)]),
    )


def _excess(history: History) -> tuple[NDArray[np.int64], Array]:
    """Per measured step, by how much noise of this size would hold the loss up at rest."""
    options = history.facts.get("optimizer_options")
    kind = str(history.facts.get("optimizer"))
    if kind == "SGD" and "gradient/norm" in history:
        momentum = options.get("momentum", 0.0) if isinstance(options, dict) else 0.0
        momentum = momentum if isinstance(momentum, int | float) and 0 <= momentum < 1 else 0.0
        steps, norms = history.series("gradient/norm")
        with np.errstate(all="ignore"):
            noise = norms**2 / (1 - momentum)
    elif kind in ADAPTIVE and "gradient_mean_abs" in history:
        table = history.layers("gradient_mean_abs")
        known = [history.architecture.get(name) for name in table.layers]
        sizes = np.array([float(np.prod(layer.shape)) if layer is not None else 0.0 for layer in known])
        steps = table.steps
        with np.errstate(all="ignore"):
            noise = 1.25 * np.where(np.isfinite(table.values), table.values.astype(np.float64) * sizes, 0.0).sum(axis=1)
    else:
        return np.empty(0, dtype=np.int64), np.empty(0)
    at, rates = history.series("optimizer/learning_rate")
    place = np.clip(np.searchsorted(at, steps, side="right") - 1, 0, None)
    with np.errstate(all="ignore"):
        return steps, rates[place] * noise * _clipped(history) / 4


def _clipped(history: History) -> float:
    """What gradients are usually multiplied by before the step."""
    if "gradient/clipped" not in history:
        return 1.0
    factor = median(history.series("gradient/clipped").values)
    return min(factor, 1.0) if factor >= 0 else 1.0


def _cosine(history: History, since: int, until: int) -> float:
    """Mean over the measured steps of the cosine of the weight matrix in the middle; NaN where none was measured."""
    table = history.layers("gradient_cosine")
    rows = (table.steps >= since) & (table.steps <= until)
    values = medians(table.values[rows][:, matrices(history, table)].astype(np.float64)) if rows.any() else np.empty(0)
    values = values[np.abs(values) <= 1]
    return float(values.mean()) if len(values) else float("nan")


def _rate_varies(history: History, since: int, until: int) -> bool:
    """Whether the rate has been changed by half since then."""
    steps, rates = history.series("optimizer/learning_rate")
    rates = rates[(steps >= since) & (steps <= until)]
    return not len(rates) or not rates.min() > 0.5 * rates.max()
