"""``Advice``: what people have to do by themselves, with the code to write."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, Undo
from trainmedic.remedies.run import Run


class Advice(Remedy):
    """Nobody applies it: ``propose`` says what to do, in the names of the run, and that is all."""

    safety: ClassVar[Safety] = Safety.MANUAL

    def propose(self, finding: Finding, run: Run) -> Change | None:
        written = self.code(finding, run)
        if written is None:
            return None
        summary, code = written
        return Change(remedy=self.name, target=finding.where[:5], summary=summary, code=code)

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        """What was to be done, in one sentence without a full stop, and the code for it; ``None`` if nothing is."""
        raise NotImplementedError

    def apply(self, change: Change, run: Run) -> Undo:
        raise Refused(f"{self.name} is left to people: the code says what to write")


def evidence(finding: Finding, name: str) -> float | None:
    """The value of the first evidence whose name contains ``name``."""
    return next((each.value for each in finding.evidence if name in each.name), None)
