"""TM407: the output and the loss do not fit."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.learnt import learnt, level
from trainmedic.diagnose.robust import (
    ABSOLUTES,
    BINARY,
    ENTROPIES,
    SQUARES,
    Array,
    gone,
    median,
    share_done,
    target_spread,
)
from trainmedic.history import History

MOVING = ("View", "UnsafeView", "Reshape", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze", "Select", "Slice")
RESHAPING = frozenset((*MOVING, "ToCopy", "Clone", "Index", "Alias"))
"""Functions that leave every number as it was."""
LOSSES = ("NllLoss", "MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropy", "KlDiv", "SoftMarginLoss")
NEVER_NEGATIVE = (*ENTROPIES, *BINARY, *SQUARES, "L1Loss", "l1_loss", "SmoothL1Loss", "HuberLoss")
REGRESSIONS = (*SQUARES, *ABSOLUTES, "SmoothL1Loss", "smooth_l1_loss", "HuberLoss", "huber_loss")
LIKELIHOODS = (*ENTROPIES, *BINARY, "KLDivLoss", "kl_div", "PoissonNLLLoss", "poisson_nll_loss")
"""Losses whose output is no value of the target: it may lie in another range."""
RANGES = {
    "Sigmoid": (0.0, 1.0),
    "Hardsigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Relu": (0.0, np.inf),
    "Softplus": (0.0, np.inf),
    "Gelu": (-0.17, np.inf),
    "Silu": (-0.28, np.inf),
    "LogSigmoid": (-np.inf, 0.0),
}
"""Of functions, as a graph names them."""
MODULES = RANGES | {
    "ReLU": (0.0, np.inf),
    "ReLU6": (0.0, 6.0),
    "GELU": (-0.17, np.inf),
    "SiLU": (-0.28, np.inf),
    "Softsign": (-1.0, 1.0),
    "LSTM": (-1.0, 1.0),
    "GRU": (-1.0, 1.0),
}
"""Of modules that may run last; what a gated layer gives is a tanh, or a mean of such."""


class _Fault(NamedTuple):
    """What does not fit: in a sentence, with its evidence, what to do, and from which step on it can be told."""

    message: str
    evidence: Evidence
    act: str
    severity: Severity
    seen: int = 0


def _made_by(*graph: str, loss: str = "CrossEntropyLoss", losses: Any = 2.3, **more: Any) -> History:
    """An example: a loss made by these functions, newest first."""
    values = list(losses) if np.ndim(losses) else [losses] * 40
    facts = {"loss": loss, "reduction": "mean", "loss_graph": [f"{name}Backward0" for name in graph]}
    facts |= {name: more.pop(name) for name in ("classes", "optimizer_options") if name in more}
    columns = {name: [value] * len(values) if np.ndim(value) == 0 else value for name, value in more.items()}
    return History.of(train_loss=values, facts=facts, **columns)


class LossMismatch(Rule):
    """The loss function expects another kind of output, or of target, than it is given.

    Why it is bad: the loss has another minimum than was meant, or none, or one that cannot be reached.
    Usual causes: softmax before a cross-entropy that applies it itself; nn.NLLLoss on logits; a sigmoid, tanh or
    rectifier under targets that leave its range; a flipped sign; an output (n, 1) beside a target (n,).
    Formula: one of these, in at least `patience` steps: (1) the graph of the loss, or its module and rows of outputs
    that sum to 1 within `exact`, show a softmax or sigmoid right before a loss that applies one; (2) NLLLoss takes rows
    with |log sum exp| above `loose`, or KLDivLoss outputs above it; (3) the graph shows a bounded function right before
    a regression loss, or one ran last, or outputs stayed in its range and came within `touching` of an end, while
    targets leave it by `outside` of their standard deviation, and less than `nearly` is learnt (a loss of unknown make
    must be as large as the squared distance of outputs and targets); (4) the sign of a known loss is turned in its
    graph, or one that cannot be negative is below -`negative`, or a loss of unknown make falls without bound (to
    -`unbounded` times its start, or below minus its start, where accuracies show that less than `little` is learnt;
    further in its second half than in its first) without anything being learnt; (5) output and target have different
    shapes and were spread out over each other in the graph of the loss, or a loss of unknown make without a graph
    stands within `close` of the variance of the targets in each quarter of a run that is half over, or outputs have
    come to one answer, and less than `works` is explained. An activation too many is a warning once `works` of the task
    has been learnt.
    Remedies: change-loss.
    Known limits: losses in functions of one's own are seen only if the logged loss carries its graph. Optimizers that
    maximise, and several of them (adversaries), are left alone where signs are concerned.
    Source: torch's documentation of CrossEntropyLoss, NLLLoss, BCEWithLogitsLoss and MSELoss.
    """

    code: ClassVar[str] = "TM407"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.LOSS
    needs: ClassVar[tuple[str, ...]] = ("train/loss", "output/mean|train/loss")
    remedies: ClassVar[tuple[str, ...]] = ("change-loss",)
    explains: ClassVar[tuple[str, ...]] = (
        "collapsed-output",
        "dead-relu",
        "divergence",
        "exploding-gradient",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "loss-oscillation",
        "non-finite",
        "not-learning",
        "overfitting",
        "plateau",
        "saturated-activation",
        "slow-convergence",
        "underfitting",
        "vanishing-gradient",
    )
    advice: ClassVar[str] = (
        "Usually means that the last layer and the loss were taken from different examples. "
        "Do this: give nn.CrossEntropyLoss and nn.BCEWithLogitsLoss raw outputs, nn.NLLLoss log-probabilities, and "
        "regressions an output without an activation. Otherwise check (a) shapes: print(output.shape, target.shape); "
        "(b) ranges: output.aminmax(), target.aminmax(); (c) that the loss of a perfect prediction is the smallest "
        "possible: criterion(perfect, target)."
    )

    patience: int = Field(10, ge=1, description="steps of the loss that were seen (the first ones may be set-up)")
    exact: float = Field(1e-3, gt=0, lt=1, description="error of a sum of probabilities (half precision: 2**-10)")
    loose: float = Field(0.1, gt=0, description="|log sum exp| of log-probabilities, nats (10 %, far from rounding)")
    outside: float = Field(1.0, gt=0, description="targets beyond the range, standard deviations of them (a sixth is)")
    touching: float = Field(
        0.01, gt=0, lt=1, description="distance of outputs from an end of their range (stuck there)"
    )
    negative: float = Field(
        1.0, gt=0, description="how far below zero, nats or squared units (other terms may be small)"
    )
    unbounded: float = Field(
        100.0, gt=1, description="how far below zero, first losses (likelihoods grow by tens, not by hundreds)"
    )
    close: float = Field(0.05, gt=0, lt=1, description="distance of a loss from the variance, share of it (its noise)")
    little: float = Field(0.1, ge=0, lt=1, description="share of the task that is learnt by accident (a tenth)")
    nearly: float = Field(0.9, gt=0, le=1, description="share of the task, from which on targets are reached after all")
    works: float = Field(
        0.5, gt=0, le=1, description="share of the task that is learnt, from which on it is mild (half)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        steps, losses = history.series("train/loss")
        if len(steps) < self.patience:
            return
        graph = _functions(history)
        kinds = (self._softened(history, graph), self._unnormalised(history, graph), self._bounded(history, graph))
        fault = next(filter(None, (*kinds, self._signed(history, losses), self._spread(history))), None)
        if fault is None:
            return
        detected = max(int(steps[self.patience - 1]), fault.seen)
        yield self.finding(
            step=steps[0],
            detected_at=min(detected, int(steps[-1])),
            where=["train/loss"],
            message=fault.message,
            severity=fault.severity,
            evidence=[fault.evidence],
            advice=self.advice.replace("Do this:", f"Do this: {fault.act}:") if fault.act else None,
        )

    # -- what does not fit -----------------------------------------------------------------------------------------

    def _softened(self, history: History, graph: list[str]) -> _Fault | None:
        """A softmax or sigmoid before a loss that applies one itself."""
        loss = history.facts.get("loss")
        before = _after(graph, "LogSoftmax")
        twice = before in ("Softmax", "Sigmoid")
        if before is None and loss in ENTROPIES[:2] and "output/row_sum_error" in history:
            errors, lowest = _series(history, "output/row_sum_error"), _series(history, "output/min")
            enough = len(errors) >= self.patience and len(lowest) > 0
            twice = enough and bool((errors < self.exact).all() and (lowest >= 0).all() and errors.min() >= 0)
            before = "Softmax" if twice else None
        name = "cross-entropy"
        if not twice:
            before, name = _after(graph, "BinaryCrossEntropyWithLogits"), "binary cross-entropy with logits"
            twice = before in ("Softmax", "Sigmoid")
        if not twice and not graph and loss in (*ENTROPIES[:2], *BINARY[:2]):
            before, name = _runs_last(history), "cross-entropy"
            low, high = self._ends(history)
            twice = before in ("Softmax", "Sigmoid") and low >= 0 and high <= 1
        if not twice:
            return None
        mild = learnt(history) > self.works
        return _Fault(
            f"a {str(before).lower()} stands before a {name}, which applies one itself",
            Evidence(name="activations before the loss", value=2, limit=1),
            "take the activation out and give the loss raw outputs",
            Severity.WARNING if mild else Severity.ERROR,
        )

    def _unnormalised(self, history: History, graph: list[str]) -> _Fault | None:
        """The negative log-likelihood of what is no logarithm of a probability."""
        if history.facts.get("loss") == "KLDivLoss":
            return self._positive(history)
        if history.facts.get("loss") not in ENTROPIES[2:] or "output/log_sum_exp" not in history:
            return None
        off = _series(history, "output/log_sum_exp")
        if len(off) < self.patience or not (off > self.loose).all() or "LogSoftmax" in graph:
            return None
        return _Fault(
            f"nn.NLLLoss takes log-probabilities, but those of a sample sum to exp({median(off):.3g}), not to 1",
            Evidence(name="|log sum exp| of outputs", value=median(off), limit=self.loose),
            "use nn.CrossEntropyLoss, or nn.LogSoftmax as the last layer",
            Severity.ERROR,
        )

    def _positive(self, history: History) -> _Fault | None:
        """Logarithms of probabilities that are above zero."""
        highest = _series(history, "output/max")
        if len(highest) < self.patience or not (highest > self.loose).all():
            return None
        return _Fault(
            f"nn.KLDivLoss takes log-probabilities, but the largest outputs are {median(highest):.3g}, above 0",
            Evidence(name="largest output", value=median(highest), limit=0.0),
            "use torch.log_softmax(output, 1) before it",
            Severity.ERROR,
            self._first(history, "output/max"),
        )

    def _bounded(self, history: History, graph: list[str]) -> _Fault | None:
        """Targets that an output cannot reach."""
        loss = history.facts.get("loss")
        low, high, spread = (level(history, f"target/{name}") for name in ("min", "max", "std"))
        if loss in LIKELIHOODS or not spread > 0:
            return None
        bottom, top = self._range(history, graph)
        beyond = max(high - top, bottom - low)
        if not beyond > self.outside * spread or not np.isfinite(beyond) or bottom == top:
            return None
        if loss not in REGRESSIONS and not self._compares(history):
            return None
        if learnt(history) > self.nearly:
            return None
        return _Fault(
            f"outputs lie between {bottom:g} and {top:g}, targets between {low:.3g} and {high:.3g}",
            Evidence(name="targets beyond the range of outputs", value=beyond, limit=self.outside * spread),
            "take the activation out of the last layer, or scale the targets into its range",
            Severity.WARNING if learnt(history) > self.works else Severity.ERROR,
            self._first(history, "target/std"),
        )

    def _compares(self, history: History) -> bool:
        """Whether a loss of unknown make is as large as the squared distance of outputs and targets, or its root.

        At least that, by their means and standard deviations. One that scales the outputs first comes below it.
        """
        if "target/same_shape" not in history or not (_series(history, "target/same_shape") == 1).all():
            return False
        distances = [level(history, f"output/{name}") - level(history, f"target/{name}") for name in ("mean", "std")]
        least = float(np.square(distances).sum())
        recent = median(history.series("train/loss").values[-self.patience :])
        return bool(recent > 0) and (recent >= least or abs(recent / least**0.5 - 1) < self.works)

    def _range(self, history: History, graph: list[str]) -> tuple[float, float]:
        """The range that outputs cannot leave: by the graph, by the module that ran last, or as they kept to it."""
        last = next((_after(graph, loss) for loss in LOSSES if loss in graph), None)
        if last in RANGES:
            return RANGES[str(last)]
        module, (lowest, highest) = _runs_last(history), self._ends(history)
        if module in MODULES and (last is None or module in ("LSTM", "GRU")):
            low, high = MODULES[module]
            inside = lowest >= low - self.exact and highest <= high + self.exact
            if inside and self._touched(history, low, high):
                return low, high
        return self._seen_range(history) if last is None else (0.0, 0.0)

    def _touched(self, history: History, low: float, high: float) -> bool:
        """Whether outputs came to an end of a range lately, or had half of the run to leave it.

        What is scaled behind the module that ran last may lie inside at the start.
        """
        recent = slice(-2 * self.patience, None)
        lowest, highest = _series(history, "output/min")[recent], _series(history, "output/max")[recent]
        done = share_done(history, history.last_step)
        touched = lowest.max() < low + self.touching or highest.min() > high - self.touching
        return bool(touched) or (done is not None and done >= 0.5)

    def _ends(self, history: History) -> tuple[float, float]:
        """The smallest and the largest of all outputs that were seen; NaN for too few."""
        lowest, highest = _series(history, "output/min"), _series(history, "output/max")
        if min(len(lowest), len(highest)) < self.patience:
            return float("nan"), float("nan")
        return float(lowest.min()), float(highest.max())

    def _seen_range(self, history: History) -> tuple[float, float]:
        """The range that outputs kept to and touched the end of, where the graph does not tell."""
        lowest, highest = _series(history, "output/min"), _series(history, "output/max")
        if min(len(lowest), len(highest)) < 5 * self.patience or "loss_graph" in history.facts:
            return 0.0, 0.0
        for low, high in ((0.0, 1.0), (-1.0, 1.0)):
            inside = lowest.min() >= low and highest.max() <= high
            recent = slice(-2 * self.patience, None)
            if inside and (highest[recent].min() > high - self.touching or lowest[recent].max() < low + self.touching):
                return low, high
        return 0.0, 0.0

    def _signed(self, history: History, losses: Array) -> _Fault | None:
        """A loss that is made better by being wrong."""
        options = history.facts.get("optimizer_options") or {}
        if int(history.facts.get("optimizers", 1)) > 1 or (isinstance(options, dict) and options.get("maximize")):
            return None
        act = "take the minus away: optimizers minimise"
        graph = _functions(history)
        turned = bool(graph) and graph[0] == "Neg" and any(graph[1].startswith(loss) for loss in LOSSES if graph[1:])
        recent = median(losses[-self.patience :])
        impossible = history.facts.get("loss") in NEVER_NEGATIVE and recent < -self.negative and self._falls(losses)
        if (turned and recent < 0) or impossible:
            return _Fault(
                f"the loss is {recent:.3g}, although {history.facts.get('loss')} cannot be negative",
                Evidence(name="loss", value=recent, limit=0.0),
                act,
                Severity.ERROR,
                self._below(history, 0.0),
            )
        start = abs(median(losses[: self.patience]))
        floor = -self.unbounded * max(start, self.negative)
        if "output/accuracy" in history and learnt(history) < self.little:
            floor = -max(start, self.negative)  # and nothing is classified the better for it
        if not recent < floor or not self._falls(losses) or learnt(history) > self.little:
            return None
        return _Fault(
            f"the loss fell from {median(losses[: self.patience]):.3g} to {recent:.3g}, ever faster: it has no floor",
            Evidence(name="loss", value=recent, limit=floor),
            "look for a term with the wrong sign",
            Severity.ERROR,
            self._below(history, floor),
        )

    def _falls(self, losses: Array) -> bool:
        """Whether a loss falls faster than before: twice as far in its second half as in its first."""
        if len(losses) < 4 * self.patience or not np.isfinite(losses).all():
            return False
        half = len(losses) // 2
        begin, middle, end = (
            median(part) for part in (losses[: self.patience], losses[half - 5 : half + 5], losses[-5:])
        )
        return end < middle < begin and middle - end > begin - middle

    def _spread(self, history: History) -> _Fault | None:
        """Shapes made equal by repeating rows: seen in the graph, or by a loss that stands at the variance."""
        if "target/same_shape" not in history:
            return None
        same = _series(history, "target/same_shape")
        if len(same) < self.patience or (same != 0).any() or learnt(history) > self.works:
            return None
        seen = self._first(history, "target/same_shape")
        if "ExpandBackward0" not in history.facts.get("loss_graph", ()):
            stands = self._stands_at_the_variance(history)
            stands = self._gives_one_answer(history) if stands is None else stands
            if stands is None:
                return None
            seen = stands
        return _Fault(
            "output and target have different shapes, and the loss compares each output with every target",
            Evidence(name="equal shapes", value=0.0, limit=1.0),
            "give both one shape: criterion(output.squeeze(1), target)",
            Severity.ERROR,
            seen,
        )

    def _stands_at_the_variance(self, history: History) -> int | None:
        """The step by which a loss of unknown make has stood at the variance of its targets for half of the run.

        That is the least squared error of one answer for all targets, which rows compared with every target ask for.
        """
        done = share_done(history, history.last_step)
        steps, losses = history.series("train/loss")
        if history.facts.get("loss_graph") or done is None or done < 0.5 or len(losses) < 5 * self.patience:
            return None
        variance, quarter = target_spread(history) ** 2, len(losses) // 4
        levels = [median(losses[i * quarter : (i + 1) * quarter]) for i in range(4)]
        stands = all(abs(level - variance) < self.close * variance for level in levels)
        return int(steps[-1]) if stands and history.facts.get("loss") not in (*ENTROPIES, *BINARY) else None

    def _gives_one_answer(self, history: History) -> int | None:
        """The step by which outputs of a loss of any make have come to one answer, that of the targets' middle.

        That is what rows compared with every target ask for: in the newer half of a run that is half over outputs
        differ by less than a tenth of what targets do, their mean lies within half a standard deviation of the
        targets', and the loss has stopped falling.
        """
        done = share_done(history, history.last_step)
        steps, losses = history.series("train/loss")
        wanted = ("output/batch_std", "output/mean", "target/mean")
        if history.facts.get("loss_graph") or done is None or done < 0.5 or len(losses) < 5 * self.patience:
            return None
        if history.facts.get("loss") in LIKELIHOODS or any(name not in history for name in wanted):
            return None
        spread = target_spread(history)
        differ, given, asked = (_series(history, name) for name in wanted)
        differ, given = differ[len(differ) // 2 :], given[len(given) // 2 :]
        if not spread > 0 or len(differ) < 2 * self.patience or not (differ < self.little * spread).all():
            return None
        fell, doubt = gone(losses)
        stands = abs(median(given) - median(asked)) < spread / 2 and fell < max(3 * doubt, 0.02 * median(losses))
        return int(steps[-1]) if stands else None

    def _first(self, history: History, name: str) -> int:
        """The step by which a series has enough values."""
        steps = history.series(name).steps
        return int(steps[min(self.patience, len(steps)) - 1])

    def _below(self, history: History, floor: float) -> int:
        """The first step from which the loss has stayed below a value."""
        steps, losses = history.series("train/loss")
        above = np.flatnonzero(~(losses < floor))
        return int(steps[min(int(above[-1]) + self.patience if len(above) else 0, len(steps) - 1)])

    sick: ClassVar = (
        _made_by("NllLoss", "LogSoftmax", "Softmax", "Addmm"),
        _made_by("BinaryCrossEntropyWithLogits", "Squeeze", "Sigmoid", "Addmm", loss="BCEWithLogitsLoss"),
        _made_by("NllLoss", "Addmm", loss="NLLLoss", output_log_sum_exp=2.5),
        _made_by("MseLoss", "Sigmoid", loss="MSELoss", losses=3e4, target_min=25.0, target_max=346.0, target_std=77.0),
        _made_by("MseLoss", "Expand", "Addmm", loss="MSELoss", target_same_shape=0.0),
    )
    healthy: ClassVar = (
        _made_by("NllLoss", "LogSoftmax", "Addmm"),
        _made_by("NllLoss", "LogSoftmax", "Div", "Tanh", "Addmm"),  # cosines over a temperature
        _made_by("NllLoss", "Log", "Softmax", loss="NLLLoss", output_log_sum_exp=1e-6),  # the logarithm is there
        _made_by("MseLoss", "Tanh", loss="MSELoss", target_min=-1.0, target_max=1.0, target_std=0.5),
        _made_by("MseLoss", "Addmm", loss="MSELoss", target_min=25.0, target_max=346.0, target_std=77.0),
        _made_by("Add", "Neg", loss="elbo", losses=np.linspace(500.0, -300.0, 80)),  # a density may be above 1
    )


def _functions(history: History) -> list[str]:
    """The names of the functions that made the loss, newest first, without what only reshapes."""
    graph = history.facts.get("loss_graph") or []
    names = [str(name).partition("Backward")[0] for name in graph if isinstance(name, str)]
    return [name for name in names if name not in RESHAPING]


def _runs_last(history: History) -> str:
    """The kind of the module that runs last, empty where that is not known."""
    ran = [layer for layer in history.architecture.values() if layer.kind != "parameter" and layer.order >= 0]
    return max(ran, key=lambda layer: layer.order).kind if ran else ""


def _after(graph: list[str], name: str) -> str | None:
    """The function whose output the named one took; ``None`` where that one is not there."""
    place = graph.index(name) + 1 if name in graph else len(graph)
    return graph[place] if place < len(graph) else None


def _series(history: History, name: str) -> Array:
    """The finite values of a series, none where there is no such series."""
    values = history.series(name).values if name in history else np.empty(0)
    return values[np.isfinite(values)]
