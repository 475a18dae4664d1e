"""``Suppression``: what a user does not want to be told, of which layers, in which steps."""

import math
import re
from fnmatch import fnmatchcase
from functools import cached_property

from pydantic import BaseModel, ConfigDict, field_validator

from trainmedic.diagnose.finding import Finding
from trainmedic.history import History

STEPS = re.compile(r"(\d*)\s*-\s*(\d*)")


class Suppression(BaseModel):
    """One rule judges as though it had not been measured what bears a name (``where``) in some ``steps``.

    ``where`` is a glob over names of layers and series (``"encoder.*"``, ``"validation/old/loss"``); ``steps`` a range
    with both ends (``"0-500"``, ``"500-"``, ``"-500"``). What begins after the range, or elsewhere, is told as ever.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    where: str = "*"
    steps: str = "-"
    reason: str = ""

    @field_validator("steps")
    @classmethod
    def _a_range(cls, value: str) -> str:
        match = STEPS.fullmatch(value.strip())
        if match is None or (all(match.groups()) and int(match[1]) > int(match[2])):
            raise ValueError(f"must be a range of steps like '0-500', '500-' or '-500', but got {value!r}")
        return value.strip()

    @field_validator("where")
    @classmethod
    def _a_glob(cls, value: str) -> str:
        if not value:
            raise ValueError("must be a glob of layer or series names like 'encoder.*', but is empty")
        return value

    @cached_property
    def first(self) -> int:
        return int(self.steps.partition("-")[0] or 0)

    @cached_property
    def last(self) -> float:
        return float(self.steps.partition("-")[2] or math.inf)

    def touches(self, finding: Finding) -> bool:
        """Whether a finding begins within the steps, and points to something that bears such a name."""
        return self.first <= finding.step <= self.last and any(fnmatchcase(name, self.where) for name in finding.where)

    def covers(self, finding: Finding) -> bool:
        """Whether it points to nothing else."""
        return self.touches(finding) and all(fnmatchcase(name, self.where) for name in finding.where)

    def hide(self, history: History) -> History:
        """The history as the rule shall see it."""
        return history.without(lambda name: fnmatchcase(name, self.where), self.first, self.last)

    def __str__(self) -> str:
        of = f" of {self.where}" if self.where != "*" else ""
        at = f" in steps {self.steps}" if self.steps != "-" else ""
        return f"{self.rule}{of}{at}"
