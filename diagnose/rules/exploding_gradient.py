"""TM202: gradient norms grow out of proportion, and the run loses what it had learnt."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.course import tearing
from trainmedic.diagnose.robust import Array, least_of_newest, medians, often, preceding_median, progress, together
from trainmedic.history import History, Layer


class ExplodingGradient(Rule):
    """The gradient norm leaves its own past by orders of magnitude, stays there, and the loss goes with it.

    Why it is bad: each step then moves the weights further than all steps before it; what was learnt is lost, and the
    run ends in NaN.
    Usual causes: a learning rate that is too large; weights drawn too large for the depth; a recurrent net without
    clipping; a batch far from the others.
    Formula: norm above `growth` times the lowest median of its past (of up to `window` steps), and the loss above both
    `loss_growth` times its own and the first loss, in `patience` of `spell` steps, beyond `beyond` times
    all norms before that spell; or, where norm or loss are not finite at the next step, the norm alone, or a step that
    moved most weight matrices by `torn` times their own norm. A warning where all has been finite since and
    the loss is `back` below where it began (or chance, where that is known and lower).
    Remedies: rescale-loss, clip-gradients, lower-learning-rate, warm-up, rewind, reinitialize, insert-batchnorm,
    replace-recurrent.
    Known limits: needs the loss beside the norm; an explosion that leaves the loss below where the run began is left to
    rules for spikes. Norms are read before clipping, so clipping hides no explosion here.
    Source: Pascanu et al. 2013, arXiv:1211.5063. A factor of 100 is far outside of heavy-tailed noise between batches
    (SPAM, arXiv:2501.06842, calls 50 times the usual a spike), and far below what overflow takes.
    """

    code: ClassVar[str] = "TM202"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.ARCHITECTURE
    needs: ClassVar[tuple[str, ...]] = ("gradient/norm", "train/loss")
    remedies: ClassVar[tuple[str, ...]] = (
        "rescale-loss",
        "clip-gradients",
        "lower-learning-rate",
        "warm-up",
        "rewind",
        "reinitialize",
        "insert-batchnorm",
        "replace-recurrent",
    )
    explains: ClassVar[tuple[str, ...]] = (
        "non-finite",
        "dead-relu",
        "vanishing-gradient",
        "collapsed-output",
        "divergence",
        "not-learning",
        "plateau",
    )
    advice: ClassVar[str] = (
        "Usually means that the learning rate or the initial weights are too large. "
        "Do this: go back to a state before it, and clip between backward() and step(): "
        "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0). Otherwise check (a) the learning rate: does the run "
        "hold at a tenth of it? (b) the initial weights: output.std() of each layer at the first step, near 1; "
        "(c) the scale of inputs and targets: x.abs().max(), y.std()."
    )

    growth: float = Field(
        100.0,
        gt=1,
        description="gradient norm over its own past, factor (twice what is called a spike, arXiv:2501.06842)",
    )
    loss_growth: float = Field(10.0, gt=1, description="loss over the same past, factor (as Megatron's spike limit)")
    window: int = Field(50, ge=1, description="steps of the past that are compared with (two to three norm averages)")
    patience: int = Field(3, ge=1, description="steps of a spell (spikes at the edge of stability last one or two)")
    spell: int = Field(10, ge=1, description="steps that `patience` is counted in (what explodes may swing to and fro)")
    beyond: float = Field(
        3.0, ge=1, description="largest norm before the spell, factor (hard samples come again, of about the same size)"
    )
    back: float = Field(
        0.1, gt=0, lt=1, description="share of its first level that a loss has come down by that came back (it learns)"
    )
    torn: float = Field(
        1.0,
        gt=0,
        description="|update| / |weight|, median over the weight matrices (nothing of the old weights is left)",
    )

    def check(self, history: History) -> Iterator[Finding]:
        steps, norms, losses = together(history, "gradient/norm", "train/loss")
        if len(steps) < 2 or not np.isfinite(losses).any():
            return
        usual, usual_loss = _lowest(norms, self.window), _lowest(losses, self.window)
        first = losses[np.isfinite(losses)][0]
        with np.errstate(invalid="ignore"):
            big = norms > self.growth * usual
            new = norms > self.beyond * _largest_before(norms, self.spell)
            lost = (losses > self.loss_growth * np.abs(usual_loss)) & (losses > first)
        bad = ~np.isfinite(norms) | ~np.isfinite(losses)
        grown = np.flatnonzero(often(big & new & lost & ~bad, self.patience, self.spell))
        big |= np.isin(steps, self._torn(history))
        broken = np.flatnonzero(bad[1:] & (big & ~bad)[:-1]) + 1
        ends = np.concatenate([grown[:1], broken[:1]])
        if not len(ends):
            return
        end = int(ends.min())
        onset = end - 1
        with np.errstate(invalid="ignore"):
            risen = (norms > self.growth**0.5 * usual) & ~bad
        while onset > 0 and risen[onset - 1]:  # where the rise began
            onset -= 1
        yield self._told(history, steps, norms, losses, onset, end, usual[onset], first)

    def _told(
        self,
        history: History,
        steps: NDArray[np.int64],
        norms: Array,
        losses: Array,
        onset: int,
        end: int,
        usual: float,
        first: float,
    ) -> Finding:
        rise = norms[onset : end + 1]
        worst = onset + int(np.argmax(np.where(np.isfinite(rise), rise, -np.inf)))
        broken = not (np.isfinite(norms[end]) and np.isfinite(losses[end]))
        finite = bool(np.isfinite(losses[end:]).all() and np.isfinite(norms[end:]).all())
        back = finite and len(losses) - end > self.window and float(progress(history)[1][-1]) > self.back
        before = losses[max(onset - 1, 0)]
        rose = f"rose from {usual:.3g} to" if np.isfinite(usual) else "was"
        then = "then was not finite" if broken else f"the loss from {before:.3g} to {losses[end]:.3g}"
        limit = self.growth * usual if np.isfinite(usual) else None
        return self.finding(
            step=steps[onset],
            detected_at=steps[end],
            where=_layers(history, int(steps[worst])) or ("gradient/norm",),
            severity=Severity.WARNING if back else Severity.ERROR,
            message=f"the gradient norm {rose} {norms[worst]:.3g}, {then}"
            + ("; the run has come back since" if back else ""),
            evidence=[
                Evidence(name="gradient norm", value=norms[worst], limit=limit),
                *self._update(history, int(steps[worst])),
                Evidence(name="training loss", value=losses[end], limit=max(first, self.loss_growth * abs(before))),
            ],
        )

    def _torn(self, history: History) -> NDArray[np.int64]:
        """Steps that moved most weight matrices by more than their own size, and may have broken the run."""
        return tearing(history, self.torn) if "update_ratio" in history else np.empty(0, dtype=np.int64)

    def _update(self, history: History, step: int) -> Iterator[Evidence]:
        steps, moved = _updates(history)
        if (steps == step).any():
            value = float(moved[steps == step][0])
            yield Evidence(name="that step's update over weight, median of the layers", value=value, limit=self.torn)

    sick: ClassVar = (
        History.of(gradient_norm=[471, 8811, 157520, float("nan")], train_loss=[162, 5e3, 9e5, float("nan")]),
        History.of(
            gradient_norm=[1.0] * 60 + [300.0, 4e3, 5e4, 1e5],
            train_loss=[2.0] * 10 + [0.5] * 50 + [9.0, 40.0, 1e3, 1e4],
        ),
        History.of(gradient_norm=[1.0] * 30 + [1e6, float("inf")], train_loss=[1.0] * 31 + [float("nan")]),
        # the first step of all leaves nothing of the weights
        History.of(
            gradient_norm=[1e3, float("inf")],
            train_loss=[30.0, 1e27],
            layers=[Layer("weight", "parameter", 0, (8, 8))],
            weight__update_ratio=[3.0, 1.0],
        ),
        # to and fro
        History.of(
            gradient_norm=[5e2, 1.5e3, 2e5, 4e3, 4e7, 2e3, 2e8, 2e3],
            train_loss=[2.5e4, 2.3e4, 4e5, 2.7e4, 6e7, 8e4, 7e7, 1e5],
        ),
    )
    healthy: ClassVar = (
        # a spike that comes back, at the edge of stability
        History.of(
            gradient_norm=[1.0] * 60 + [500.0, 3.0] + [1.0] * 20, train_loss=[1.0] * 60 + [30.0, 2.0] + [1.0] * 20
        ),
        # a large regression target: large, but steady
        History.of(gradient_norm=[3e6] * 80, train_loss=[1e8] * 80),
        # norms that grow slowly while the loss falls
        History.of(gradient_norm=list(np.geomspace(0.01, 20, 200)), train_loss=list(np.geomspace(2.3, 0.01, 200))),
        # converged to nothing, with the restless end of an adaptive optimizer
        History.of(
            gradient_norm=[1.0] * 20 + [1e-6] * 60 + [1e-2] * 5 + [1e-6] * 20,
            train_loss=[2.3] * 20 + [1e-8] * 60 + [1e-4] * 5 + [1e-8] * 20,
        ),
        # tiny batches: most are easy by now, and some hold a sample that is hard or wrongly labelled
        History.of(
            gradient_norm=[1.0] * 40 + [20.0 if i % 3 == 0 else 0.05 for i in range(200)],
            train_loss=[2.3] * 40 + [6.0 if i % 3 == 0 else 0.01 for i in range(200)],
        ),
        # a loss scale that is searched for: infinite at first
        History.of(gradient_norm=[float("inf"), 2.0, 2.0, 2.0], train_loss=[2.3, 2.3, 2.2, 2.2]),
    )


def _lowest(values: Array, window: int) -> Array:
    """For each value the lowest of the medians that preceded the last ``window`` values: no rise hides itself."""
    return least_of_newest(preceding_median(values, window), window)


def _largest_before(values: Array, lag: int) -> Array:
    """For each value the largest finite one that is more than ``lag`` older; -inf where there is none."""
    largest = np.maximum.accumulate(np.where(np.isfinite(values), values, -np.inf))
    return np.concatenate([np.full(min(lag, len(values)), -np.inf), largest[: max(0, len(values) - lag)]])


def _updates(history: History) -> tuple[NDArray[np.int64], Array]:
    """|update| / |weight| at each measured step, the median over the weight matrices."""
    if "update_ratio" not in history:
        return np.empty(0, dtype=np.int64), np.empty(0)
    table = history.layers("update_ratio")
    known = history.architecture
    columns = [i for i, name in enumerate(table.layers) if name in known and len(known[name].shape) >= 2]
    if not columns:
        return np.empty(0, dtype=np.int64), np.empty(0)
    return table.steps, medians(table.values[:, columns].astype(np.float64))


def _layers(history: History, step: int) -> tuple[str, ...]:
    """Parameters by their gradient norm at a step, the largest first, if it was measured."""
    if "gradient_norm" not in history:
        return ()
    table = history.layers("gradient_norm")
    row = np.flatnonzero(table.steps == step)
    if not len(row):
        return ()
    values = table.values[row[0]]
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
    return tuple(table.layers[i] for i in order[:8] if not np.isnan(values[i]))
