"""TM102: the scale of the loss in mixed precision falls and falls, and steps are not taken."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from trainmedic.diagnose import Evidence, Finding, Root, Rule, Severity
from trainmedic.diagnose.robust import often
from trainmedic.history import History


class LossScaleCollapse(Rule):
    """Gradients are not finite even though the loss is not scaled up any more, so step after step is left out.

    Why it is bad: steps that are left out teach nothing, and below a scale of 1 small gradients are lost.
    Usual causes: an overflow in half precision inside the model (exp, squares, large logits, sums over many elements);
    a NaN in the data or in a log or root; a loss that is a sum.
    Formula: `refused` steps among the newest `window` that were left out at a scale of at most `floor`, to which it has
    fallen from `fall` times as much; where the scale is not known, `share` of the newest `window` steps left out. A
    scale that falls counts as a step left out where that is not logged.
    Remedies: skip-step, rewind, lower-learning-rate, change-precision.
    Known limits: scalers of other makes may have another floor.
    Source: Micikevicius et al. 2018, arXiv:1710.03740: the scale lifts small gradients into the range of half
    precision, so a scale below 1 helps nothing. PyTorch's scaler starts at 65,536 and halves: its search is over after
    16 steps.
    """

    code: ClassVar[str] = "TM102"
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root] = Root.LOSS
    needs: ClassVar[tuple[str, ...]] = ("optimizer/loss_scale|optimizer/skipped",)
    remedies: ClassVar[tuple[str, ...]] = ("skip-step", "rewind", "lower-learning-rate", "change-precision")
    explains: ClassVar[tuple[str, ...]] = (
        "non-finite",
        "not-learning",
        "plateau",
    )
    advice: ClassVar[str] = (
        "Usually means that something overflows in half precision: exp, a square, a sum, a hand-made softmax. "
        "Do this: run that part in float32, with torch.autocast(device_type, enabled=False) around it and "
        "x.float(), or use bfloat16. Otherwise check (a) the first layer whose output is not finite, by a forward "
        "hook with torch.isfinite(output).all(); (b) the data: torch.isfinite(x).all(); (c) the loss: "
        "reduction='mean' in place of 'sum'."
    )

    floor: float = Field(1.0, gt=0, description="scale, a factor (1 is no scaling)")
    fall: float = Field(16.0, gt=1, description="factor (four halvings; a scale that was always low is another affair)")
    refused: int = Field(5, ge=1, description="steps (a search that overshoots takes one or two)")
    window: int = Field(100, ge=2, description="steps, recorded ones (a scaler that fits refuses one in 2,000)")
    share: float = Field(0.5, gt=0, le=1, description="of the steps, 0 to 1 (half; no search lasts that long)")

    def check(self, history: History) -> Iterator[Finding]:
        steps, refused, scales = _refusals(history)
        if len(steps) < self.refused:
            return
        if scales is None:
            flags = often(refused, int(np.ceil(self.share * self.window)), self.window)
            low = refused
        else:
            with np.errstate(all="ignore"):
                low = refused & (scales <= self.floor)
                low &= np.fmax.accumulate(scales) >= self.fall * scales
            flags = often(low, self.refused, self.window)
        hits = np.flatnonzero(flags)
        if not len(hits) or not low[-self.window :].any():
            return
        left = np.flatnonzero(refused)
        gaps = np.flatnonzero(np.diff(left[left <= hits[0]]) > self.window)
        onset = int(left[gaps[-1] + 1]) if len(gaps) else int(left[0])
        count = int(refused[-self.window :].sum())
        among = min(self.window, len(refused))
        scale = float(scales[-1]) if scales is not None else float("nan")
        fell = f" and the loss scale has fallen to {scale:.3g}" if scales is not None else ""
        evidence = [
            Evidence(name=f"steps left out of the newest {among}", value=count, limit=self.refused),
            *([Evidence(name="loss scale", value=scale, limit=self.floor)] if scales is not None else []),
        ]
        yield self.finding(
            step=steps[onset],
            detected_at=steps[hits[0]],
            where=("optimizer/skipped" if "optimizer/skipped" in history else "optimizer/loss_scale",),
            message=f"{count} of the newest {among} steps were left out{fell}",
            evidence=evidence,
        )

    sick: ClassVar = (
        History.of(
            optimizer_loss_scale=[2.0 ** (16 - i) for i in range(40)],
            optimizer_skipped=[1.0] * 40,
            train_loss=[2.0] * 40,
        ),
        # a scale that may not fall below 1, in a log that only has the scale and who was left out
        History.of(optimizer_loss_scale=[max(1.0, 2.0 ** (16 - i)) for i in range(60)], optimizer_skipped=[1.0] * 60),
        # only the scale
        History.of(optimizer_loss_scale=[2.0 ** (12 - i // 3) for i in range(90)]),
        History.of(optimizer_skipped=[0.0] * 100 + [1.0, 1.0, 0.0] * 60),
    )
    healthy: ClassVar = (
        # the search, then one refusal now and then
        History.of(
            optimizer_loss_scale=[65536.0, 32768.0, 16384.0] + [8192.0] * 300,
            optimizer_skipped=[1.0, 1.0, 1.0] + [0.0] * 300,
        ),
        # a large sum: the scale that fits is low
        History.of(
            optimizer_loss_scale=[2.0 ** max(16 - i, -1) for i in range(200)],
            optimizer_skipped=[1.0] * 17 + [0.0] * 183,
        ),
        # no scaling at all
        History.of(optimizer_loss_scale=[1.0] * 200, optimizer_skipped=[0.0] * 200),
        # it grows and is halved, for ever
        History.of(optimizer_loss_scale=[1024.0 * (1 + (i // 20) % 2) for i in range(400)]),
    )


def _refusals(history: History) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64] | None]:
    """Recorded steps, which of them were left out, and the scale at each, where it is known."""
    if "optimizer/loss_scale" not in history:
        steps, skipped = history.series("optimizer/skipped")
        return steps, skipped > 0, None
    steps, scales = history.series("optimizer/loss_scale")
    if "optimizer/skipped" in history:
        at, skipped = history.series("optimizer/skipped")
        return steps, np.isin(steps, at[skipped > 0]), scales
    with np.errstate(all="ignore"):
        return steps, np.concatenate([[False], np.diff(scales) < 0]), scales
