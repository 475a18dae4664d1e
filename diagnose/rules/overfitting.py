"""TM501: validation gets worse while training gets better."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import learnt
from trainmedic.diagnose.robust import (
    BINARY,
    ENTROPIES,
    Array,
    adversarial,
    chance_level,
    correct_by_chance,
    equal_level,
    holds_since,
    median,
    noise,
    share_done,
    thinned,
)
from trainmedic.history import History, Series

LOWEST_OF_THREE = 0.85
"""How many standard deviations the lowest of three normal values lies below their level, on average."""
MOST = 1_024
"""Evaluations that are looked at one by one; of twice as many every second."""
LEARNT = 0.1
"""Share of the training task below which nothing was learnt by heart either."""
MEDIAN_OVER_MEAN = 1.2533
"""Standard error of a median by that of a mean, of normal values: sqrt(pi / 2)."""


def _classes(training: list[float], validation: list[float]) -> History:
    """An example: ten classes."""
    facts = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10, "total_steps": len(training)}
    return History.of(train_loss=training, validation_loss=validation, facts=facts)


class Turn(NamedTuple):
    """Where a validation loss turned: index of its best value, index from which the rise is beyond doubt."""

    best: int
    sure: int
    p_value: float


ACCURACIES = ("train/accuracy", "output/accuracy")
"""Where the accuracy of training is found."""


class Held:
    """A validation loss beside that of training, as it was between each evaluation and the one before.

    Where the loss of the best constant answer is not known, the first one stands for it.
    """

    def __init__(self, validation: Series, training: Series, chance: float) -> None:
        finite = np.flatnonzero(np.isfinite(validation.values))
        finite = finite[:: 1 << max(0, (len(finite) // MOST).bit_length() - 1)]  # the cost stays bounded
        self.steps, self.values = validation.steps[finite], validation.values[finite]
        known = np.isfinite(training.values)
        self._losses = training.values[known]
        self._ends = np.searchsorted(training.steps[known], self.steps, side="right")
        self.training = np.array([self._between(i, 5) for i in range(len(self.steps))])
        first = [*self._losses[:1], *self.values[:1]]
        positive = bool(first) and min(self._losses.min(initial=0.0), self.values.min(initial=0.0)) >= 0
        self.chance = chance if chance > 0 else max(first) if positive else 0.0

    def left(self, curve: Array, part: slice) -> float:
        """What is left to be learnt there, share of that of the best constant answer."""
        return median(curve[part]) / self.chance

    def left_lately(self, part: slice) -> float:
        """What is left in training there by single losses, where evaluations are that close: noisier, but not late."""
        return median(np.array([self._between(i, 1) for i in range(part.start, part.stop)])) / self.chance

    def _between(self, i: int, least: int) -> float:
        begin = min(int(self._ends[i - 1]) if i else 0, max(0, int(self._ends[i]) - least))
        return median(thinned(self._losses[begin : self._ends[i]]))


class Overfitting(Rule):
    """A validation loss that rises from its best, beyond its noise, while the training loss goes on falling.

    Or one that stands far above the training loss and gets nothing of what training still wins: learnt by heart.

    Why it is bad: what is learnt from there on is the training set itself; every further step costs and makes it worse.
    Usual causes: too few data for the size of the model; wrong labels that can be memorised; no regularisation;
    training for too long.
    Formula: the median of the last `smooth` validation losses lies above the level at the best one (the median of it
    and its neighbours, at most 0.85 standard deviations of noise above it) by `rise` of that, by more than any rise
    that the run has come back from, and by `sigmas` standard deviations of noise (the larger of that of second
    differences and that around a straight line since the best). It is there to stay, by one of two tests with a chance
    below `p_value` (a k-th of it at the k-th look, and still at the end): the values from the best on rise (Kendall's
    tau against time, one-sided), or all of the newer half of them lie above it (by the lowest of them, as if `least`
    were independent). The training loss fell meanwhile, by `fall` and beyond its noise, and lies below what it was
    before the best; or, where the rise is twice `sigmas`, it is below `half` of the best validation loss and of where
    it began, and no higher than it was; a tenth of the training task has been learnt, where that is known. And it
    matters: `given_back` of all that had been gained (first loss of the run minus the best) is lost (twice that where
    less than half of the run lies behind the best), or the loss is `multiple` times its best. An accuracy that is no
    worse asks for `severe` in place of `given_back`, and silences it where the best is below `solved` of the first
    loss; there, where no accuracy is known, the loss must be that multiple; where the accuracy became worse too, by two
    standard errors, any rise by `rise` counts. Of a validation set whose loss is not logged, or is above its best and
    tells nothing of this, the same of 1 - accuracy, beyond its standard error. A warning where the accuracy is no
    worse, or less than `severe` of the gain is lost. Silent again once the loss is back at its best. Also a warning:
    what is learnt by heart. In shares of the task (what is left of the loss of the best constant answer; of classes
    that are no tokens, of taking all for alike; where neither is known, of the first loss), from the middle third of
    all evaluations to the newest quarter, or from the best to the newest three: training has won `won`, validation
    less than `shared` of that, training is ahead by `apart`, and of what it has learnt less than `holds` holds in
    validation (`holds_of_noise` of numbers, of errors and of unknown losses), while no accuracy rose by two standard
    errors. Or training is through: less than `learnt` is left there and more than `unlearnt` in validation, which has
    not come down by half of `rise` from the middle third of six evaluations or more, after half of the run. Of a set of
    which only the accuracy is known, the same of wrong answers.
    Remedies: stop-early, weight-decay, dropout, label-smoothing, augment-inputs, l1, average-weights, fix-labels,
    add-data.
    Known limits: needs at least `least` evaluations after the best one: with `p_value` 0.01 four can just show a trend
    (1 in 120 orders of five has no fall). False alarms in 3,600 simulated runs of 8 to 100 evaluations that converge,
    with noise of 2 to 20 % of the gain: 1 in 1,200 where the noise of neighbours is independent, 1 in 120 where it
    correlates by 0.5, 1 in 29 by 0.8 (1 in 18 where training is through, at a fifth of the validation loss). A language
    model begins at the log of its vocabulary, so that its gain is large and a small rise goes unsaid.
    Source: Prechelt 1998, "Early stopping - but when?" (generalisation loss of 5 %, and its quotient with the progress
    of training); Kendall 1938. Least squares with p weights on n samples of noise fits p / n of it in training and adds
    as much in validation.
    """

    code: ClassVar[str] = "TM501"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss",)
    remedies: ClassVar[tuple[str, ...]] = (
        "stop-early",
        "weight-decay",
        "dropout",
        "label-smoothing",
        "augment-inputs",
        "l1",
        "average-weights",
        "fix-labels",
        "add-data",
    )
    advice: ClassVar[str] = (
        "Usually means that the model is large for the data, or that labels are wrong. "
        "Do this: keep the weights of the best validation loss and stop there. Otherwise check (a) the labels of the "
        "training samples with the largest loss: F.cross_entropy(model(x), y, reduction='none').topk(20); (b) whether "
        "more data or augmentation moves the best value: train on half of the data and compare; (c) weight decay and "
        "dropout: torch.optim.AdamW(model.parameters(), weight_decay=0.1), nn.Dropout(0.3)."
    )

    rise: float = Field(0.05, gt=0, description="rise above the best, share of the best (Prechelt's GL of 5 %)")
    given_back: float = Field(
        0.05, gt=0, le=1, description="rise above the best, share of what was gained since the start (as much again)"
    )
    solved: float = Field(
        0.2, gt=0, lt=1, description="best loss over the first, below which only a worse accuracy counts (four fifths)"
    )
    severe: float = Field(0.1, gt=0, le=1, description="the same, from which it is an error (a tenth matters)")
    learnt: float = Field(0.05, gt=0, lt=1, description="loss over that of knowing nothing, in training (a twentieth)")
    unlearnt: float = Field(0.3, gt=0, lt=1, description="the same in validation (six times as much is left)")
    won: float = Field(0.1, gt=0, lt=1, description="what training has won since, share of the task (a tenth matters)")
    shared: float = Field(
        0.2, ge=0, lt=1, description="what validation has won of that, share (a fifth is next to none)"
    )
    apart: float = Field(0.2, gt=0, lt=1, description="what is learnt by heart only, share of the task (a fifth)")
    holds: float = Field(
        0.67, gt=0, lt=1, description="share of what is learnt that holds in validation (a third is learnt by heart)"
    )
    holds_of_noise: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="the same of numbers, whose noise each parameter fits a bit of, or of unknown losses",
    )
    multiple: float = Field(2.0, gt=1, description="validation loss over its best, factor, where no accuracy is known")
    sigmas: float = Field(3.0, gt=0, description="rise, standard deviations of its own noise (three-sigma rule)")
    p_value: float = Field(0.01, gt=0, lt=1, description="chance of such a trend in values without order (convention)")
    fall: float = Field(0.01, gt=0, lt=1, description="fall of the training loss since then, share (less is none)")
    half: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="training loss over the best validation loss, if it falls no more (twice better by heart)",
    )
    least: int = Field(4, ge=3, description="evaluations after the best one (4 rises in a row have p < 0.01)")
    recent: int = Field(200, ge=10, description="newest evaluations, for noise and trend (bounds the cost)")
    smooth: int = Field(3, ge=1, description="evaluations that are judged together (one outlier in three is outvoted)")

    def unmet(self, history: History) -> str | None:
        """Needs a training loss and at least one validation loss or accuracy."""
        known = _validation_losses(history) or _accuracies_of_sets(history)
        return super().unmet(history) or (None if known else "no validation loss in this history")

    def check(self, history: History) -> Iterator[Finding]:
        if learnt(history) < LEARNT:
            return  # training has got nowhere itself
        start = _level(history.series("train/loss").values)
        told = set()
        for name in _validation_losses(history):
            known = history.series(_accuracy_of(name)) if _accuracy_of(name) in history else None
            found = list(self._judged(history, name, history.series(name), start, known))
            chance = _chance(history)
            for finding in found or self._by_heart(history, name, history.series(name), ("train/loss",), chance):
                told.add(_accuracy_of(name))
                yield finding
        for name in _accuracies_of_sets(history):
            if name in told or not _loss_is_up(history, name.removesuffix("accuracy") + "loss"):
                continue
            errors = _errors(history.series(name))
            found = list(self._judged(history, name, errors, -np.inf, None, of_errors=True))
            alone = name.removesuffix("accuracy") + "loss" not in history
            chance = 1 - correct_by_chance(history, history.last_step)
            yield from found or (self._by_heart(history, name, errors, ACCURACIES, chance) if alone else ())

    def _by_heart(
        self, history: History, name: str, validation: Series, training: Sequence[str], chance: float
    ) -> Iterator[Finding]:
        """What training wins, or has won, does not hold for validation.

        ``training``: where its loss, or its accuracy, is found; ``chance``: that of the best constant answer, 0 where
        it is not known.
        """
        known = next((one for one in training if one in history), None)
        if known is None or adversarial(history):
            return
        of_errors = training == ACCURACIES
        held = Held(validation, _errors(history.series(known)) if of_errors else history.series(known), chance)
        if not len(held.steps) or not held.chance > 0:
            return
        classes = chance > 0 and not of_errors and history.facts.get("loss") in (*ENTROPIES, *BINARY)
        least = self.holds if classes else self.holds_of_noise
        accuracy = None if of_errors or _accuracy_of(name) not in history else history.series(_accuracy_of(name))

        def judged(i: int) -> bool:
            done = share_done(history, int(held.steps[i]))
            if chance > 0 and (done is None or done >= 0.5) and self._is_through(held, i):
                return True
            return any(self._wins_alone(held, before, now, least, accuracy) for before, now in self._compared(held, i))

        since = holds_since(judged, held.steps)
        if since is None:
            return
        count = len(held.values)
        left, apart = (
            held.left(part, slice(count - max(3, count // 4), count)) for part in (held.training, held.values)
        )
        what = f"1 - {name}" if of_errors else name
        yield self.finding(
            step=held.steps[int(np.argmin(held.values[: since + 1]))],
            detected_at=held.steps[since],
            where=(name,),
            severity=Severity.WARNING,
            message=f"training has learnt {100 - 100 * left:.0f} % of its task and goes on; {what} stands where "
            f"{max(0.0, 100 - 100 * apart):.0f} % are learnt",
            evidence=[
                Evidence(name="left to learn in training", value=100 * left, unit="%"),
                Evidence(name="left in validation", value=100 * apart, unit="%"),
                Evidence(
                    name="learnt by heart only, of the task",
                    value=100 * (apart - left),
                    limit=100 * self.apart,
                    unit="%",
                ),
            ],
            confidence=0.7,
        )

    def _is_through(self, held: "Held", i: int) -> bool:
        """Training has learnt nearly all, and validation stands far from it and does not come down."""
        if i < 5 or not held.left(held.training, slice(i, i + 1)) < self.learnt:
            return False
        newest, middle = slice(i + 1 - max(3, i // 4), i + 1), slice(i // 3, 2 * i // 3 + 1)
        now = held.left(held.values, newest)
        return now > self.unlearnt and now > (1 - self.rise / 2) * held.left(held.values, middle)

    def _compared(self, held: "Held", i: int) -> Iterator[tuple[slice, slice]]:
        """Evaluations before and now: the middle third and the newest quarter; the best and the newest."""
        count = i + 1
        if count > self.least:
            yield slice(count // 3, 2 * count // 3 + 1), slice(count - max(3, count // 4), count)
            best = int(np.argmin(held.values[:count]))
            if i - best >= self.least:
                yield slice(max(0, best - 1), best + 2), slice(count - 3, count)

    def _wins_alone(self, held: "Held", before: slice, now: slice, least: float, accuracy: Series | None) -> bool:
        """Whether training has come far since, validation has not, and they are far from each other."""
        trained, apart = held.left(held.training, now), held.left(held.values, now)
        won = held.left(held.training, before) - trained
        shared = held.left(held.values, before) - apart
        if not (won > self.won and shared < self.shared * won and apart - trained > self.apart):
            return False
        if not 1 - apart < least * (1 - trained):
            return False
        if not held.left(held.training, before) - held.left_lately(now) > self.won:
            return False  # training itself is thrown back just now
        return accuracy is None or not _better(accuracy, held.steps[before], held.steps[now])

    def _judged(
        self,
        history: History,
        name: str,
        series: Series,
        start: float,
        known: Series | None,
        *,
        of_errors: bool = False,
    ) -> Iterator[Finding]:
        finite = np.isfinite(series.values)
        steps, values = series.steps[finite], series.values[finite]
        turn = self._turn(history, steps, values, start, known, of_errors)
        if turn is not None:
            yield self._told(name, steps, values, turn, start, known, of_errors)

    def _told(
        self,
        name: str,
        steps: NDArray[np.int64],
        values: Array,
        turn: Turn,
        start: float,
        accuracy: Series | None,
        of_errors: bool,
    ) -> Finding:
        best, now = float(values[turn.best]), float(np.median(values[-self.smooth :]))
        back = min(1.0, (now - best) / _gain(values, turn.best, start))
        before, after, doubt = _accuracies(accuracy, int(steps[turn.best]), self.smooth)
        what = f"1 - {name}" if of_errors else name
        evidence = [
            Evidence(name=f"{what} above its best", value=_percent(now - best, best), limit=100 * self.rise, unit="%"),
            Evidence(name="share of the gain given back", value=100 * back, limit=100 * self.given_back, unit="%"),
            Evidence(name="chance of such a rise", value=turn.p_value, limit=self.p_value),
        ]
        if accuracy is not None:
            evidence.append(Evidence(name="validation accuracy", value=after, limit=before))
        mild = after >= before - doubt or back < self.severe
        rose = f"{what} rose from its best of {best:.4g} at step {steps[turn.best]} to {now:.4g}, "
        return self.finding(
            step=steps[turn.best],
            detected_at=steps[turn.sure],
            where=(name,),
            severity=Severity.WARNING if mild else Severity.ERROR,
            message=rose
            + ("although the accuracy is no worse" if after >= before - doubt else "while the training loss fell"),
            evidence=evidence,
        )

    def _turn(
        self,
        history: History,
        steps: NDArray[np.int64],
        values: Array,
        start: float,
        accuracy: Series | None,
        of_errors: bool,
    ) -> Turn | None:
        """The first evaluation at which all that was known until then shows the turn, if it still holds at the end."""
        best = len(values) - 1 - int(np.argmin(values[::-1])) if len(values) else 0  # of equal ones the last
        if len(values) - 1 - best < self.least:
            return None
        accuracies = _accuracies(accuracy, int(steps[best]), self.smooth)

        def floor(i: int) -> float:
            """The smallest rise that matters by then: the best has to be long ago, or the rise larger."""
            long_ago = 2 * int(steps[best]) < int(steps[i]) + history.first_step
            least = (1 if long_ago else 2) * self.given_back * _gain(values, best, start)
            return least if of_errors else self._floor(values, best, start, least, accuracies)

        now = np.full(len(values), -np.inf)
        now[self.smooth - 1 :] = np.median(sliding_window_view(values, self.smooth), axis=1)
        overcome = _overcome(now[self.smooth - 1 : best])
        samples = _samples(values) if of_errors else math.inf

        def rise_at(i: int, times: int = 1) -> float | None:
            """The chance of a rise like that until then; ``None`` where it is too small or within the noise."""
            known = values[: i + 1]
            sigma = self._noise(known, best)
            if of_errors:
                rate = float(np.median(known))
                sigma = max(sigma, (rate * (1 - rate) / samples) ** 0.5)
            level = self._level_at(known, best, sigma)
            if not now[i] - level > max(self.rise * abs(level), floor(i), overcome, times * self.sigmas * sigma):
                return None
            return min(self._trend(known, best), self._lasting(known, best, level, sigma))

        at_end = rise_at(len(values) - 1)
        if at_end is None or at_end > self.p_value:
            return None
        for i in _looks(np.arange(len(values)), best, self.least):
            p_value = rise_at(i)
            looks = i - best - self.least + 1
            if p_value is None or p_value >= self.p_value / looks:
                continue
            above = -math.inf if of_errors else min(float(values[best]), start)
            times = self._noise_to_pass(history, int(steps[best]), int(steps[i]), above)
            if times == 1 or (times and all(rise_at(j, times) is not None for j in (i, len(values) - 1))):
                return Turn(best, i, p_value)
        return None

    def _floor(
        self, values: Array, best: int, start: float, floor: float, accuracies: tuple[float, float, float]
    ) -> float:
        """The smallest rise of a loss that matters, by what is known of the accuracy; infinite where none does."""
        before, after, doubt = accuracies
        if after < before - 2 * doubt:
            return 0.0  # both became worse
        least = float(values[best])
        solved = 0 < least < self.solved * max(float(values[0]), start)
        if math.isfinite(after):  # only the confidence of a few answers suffers
            return math.inf if solved else max(floor, self.severe * _gain(values, best, start))
        doubled = (self.multiple - 1) * least
        return floor if not least > 0 else doubled if solved else min(floor, doubled)

    def _level_at(self, values: Array, best: int, sigma: float) -> float:
        """The level at the best evaluation: one lucky value is not a level.

        The median of it and its neighbours, where that is no further off than a lowest of three lies below its level.
        """
        around = float(np.median(values[max(0, best - 1) : best + 2]))
        return min(around, float(values[best]) + LOWEST_OF_THREE * sigma)

    def _trend(self, values: Array, best: int) -> float:
        """Chance of a rise as steady as that since the best among values without order, the best among them."""
        from scipy.stats import kendalltau

        since = values[max(best, len(values) - self.recent) :]
        return float(kendalltau(np.arange(len(since)), since, alternative="greater").pvalue)

    def _lasting(self, values: Array, best: int, level: float, sigma: float) -> float:
        """Chance that the newer half of the values since the best lie so far above it if nothing has changed.

        However they go up and down there: the lowest of them, as a number of standard deviations above the level.
        """
        from scipy.stats import norm

        since = values[max(best + 1, len(values) - self.recent) :]
        newer = since[-max(self.least, (len(since) + 1) // 2) :]
        apart = float(newer.min() - level) / max(sigma, float(np.finfo(float).tiny))
        independent = min(len(newer), self.least)  # evaluations of one network are alike
        return float(norm.sf(apart - LOWEST_OF_THREE) ** independent)

    def _noise(self, values: Array, best: int) -> float:
        """Standard deviation of the noise; neighbours that are alike hide from differences, not from a line."""
        since = values[max(best + 1, len(values) - self.recent) :]
        at = np.arange(len(since)) - (len(since) - 1) / 2
        slope = float(at @ since) / float(at @ at)
        around = float(np.std(since - since.mean() - slope * at, ddof=2))
        return max(noise(values[-self.recent :]), around)

    def _noise_to_pass(self, history: History, best: int, now: int, above: float) -> int:
        """How often the usual noise a rise has to pass: once where the training loss went on falling since the best.

        Twice where it had fallen already, below half of the best validation loss and of its own start (the lower of the
        two is ``above``), and stays there: then the rise alone speaks. 0, never, where neither holds, or it was lower
        before.
        """
        steps, values = history.series("train/loss")
        ends = np.searchsorted(steps, [2 * best - now, best, (best + now) // 2, now], side="right")
        before, first, second = (values[begin:end] for begin, end in itertools.pairwise(ends))
        before, first, second = (thinned(part[np.isfinite(part)]) for part in (before, first, second))
        if not len(first) or not len(second) or (len(before) and np.median(second) > np.median(before)):
            return 0
        fell = float(np.median(first) - np.median(second))
        doubt = noise(np.concatenate([first, second])) * (1 / len(first) + 1 / len(second)) ** 0.5
        by_heart = 0 <= np.median(second) < self.half * above and fell >= -self.sigmas * MEDIAN_OVER_MEAN * doubt
        if fell > max(self.sigmas * MEDIAN_OVER_MEAN * doubt, self.fall * abs(np.median(first))):
            return 1
        return 2 if by_heart else 0

    sick: ClassVar = (
        History.of(
            train_loss=list(np.geomspace(1, 0.02, 40)),
            validation_loss=[*np.linspace(1.1, 0.7, 12), *np.linspace(0.71, 1.3, 28)],
        ),
        # the best was the first: a large model on few data
        History.of(train_loss=list(np.geomspace(1.1, 0.05, 30)), validation_loss=list(np.linspace(1.11, 2.7, 30))),
        # training is through with its samples, and validation goes on rising
        History.of(
            train_loss=[*np.geomspace(1, 0.1, 20), *[0.1, 0.101] * 20],
            validation_loss=[*np.linspace(1.1, 0.5, 20), *np.linspace(0.51, 0.7, 40)],
        ),
        # what training wins in the second half is learnt by heart
        _classes(list(np.geomspace(2.3, 0.6, 60)), [*np.geomspace(2.3, 1.3, 30), *[1.3, 1.28, 1.31] * 10]),
        # overconfident: the loss rises, the accuracy too
        History.of(
            train_loss=list(np.geomspace(2.3, 0.001, 40)),
            validation_loss=[*np.linspace(2.3, 0.7, 10), *np.linspace(0.71, 1.4, 30)],
            validation_accuracy=list(np.linspace(0.1, 0.8, 40)),
        ),
    )
    healthy: ClassVar = (
        # a gap that is small and steady
        History.of(train_loss=list(np.geomspace(1, 0.1, 40)), validation_loss=list(np.geomspace(1.1, 0.15, 40))),
        # a gap that grows, while validation wins a third of what training does
        _classes(list(np.geomspace(2.3, 0.6, 60)), list(np.geomspace(2.3, 1.2, 60))),
        # both rise and fall together: a cyclical rate
        History.of(
            train_loss=list(1 + 0.5 * np.sin(np.arange(40) / 3)),
            validation_loss=list(1.2 + 0.5 * np.sin(np.arange(40) / 3)),
        ),
        # converged, and noise from then on
        History.of(
            train_loss=[1.0] * 5 + [0.2] * 35,
            validation_loss=[1.0] * 5 + [0.3 + 0.02 * (-1) ** i for i in range(35)],
        ),
        # trained to the end: a hundredth of the gain is given back, and the accuracy stays
        History.of(
            train_loss=list(np.geomspace(2.3, 1e-4, 40)),
            validation_loss=[*np.geomspace(2.3, 0.06, 15), *np.linspace(0.06, 0.085, 25)],
            validation_accuracy=[*np.linspace(0.1, 0.98, 15), *[0.98] * 25],
        ),
        # it came back
        History.of(
            train_loss=list(np.geomspace(1, 0.02, 40)),
            validation_loss=[*np.linspace(1.1, 0.7, 10), *np.linspace(0.71, 1.0, 10), *np.linspace(1.0, 0.5, 20)],
        ),
        # too few evaluations to tell
        History.of(train_loss=[1.0, 0.8, 0.6, 0.4], validation_loss=[0.9, 1.0, 1.1, 1.2]),
    )


def _chance(history: History) -> float:
    """The loss of the best constant answer, 0 where it is not known.

    Of few classes that of taking them all for equally likely: rare ones may count for more, in the loss or in
    validation. Tokens never do.
    """
    known, level = chance_level(history) or 0.0, equal_level(history)
    tokens = any("Embedding" in layer.kind for layer in history.architecture.values())
    return known if not known or tokens or math.isinf(level) else max(known, level)


def _errors(accuracy: Series) -> Series:
    """The share of wrong answers, whether the accuracy is one of 1 or of 100."""
    whole = 100.0 if np.nanmax(accuracy.values, initial=0.0) > 1 else 1.0
    return Series(accuracy.steps, 1 - accuracy.values / whole)


def _validation_losses(history: History) -> list[str]:
    return [name for name in history.names() if name.startswith("validation/") and name.endswith("/loss")]


def _accuracies_of_sets(history: History) -> list[str]:
    return [name for name in history.names() if name.startswith("validation/") and name.endswith("/accuracy")]


def _loss_is_up(history: History, name: str) -> bool:
    """Whether a loss is above its best, or not known."""
    losses = history.series(name).values if name in history else np.empty(0)
    losses = losses[np.isfinite(losses)]
    return not len(losses) or float(np.median(losses[-3:])) > float(losses.min())


def _level(values: Array) -> float:
    """Where a loss began: its first finite value; -inf where there is none."""
    finite = np.flatnonzero(np.isfinite(values))
    return float(values[finite[0]]) if len(finite) else -np.inf


def _gain(values: Array, best: int, start: float) -> float:
    """What the run had gained on this set at its best; its first value may come late, so the training's counts too."""
    return max(float(values[0]), start) - float(values[best]) or float(np.finfo(float).tiny)


def _overcome(values: Array) -> float:
    """The largest rise that a curve has come back from: it may well come back from another."""
    return float(np.max(values - np.minimum.accumulate(values), initial=0.0))


def _percent(part: float, whole: float) -> float:
    return 100 * part / max(abs(whole), float(np.finfo(float).tiny))


def _looks(candidates: NDArray[np.intp], best: int, least: int) -> Iterator[int]:
    """Which evaluations to look at: all of the first 128 after the best, then ever fewer: cost stays bounded."""
    for i in candidates[candidates >= best + least]:
        if (i - best) % (1 << max(0, int(i - best).bit_length() - 7)) == 0:
            yield int(i)


def _accuracy_of(loss: str) -> str:
    return loss.removesuffix("loss") + "accuracy"


def _accuracies(accuracy: Series | None, best: int, smooth: int) -> tuple[float, float, float]:
    """Validation accuracy around the best loss, now, and the noise of it; NaN where it is not known."""
    if accuracy is None or not (accuracy.steps <= best).any():
        return float("nan"), float("nan"), float("nan")
    before = accuracy.values[accuracy.steps <= best][-smooth:]
    return float(np.median(before)), float(np.median(accuracy.values[-smooth:])), _doubt(accuracy.values)


def _better(accuracy: Series, before: NDArray[np.int64], now: NDArray[np.int64]) -> bool:
    """Whether an accuracy lies beyond two standard errors above what it was."""
    first, last = (median(accuracy.values[np.isin(accuracy.steps, steps)]) for steps in (before, now))
    return last > first + 2 * _doubt(accuracy.values[accuracy.steps <= now[-1]])


def _doubt(accuracies: Array) -> float:
    """Standard error of an accuracy, by its noise and by how many samples it is the share of."""
    values = accuracies[np.isfinite(accuracies)]
    whole = 100.0 if values.max(initial=0.0) > 1 else 1.0
    rate = float(np.clip(np.median(values / whole), 0, 1)) if len(values) else 0.0
    return float(whole * max(noise(values / whole), (rate * (1 - rate) / _samples(values / whole)) ** 0.5))


def _samples(shares: Array) -> float:
    """Of how many samples values are shares: the least number that makes all of them whole; else by their distance."""
    some = np.unique(shares)[:16]
    counts = np.arange(10, 10_001)
    off = np.abs(some[:, None] * counts - np.rint(some[:, None] * counts)).max(axis=0, initial=0.0)
    fit = np.flatnonzero(off < 0.01)
    if len(some) > 3 and len(fit):
        return float(counts[fit[0]])
    steps = np.diff(some)
    return 1 / float(min(steps[steps > 1e-6].min(initial=1.0), 0.1))
