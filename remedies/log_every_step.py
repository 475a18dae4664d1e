"""Log what happens, each step once, also what is not finite."""

from typing import ClassVar

from trainmedic.diagnose import Finding
from trainmedic.remedies._advice import Advice
from trainmedic.remedies.change import Safety
from trainmedic.remedies.run import Run


class LogEveryStep(Advice):
    """A step that counts over the whole run, one line each, nothing filtered.

    Safety: manual. What is logged, and by whom, is for people to say.
    Works when: the log leaves steps out, repeats them, or hides what is not finite.
    Does not help: a run that is lost.
    Source: transformers' documentation of TrainingArguments.logging_nan_inf_filter.
    """

    treats: ClassVar[tuple[str, ...]] = ("incomplete-log", "hidden-non-finite")
    safety: ClassVar[Safety] = Safety.MANUAL

    def code(self, finding: Finding, run: Run) -> tuple[str, str] | None:
        if finding.name == "hidden-non-finite":
            return "what is not finite logged as it is", "TrainingArguments(..., logging_nan_inf_filter=False)"
        return "steps counted over the whole run, each logged once", (
            "step = epoch * len(loader) + i\nwriter.add_scalar('train/loss', loss, step)  # on rank 0 only"
        )
