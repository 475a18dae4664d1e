"""``Rule``: one illness, and the thresholds by which it is judged."""

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PrivateAttr

from trainmedic.diagnose.finding import Evidence, Finding, Severity
from trainmedic.diagnose.suppression import Suppression
from trainmedic.history import History

HEADINGS = ("Why it is bad", "Usual causes", "Formula", "Remedies", "Known limits", "Source")
"""Headings that every rule's docstring carries, each a paragraph ``Heading: text``."""


class Root(IntEnum):
    """Order of suspicion: where two findings could explain each other, the earlier kind is the root."""

    DATA = 1
    LOSS = 2
    WIRING = 3
    LEARNING_RATE = 4
    INITIALIZATION = 5
    ARCHITECTURE = 6
    OUTCOME = 7  # seen in the curves only: says that, not why


class Rule(BaseModel):
    """One illness. Fields are thresholds; ``check`` is a pure function of a history.

    A rule says what it needs (``needs``: names of series or layer statistics, alternatives joined by ``|``), which
    remedies treat it, and which other illnesses it brings about (``explains``). ``sick`` and ``healthy`` are example
    histories: a test runs every rule on its own, and on the healthy ones of every other rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity] = Severity.ERROR
    root: ClassVar[Root]
    needs: ClassVar[tuple[str, ...]]
    remedies: ClassVar[tuple[str, ...]] = ()
    explains: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str]
    sick: ClassVar[tuple[History, ...]]
    healthy: ClassVar[tuple[History, ...]]

    _suppressed: tuple[Suppression, ...] = PrivateAttr(())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def check(self, history: History) -> Iterator[Finding]:
        """Yield what is wrong in the whole of ``history``; nothing where the evidence does not suffice."""
        raise NotImplementedError

    def unmet(self, history: History) -> str | None:
        """Why this history cannot be judged by this rule, or ``None`` where it can."""
        for need in self.needs:
            if not any(name in history for name in need.split("|")):
                return f"no {need.replace('|', ' or ')} in this history"
        return None

    @property
    def suppressed(self) -> tuple[Suppression, ...]:
        """What the user does not want to be told by this rule."""
        return self._suppressed

    def suppressing(self, suppressed: Iterable[Suppression]) -> Self:
        """This rule, with what the user does not want to be told."""
        copy = self.model_copy()
        copy._suppressed = tuple(suppressed)
        return copy

    def finding(
        self,
        *,
        step: int,
        detected_at: int,
        where: Iterable[str],
        message: str,
        evidence: Iterable[Evidence],
        confidence: float = 1.0,
        severity: Severity | None = None,
        advice: str | None = None,
    ) -> Finding:
        """A finding of this rule."""
        return Finding(
            code=self.code,
            name=self.name,
            severity=severity or self.severity,
            step=int(step),
            detected_at=int(detected_at),
            where=tuple(where),
            message=message,
            evidence=tuple(evidence),
            advice=advice or self.advice,
            remedies=self.remedies,
            confidence=confidence,
        )

    @classmethod
    def sections(cls) -> dict[str, str]:
        """The docstring by heading; the first paragraph stands under ``What it is``."""
        return sections(cls.__doc__ or "", HEADINGS)


def sections(text: str, headings: Iterable[str]) -> dict[str, str]:
    """Split a docstring into ``{heading: paragraph}``; what stands before the first heading is ``What it is``."""
    found: dict[str, str] = {}
    heading = "What it is"
    for line in text.strip().splitlines():
        for known in headings:
            if line.strip().startswith(known + ":"):
                heading, line = known, line.strip().removeprefix(known + ":")
        if line.strip():
            found[heading] = f"{found.get(heading, '')} {line.strip()}".strip()
    return found
