"""Which remedies could treat a finding in this run, and in which order."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from trainmedic.diagnose import Finding
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Refused, Remedy, pharmacy

if TYPE_CHECKING:
    from trainmedic.remedies.run import Run

Fix = Literal["off", "safe", "unsafe"]


class Choice(NamedTuple):
    """``candidates``: (remedy, change), the preferred one first. ``refused``: (remedy's name, reason)."""

    candidates: list[tuple[Remedy, Change]]
    refused: list[tuple[str, str]]


def allowed(remedy: type[Remedy], fix: Fix) -> bool:
    """Whether a level of ``fix`` allows a remedy to be applied."""
    levels = {Safety.SAFE: ("safe", "unsafe"), Safety.UNSAFE: ("unsafe",), Safety.MANUAL: ()}
    return fix in levels[remedy.safety]


def dosed(remedy: type[Remedy], tried: int) -> Remedy | None:
    """The remedy in the dose that comes after so many tries; ``None`` if there is none."""
    made: Remedy | None = remedy()
    for _ in range(tried):
        made = made.stronger() if made is not None else None
    return made


def choose(
    finding: Finding, run: "Run", *, fix: Fix, ignore: Collection[str] = (), tried: Mapping[str, int] | None = None
) -> Choice:
    """The changes that could treat ``finding``, in the order of the rule's own list of remedies.

    That list goes from the cheapest and safest to the most invasive. ``ignore`` holds names of remedies that the user
    excludes, ``tried`` how often each was tried on this illness already: it is then chosen in a larger dose, if it has
    one, after all that were not. An act that goes past the cause, by what was measured, comes after those that do not
    (:meth:`Remedy.waits`). Nothing is changed. A remedy that does not fit what was measured proposes nothing, and
    is in neither list. Where changes are only shown, what is left to people is among them.
    """
    by_name = {remedy.name: remedy for remedy in pharmacy()}
    choice = Choice([], [])
    doses = tried or {}

    def turn(name: str) -> tuple[int, bool]:
        return doses.get(name, 0), name in by_name and by_name[name].waits(finding, run)

    for name in sorted(finding.remedies, key=turn):
        remedy = by_name.get(name)
        if remedy is None or name in ignore or finding.name not in remedy.treats:
            continue
        shown = run.advising and remedy.safety is Safety.MANUAL
        made = dosed(remedy, doses.get(name, 0))
        if made is None or not (allowed(remedy, fix) or shown):
            continue
        try:
            change = made.propose(finding, run)
        except Refused as reason:
            choice.refused.append((name, str(reason)))
            continue
        except Exception as error:  # a remedy that fails hides no other
            choice.refused.append((name, f"it failed: {type(error).__name__}: {error}"))
            continue
        if change is not None:
            choice.candidates.append((made, change))
    return choice
