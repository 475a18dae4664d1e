"""``Change`` and ``Treatment``: what is altered, and how it went. Plain values; no torch."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainmedic.diagnose.finding import Evidence, Number


class Safety(StrEnum):
    """Who may apply a remedy.

    ``safe``: weights only ever move by the run's own optimizer, or to states that this run has had.
    ``unsafe``: changes weights, architecture, objective, optimizer or data.
    ``manual``: nobody; it is advice with the code to write.
    """

    SAFE = "safe"
    UNSAFE = "unsafe"
    MANUAL = "manual"


class Change(BaseModel):
    """One undoable change, serialisable: enough to describe it, and to make it again on a fresh model.

    ``target`` holds names of parameters, modules or parameter groups; ``before`` and ``after`` are JSON values that
    the remedy understands (rates, options, shapes; never tensors). ``code`` is what a user would write to make the
    same change by hand, ``summary`` one sentence in the past tense without a full stop.
    """

    model_config = ConfigDict(frozen=True)

    remedy: str
    target: tuple[str, ...] = ()
    before: Any = None
    after: Any = None
    summary: str
    code: str


class Rival(BaseModel):
    """Another change that was tried in the same controlled trial, and lost. Numbers as in :class:`Treatment`."""

    model_config = ConfigDict(frozen=True)

    change: Change
    reason: str = Field("", description="why it lost")
    treated: tuple[Evidence, ...] = ()
    effect: Number | None = Field(None, description="share by which it lowered the loss at the last horizon")
    p_value: Number | None = None


class Treatment(BaseModel):
    """A change as it went: why, when, how it was tried, what came of it, and whether it was kept.

    ``trial`` is ``controlled`` (arms from one state, with and without the change) or ``sequential`` (applied, watched,
    compared with the time before; such an outcome is "followed by", never "helped"). ``control`` and ``treated`` are
    the numbers that were compared: without and with the change, or before and after it; of a controlled trial one pair
    for each of ``horizons``. What only a controlled trial has is empty for a sequential one, and ``uncontrolled`` says
    why there was none.
    """

    model_config = ConfigDict(frozen=True)

    finding: str = Field(description="id of the finding that it treats")
    code: str = Field(description="code of that finding's rule")
    illness: str = Field(description="name of that finding's rule")
    change: Change
    step: int = Field(description="the first step taken with the change")
    trial: Literal["controlled", "sequential"] = "sequential"
    decided_at: int | None = Field(None, description="step at which it was kept or undone")
    control: tuple[Evidence, ...] = ()
    treated: tuple[Evidence, ...] = ()
    outcome: Literal["on trial", "kept", "undone", "refused"] = "on trial"
    reason: str = Field("", description="why it was kept, undone or refused")
    horizons: tuple[int, ...] = Field((), description="steps after which the arms were compared, in order")
    judged_on: str = Field("", description="what the arms were judged on")
    batches: int = Field(0, description="batches that the arms were judged on at each horizon")
    effect: Number | None = Field(None, description="share by which the change lowered the loss at the last horizon")
    least_effect: Number | None = Field(None, description="the share that was needed")
    p_value: Number | None = Field(None, description="of the paired test at the last horizon; the larger, the weaker")
    extra_steps: int = Field(0, description="steps that the trial has cost beside the run's own, all arms together")
    rivals: tuple[Rival, ...] = Field((), description="other changes that were tried in the same trial, and lost")
    uncontrolled: str = Field("", description="why there was no control")
