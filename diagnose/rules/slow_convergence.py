"""TM405: progress goes on, far below what the run could do."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import (
    Array,
    adversarial,
    chance_level,
    gone,
    holds_since,
    median,
    never_moved_by,
    rate_at,
    share_done,
    thinned,
    update_size,
)
from trainmedic.history import History, Layer


def _moving(losses: list[float], updates: list[float], total_steps: int | None = 300, **values: Any) -> History:
    """An example: one layer that is moved by these shares of itself."""
    facts: dict[str, Any] = {"loss": "CrossEntropyLoss", "reduction": "mean", "classes": 10}
    return History.of(
        train_loss=losses,
        fc__update_ratio=updates,
        layers=[Layer("fc", "parameter", 0, (8, 8))],
        facts=facts | ({"total_steps": total_steps} if total_steps else {}),
        **values,
    )


PLAIN = (
    "Usually means that one rate does not suit all parts of attention. "
    "Do this: torch.optim.AdamW(model.parameters(), lr=1e-3), after a warm-up. Otherwise check (a) momentum: "
    "torch.optim.SGD(model.parameters(), lr, momentum=0.9); (b) the rate: a range test, and a tenth of where the loss "
    "falls fastest; (c) that the rate is not lowered already: print(scheduler.get_last_lr())."
)


class Crawl(NamedTuple):
    """A run that hardly moves."""

    level: float
    chance: float
    updates: float
    needed: float  # steps to half of chance, at the pace until now
    plain: bool  # gradient descent without momentum, of attention


class SlowConvergence(Rule):
    """Weights that have moved by next to nothing at each step since the start, and a loss that is still near chance.

    Why it is bad: the run ends, or is given up, long before it has learnt what it could.
    Usual causes: a learning rate that is orders too small; gradients clipped to a tiny norm; an epsilon in Adam that
    is larger than the gradients; plain gradient descent without momentum.
    Formula: after `early` of the run's steps (or `steps` losses, where its length is not known), the median loss of the
    newest quarter is above `undone` of the loss of the best constant answer (and below twice that), while |update| /
    |weight|, the median over the matrices that move, has been below `tiny` in nine of ten measured steps, and the rate
    does not rise any more (warm-up). Or, after a quarter of the run, |update| / |weight| is below the `usual`, the loss
    falls beyond its noise (`sigmas` standard errors from the third quarter to the last) and no slower than before, and
    after as many `runs` more at this pace it would still be above half of chance. Or plain gradient descent, without
    momentum, trains a network with attention: after a quarter of the run, the loss has come down beyond its noise, and
    at the pace of the newest quarter it would end above half of chance.
    Remedies: rescale-loss, find-learning-rate, raise-learning-rate, schedule-learning-rate, swap-optimizer.
    Known limits: needs measured updates, and a criterion whose chance is known (cross-entropy, binary or not, squared
    error, each as a mean). Fine-tuning moves weights by as little, but starts far below chance. Weights that moved at
    first and then died have another illness.
    Source: 1e-3 is the ratio of updates to weights that healthy runs are known for (Karpathy, CS231n notes); the runs
    this was held against moved theirs by 8e-4 to 2e-2 while they were near chance.
    The gradients of attention are heavy-tailed and its matrices of unlike curvature, so that one rate for all is slow:
    Zhang et al. 2020, arXiv:1912.03194 and 2024, arXiv:2402.16788.
    """

    code: ClassVar[str] = "TM405"
    severity: ClassVar[Severity] = Severity.WARNING
    root: ClassVar[Root] = Root.OUTCOME
    needs: ClassVar[tuple[str, ...]] = ("train/loss", "update_ratio")
    remedies: ClassVar[tuple[str, ...]] = (
        "rescale-loss",
        "find-learning-rate",
        "raise-learning-rate",
        "schedule-learning-rate",
        "swap-optimizer",
    )
    explains: ClassVar[tuple[str, ...]] = ("not-learning", "underfitting")
    advice: ClassVar[str] = (
        "Usually means a learning rate that is orders too small for this optimizer. "
        "Do this: run a range test and take a tenth of the rate at which the loss falls fastest. Otherwise check "
        "(a) the clipping: is what clip_grad_norm_ returns always far above its limit?; (b) the optimizer's "
        "options: print(optimizer), above all eps and momentum; (c) the scheduler: print(scheduler.get_last_lr())."
    )

    tiny: float = Field(2e-4, gt=0, lt=1, description="|update| / |weight|, median (a fifth of the usual 1e-3)")
    usual: float = Field(
        1e-3, gt=0, lt=1, description="|update| / |weight|, median, below which steps may be too small"
    )
    sigmas: float = Field(3.0, gt=0, description="fall of a quarter, standard errors (one flat run in 700 falls so)")
    runs: float = Field(1.0, gt=0, description="as long runs again, after which half of chance would not be reached")
    undone: float = Field(0.8, gt=0, le=1, description="loss over chance, share (a fifth is learnt at most)")
    early: float = Field(0.1, gt=0, lt=1, description="share of the run's steps (warm-ups are as long)")
    steps: int = Field(
        200, ge=20, description="losses, where the length of the run is not known (warm-ups are as long)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        if adversarial(history):
            return
        steps, values = history.series("train/loss")
        usable = np.abs(values) < 1e100
        steps, values = steps[usable], values[usable]
        judged = partial(self._crawls, history, steps, values)
        since = holds_since(judged, steps)
        crawl = None if since is None else judged(since)
        if since is None or crawl is None:
            return
        pace = f"; at this pace half of that takes {crawl.needed:.2g} steps" if np.isfinite(crawl.needed) else ""
        moved = Evidence(name="update over weight, median", value=crawl.updates, limit=self.tiny)
        limit = 0.5 if crawl.plain else self.undone
        what = f"weights move by {crawl.updates:.1e} of themselves per step"
        yield self.finding(
            step=steps[0],
            detected_at=steps[since],
            where=("train/loss",),
            message=("SGD without momentum trains a network with attention" if crawl.plain else what)
            + f", and the loss is {crawl.level:.4g} of the {crawl.chance:.4g} of knowing nothing{pace}",
            evidence=[
                *([] if crawl.plain else [moved]),
                Evidence(name="training loss", value=crawl.level, limit=limit * crawl.chance),
            ],
            advice=PLAIN if crawl.plain else None,
        )

    def _crawls(self, history: History, steps: NDArray[np.int64], values: Array, place: int) -> Crawl | None:
        now = int(steps[place])
        done = share_done(history, now)
        if place < 30 or (place < self.steps if done is None else done < self.early):
            return None
        updates, chance = update_size(history, now), chance_level(history, now)
        if updates is None or chance is None:
            return None
        curve = thinned(values[: place + 1])
        level = median(curve[-max(10, len(curve) // 4) :])
        never = never_moved_by(history, self.tiny, now)
        slow = never or (self.tiny / 2 < updates < self.usual and self._steadily_too_slow(curve, chance, level, done))
        plain = _plain_descent_of_attention(history) and self._far_from_half(curve, chance, level, done)
        if not ((slow and level > self.undone * chance) or plain) or not level < 2 * chance:
            return None
        rates = rate_at(history, steps[[int(0.8 * place), place]])
        if rates[1] > 1.01 * rates[0]:
            return None
        pace = (median(curve[: max(10, len(curve) // 4)]) - level) / max(1, 0.75 * (now - int(steps[0])))
        needed = (level - 0.5 * chance) / pace if pace > 0 else np.inf
        return Crawl(level, chance, updates, float(needed), plain and not slow)

    def _far_from_half(self, curve: Array, chance: float, level: float, done: float | None) -> bool:
        """Whether the loss comes down, and would not be at half of chance by the end of the run at its pace by now."""
        if done is None or done < 0.25:
            return False
        fell, doubt = gone(curve)
        quarter = len(curve) // 4
        falls = median(curve[:quarter]) - level > self.sigmas * doubt
        return falls and level - max(0.0, fell) * 4 * (1 / done - 1) > 0.5 * chance

    def _steadily_too_slow(self, curve: Array, chance: float, level: float, done: float | None) -> bool:
        """Whether the loss falls as fast as it ever did, and would still be near chance after several such runs."""
        if done is None or done < 0.25:
            return False
        fell, doubt = gone(curve)
        quarter = len(curve) // 4
        first, third = (median(curve[i * quarter : (i + 1) * quarter]) for i in (0, 2))
        steady = fell > self.sigmas * doubt and fell > 0.5 * (first - third) / 2
        return bool(steady and level - self.runs * 4 / done * fell > 0.5 * chance)

    sick: ClassVar = (
        _moving(list(np.linspace(2.31, 2.30, 300)), [3e-5] * 300),
        _moving(list(np.linspace(2.31, 2.0, 400)), [1e-4] * 400, total_steps=None),
    )
    healthy: ClassVar = (
        # steps as usual, and a slow start
        _moving([2.3] * 150, [5e-3] * 150),
        # fine-tuning: it starts low
        _moving([0.2] * 300, [3e-5] * 300),
        # a warm-up
        _moving(
            [2.3] * 100, list(np.linspace(1e-7, 1.9e-4, 100)), optimizer_learning_rate=np.linspace(1e-6, 1e-3, 100)
        ),
        # converged: updates have become small
        _moving(list(np.geomspace(2.3, 0.01, 300)), list(np.geomspace(1e-2, 1e-5, 300))),
    )


ATTENTION = re.compile(
    r"(?:^|[._])(?:self_?|cross_?|multi_?head_?)?(?:att(?:n|ention)s?|qkv|in_proj)(?:[._]|$)", re.IGNORECASE
)
"""Names that parts of attention have."""


def _plain_descent_of_attention(history: History) -> bool:
    """Whether SGD without momentum trains a network that has attention."""
    options = history.facts.get("optimizer_options")
    if history.facts.get("optimizer") != "SGD" or not isinstance(options, dict) or options.get("momentum", 0) != 0:
        return False
    return any(
        "Attention" in layer.kind or "Transformer" in layer.kind or ATTENTION.search(layer.name)
        for layer in history.architecture.values()
    )
