"""TM802: the log hides a NaN."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import Array, in_a_row, rejected_steps
from trainmedic.history import History

WITNESSES = ("gradient_nonfinite", "weight_nonfinite")


class HiddenNonFinite(Rule):
    """The logged loss is a number, or is missing, at steps whose gradients or weights are not finite.

    Why it is bad: the curve looks fine, or just ends, while the weights are NaN already; nobody stops the run.
    Usual causes: a logger that leaves out or averages away what is not finite (Hugging Face's logging_nan_inf_filter,
    on by default); nan_to_num or a filter in the loop; a tool that drops the field.
    Formula: in `patience` measured steps in a row, the gradient norm or what was counted of gradients and weights is
    not finite, while the loss of those steps is finite, or none was logged though one was before at `coverage` of the
    measured steps. A single such step counts where the loss is exactly 0 and was not at first. Steps that the loss
    scaler rejected do not count, nor a log with a loss that is not finite: it hides nothing.
    Remedies: skip-step, rewind, log-every-step.
    Known limits: needs a witness besides the loss. A single gradient that is not finite beside a finite loss is told
    by non-finite, not here: that can really happen.
    Source: transformers' TrainingArguments.logging_nan_inf_filter; huggingface/trl issue 6702, where a gradient norm
    of NaN beside a loss of 0 was the only sign.
    """

    code: ClassVar[str] = "TM802"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.DATA
    needs: ClassVar[tuple[str, ...]] = (
        "train/loss",
        "gradient/norm|gradient/nonfinite|gradient_nonfinite|weight_nonfinite",
    )
    remedies: ClassVar[tuple[str, ...]] = ("skip-step", "rewind", "log-every-step")
    explains: ClassVar[tuple[str, ...]] = ("incomplete-log",)
    advice: ClassVar[str] = (
        "Usually means that the logger filters what is not finite, so that the curve hides a run that is lost. "
        "Do this: stop, go back to a checkpoint from before the first step named here, and log the loss as it is "
        "(TrainingArguments(logging_nan_inf_filter=False)). Otherwise check (a) for torch.nan_to_num or "
        "'if torch.isfinite(loss)' around the logging; (b) the weights: all(p.isfinite().all() for p in "
        "model.parameters()); (c) where it starts: torch.autograd.set_detect_anomaly(True)."
    )

    patience: int = Field(3, ge=2, description="measured steps in a row (two may be one batch and its echo)")
    coverage: float = Field(
        0.9, gt=0, le=1, description="share of measured steps with a loss before, 0 to 1 (a loss that is always logged)"
    )

    def check(self, history: History) -> Iterator[Finding]:
        steps, broken, where = _witnessed(history)
        if not len(steps):
            return
        at, losses = history.series("train/loss")
        place = np.searchsorted(at, steps)
        here = (place < len(at)) & (at[np.minimum(place, len(at) - 1)] == steps)
        values = np.where(here, losses[np.minimum(place, len(at) - 1)], np.nan)
        hidden = broken & here & np.isfinite(values)
        missing = broken & ~here & self._was_logged(here, broken)
        if (~np.isfinite(losses[at >= steps[0]])).any():
            return
        ends = np.flatnonzero(in_a_row(hidden | missing, self.patience))
        zero = np.flatnonzero(hidden & (values == 0) & ~_zero_before(values))
        first = min([*ends[:1].tolist(), *zero[:1].tolist()], default=None)
        if first is None:
            return
        flags = hidden | missing
        onset = first
        while onset > 0 and flags[onset - 1]:
            onset -= 1
        lost = bool(missing[onset])
        shown = "no loss is logged" if lost else f"the log shows a loss of {values[onset]:.4g}"
        yield self.finding(
            step=steps[onset],
            detected_at=steps[first],
            where=("train/loss", where),
            message=f"{shown} at step {steps[onset]}, where {where} is not finite",
            evidence=[
                Evidence(name="training loss in the log", value=values[onset]),
                Evidence(name="measured steps that hide it", value=float(flags[onset:].sum()), limit=self.patience),
            ],
        )

    def _was_logged(self, here: NDArray[np.bool_], broken: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """At which measured steps a loss was to be expected: nearly all sound ones before had one, ten at least."""
        sound = ~broken
        seen, logged = np.cumsum(sound), np.cumsum(sound & here)
        return np.asarray((seen >= 10) & (logged >= self.coverage * seen))

    sick: ClassVar = (
        # the filter of a trainer
        History.of(
            train_loss=[2.3, 2.0, 1.8, 1.6] + [0.0] * 6, gradient_norm=[1.0, 1.2, 1.1, 1.3] + [float("nan")] * 6
        ),
        # averaged away
        History.of(train_loss=[2.0] * 20, gradient_norm=[1.0] * 12 + [float("nan")] * 8),
        # the field is dropped
        History.of(train_loss=[2.0] * 12, gradient_nonfinite=[0.0] * 12 + [5.0] * 8),
    )
    healthy: ClassVar = (
        # the loss scaler looks for its scale
        History.of(
            train_loss=[2.3] * 12,
            gradient_norm=[float("inf")] * 4 + [1.0] * 8,
            optimizer_skipped=[1.0] * 4 + [0.0] * 8,
            facts={"loss_scaling": True},
        ),
        # logged every fifth step
        History.of(train_loss=[2.0], gradient_nonfinite=[0.0] * 5),
        # a single one
        History.of(train_loss=[2.0] * 10, gradient_norm=[1.0] * 5 + [float("nan")] + [1.0] * 4),
    )


def _witnessed(history: History) -> tuple[NDArray[np.int64], NDArray[np.bool_], str]:
    """Measured steps that were taken, whether something was not finite there, and what saw it first."""
    seen: dict[str, tuple[NDArray[np.int64], NDArray[np.bool_]]] = {}
    if "gradient/norm" in history:
        steps, values = history.series("gradient/norm")
        seen["gradient/norm"] = steps, np.asarray(~np.isfinite(values))
    if "gradient/nonfinite" in history:
        steps, values = history.series("gradient/nonfinite")
        seen["gradient/nonfinite"] = steps, np.asarray(~(values <= 0))
    for name in WITNESSES:
        if name in history:
            table = history.layers(name)
            seen[name] = table.steps, np.asarray((table.values > 0).any(axis=1))
    if not any(flags.any() for _, flags in seen.values()):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=bool), ""
    every = np.unique(np.concatenate([steps for steps, _ in seen.values()]))
    every = every[~np.isin(every, rejected_steps(history))]
    broken = np.zeros(len(every), dtype=bool)
    for steps, flags in seen.values():
        broken |= np.isin(every, steps[flags])
    firsts = {name: int(steps[flags][0]) for name, (steps, flags) in seen.items() if flags.any()}
    return every, broken, min(firsts, key=lambda name: firsts[name])


def _zero_before(values: Array) -> NDArray[np.bool_]:
    """Whether an earlier value was exactly 0 while nothing else had been seen: a loss that may well be 0."""
    zero = values == 0
    first = int(np.argmax(zero)) if zero.any() else len(values)
    return np.asarray(np.full(len(values), first == 0))
