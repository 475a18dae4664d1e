"""What a rule says: a ``Finding``, with the numbers that make a reader who doubts it believe it."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


class Severity(StrEnum):
    """How bad it is: ``info`` is worth knowing, ``warning`` costs results or time, ``error`` spoils the run."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


def number_to_json(value: float | None) -> float | str | None:
    """A number that is valid JSON: non-finite ones become the strings "NaN", "Infinity", "-Infinity"."""
    if value is None or value - value == 0:
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def _number_from_json(value: Any) -> Any:
    return float(value) if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity") else value


Number = Annotated[float, BeforeValidator(_number_from_json), PlainSerializer(number_to_json, when_used="json")]


class Evidence(BaseModel):
    """One observed number against the limit it was held to (``None`` where there is none)."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: Number
    limit: Number | None = None
    unit: str = ""


class Finding(BaseModel):
    """One diagnosis. A value: never an exception, never a log line.

    ``step`` is the onset and ``detected_at`` the step from which the evidence sufficed, both in steps of the history.
    ``where`` holds layer or series names, worst first. ``id`` is given by the judge; ``explained_by`` is the id of the
    finding that caused this one.
    """

    model_config = ConfigDict(frozen=True)

    id: str = ""
    code: str
    name: str
    severity: Severity
    step: int
    detected_at: int
    where: tuple[str, ...] = ()
    message: str
    evidence: tuple[Evidence, ...] = ()
    advice: str = ""
    remedies: tuple[str, ...] = ()
    confidence: float = Field(default=1.0, ge=0, le=1)
    explained_by: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What stays the same while a finding is seen again with more evidence: its rule and its series."""
        return self.code, self.where[0] if self.where and "/" in self.where[0] else ""
