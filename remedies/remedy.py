"""``Remedy``: one act, what it treats, and how safe it is."""

import importlib
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

import trainmedic.remedies
from trainmedic.diagnose import Finding, sections
from trainmedic.errors import TrainmedicError
from trainmedic.remedies.change import Change, Safety

if TYPE_CHECKING:
    from trainmedic.remedies.run import Run

HEADINGS = ("Safety", "Works when", "Does not help", "Source")
"""Headings that every remedy's docstring carries, each a paragraph ``Heading: text``."""

Undo = Callable[[], None]


class Refused(TrainmedicError):
    """A change that cannot be made safely here; the text says why. Nothing was changed."""


class Remedy(BaseModel):
    """One act. Fields are its constants; ``propose`` looks, ``apply`` changes, and what it returns changes back.

    ``apply`` makes the whole change or, if it raises, none of it. The function it returns restores exactly what
    ``apply`` touched. A file with a remedy imports torch inside its functions only: the catalogue is shown without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    treats: ClassVar[tuple[str, ...]]
    safety: ClassVar[Safety]
    ends_the_run: ClassVar[bool] = False  # such an act waits until the user asks whether to stop
    unless_worse: ClassVar[str] = ""  # why it stays unless a higher loss follows: what it does shows late, or elsewhere
    changes_loss: ClassVar[bool] = (
        False  # with it the training loss is another quantity: what it was before says nothing
    )
    raises_loss: ClassVar[bool] = False  # what it is good for is paid for with the loss that is logged
    measures: ClassVar[bool] = False  # it takes steps on kept batches before it can say what to change
    rehearsed: ClassVar[bool] = True  # kept batches can show what it does; they do not hold those that break a run
    replayed: ClassVar[bool] = False  # part of the model or the optimizer: a fresh one needs it to load a checkpoint
    scales_rates: ClassVar[bool] = False  # its change holds rates before and after, the same for a fresh optimizer

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def propose(self, finding: Finding, run: "Run") -> Change | None:
        """The change that would treat ``finding`` in ``run``; ``None`` if there is none. Changes nothing.

        Raises ``Refused`` where there would be one that cannot be made safely.
        """
        raise NotImplementedError

    @classmethod
    def waits(cls, finding: Finding, run: "Run") -> bool:
        """Whether other acts have their turn first: by what was measured the cause lies elsewhere. Changes nothing."""
        return False

    def stronger(self) -> "Remedy | None":
        """The same act in a larger dose, to be tried where this one was not enough; ``None`` where there is none."""
        return None

    def measure(self, change: Change, run: "Run") -> Change | None:
        """At the safe point, before anything is tried: the change as steps on kept batches (``run.rehearsal``) show it.

        For acts whose numbers have to be measured, which ``propose`` cannot do: it is asked in the middle of a step.
        ``run.rehearsal`` is ``None`` where no such steps can be taken. Nothing may last. ``None`` or ``Refused`` where
        the act is not worth trying after all.
        """
        return change

    def apply(self, change: Change, run: "Run") -> Undo:
        """Make ``change`` in place and return its inverse. Raises ``Refused`` where it cannot be made."""
        raise NotImplementedError

    @classmethod
    def sections(cls) -> dict[str, str]:
        """The docstring by heading; the first paragraph stands under ``What it is``."""
        return sections(cls.__doc__ or "", HEADINGS)


@cache
def pharmacy() -> tuple[type[Remedy], ...]:
    """All remedies, by name. The package is walked: a file in ``remedies/`` is a remedy, there is no second list."""
    found = []
    for module in pkgutil.iter_modules(trainmedic.remedies.__path__):
        if module.name.startswith("_"):
            continue  # what acts share at run time imports torch
        loaded = importlib.import_module(f"trainmedic.remedies.{module.name}")
        found += [
            thing
            for thing in vars(loaded).values()
            if isinstance(thing, type)
            and issubclass(thing, Remedy)
            and thing is not Remedy
            and thing.__module__ == loaded.__name__
        ]
    return tuple(sorted(found, key=lambda remedy: remedy.name))
