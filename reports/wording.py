"""How names, numbers and evidence are put in words, the same in every report, and safe wherever they are shown."""

import math
import re
from collections.abc import Sequence
from itertools import zip_longest

from trainmedic.diagnose import Evidence
from trainmedic.remedies.change import Treatment


def printable(text: str) -> str:
    """``text`` in one line with every control, direction-changing or broken character shown as an escape.

    What reaches a terminal through this cannot move its cursor, colour it, or reorder what stands on the line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def markdown(text: str) -> str:
    """``text`` as Markdown that shows it literally, within a line (not at its start)."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escaped)


def code_block(text: str) -> str:
    """``text`` as a fenced block of Python in Markdown, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}python", *map(printable, text.splitlines()), fence])


def number(value: float | None) -> str:
    """A number for people: three significant digits, commas between thousands, NaN and infinities by name.

    Whole numbers stand in full (``12,030``), as a step or a count is meant exactly.
    """
    if value is None:
        return "-"
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if 100 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def measured(value: float, margin: float) -> str:
    """A number with the digits that its ``margin`` of error leaves to it: down to its second one, three at least."""
    if not math.isfinite(value) or not math.isfinite(margin) or margin <= 0 or value == 0:
        return number(value)
    digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(margin)) + 2
    digits = min(max(digits, 3), 8)
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return number(float(f"{value:.{digits}g}"))
    return f"{value:,.{max(decimals, 0)}f}"


def amount(value: float | None, unit: str = "") -> str:
    """A number with its unit; ``x`` follows it directly, a word after a space; only a dash where there is none."""
    if value is None:
        return number(value)
    direct = unit in ("x", "×", "°") and math.isfinite(value)
    return f"{number(value)}{'' if direct else ' '}{printable(unit)}".rstrip()


def evidence_text(evidence: Evidence) -> str:
    """One observed number against its limit."""
    text = f"{printable(evidence.name)} {amount(evidence.value, evidence.unit)}"
    return text if evidence.limit is None else f"{text} (limit {amount(evidence.limit, evidence.unit)})"


def listed(names: Sequence[str], first: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(printable, names[:first]))
    return shown if len(names) <= first else f"{shown} and {len(names) - first:,} more"


def counted(count: int, one: str, many: str = "") -> str:
    """``1 rule``, ``2 rules``."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def advice_parts(advice: str) -> tuple[str, str, tuple[str, ...]]:
    """(what is usually the cause, what to do, what else to check) of a rule's advice; all of it to do, if it is not so.

    Advice goes: "Usually means ... Do this: ... Otherwise check (a) ...; (b) ...; (c) ..."
    """
    parts = re.fullmatch(
        r"Usually means (?:that )?(.*?)\s*Do this: (.*?)\s*Otherwise check (\(a\).*)", advice, re.DOTALL
    )
    if parts is None:
        return "", advice, ()
    checks = re.split(r"(?<=[;.?])\s+(?=\([a-z]\) )", parts[3])
    return _ended(parts[1]), _ended(parts[2]), tuple(_ended(check.rstrip("; ")) for check in checks)


def _ended(text: str) -> str:
    """Without the full stop at its end, but with the dots that stand for code."""
    return text.removesuffix(".") if not text.endswith("...") else text


def compared(treatment: Treatment) -> list[tuple[str, str, str]]:
    """(quantity, without or before the change, with it or after it) for every number that was compared."""
    rows = []
    for control, treated in zip_longest(treatment.control, treatment.treated):
        known = control or treated
        assert known is not None
        rows.append(
            (
                printable(known.name),
                amount(control.value, control.unit) if control else "-",
                amount(treated.value, treated.unit) if treated else "-",
            )
        )
    return rows


def columns(treatment: Treatment) -> tuple[str, str]:
    """What the two sides of a comparison are called. Only a control shows that a change helped."""
    return ("without", "with") if treatment.trial == "controlled" else ("before", "followed by")


def share(value: float) -> str:
    """A share of one, in per cent: two significant digits say enough (``0.83 %``, ``5.7 %``, ``129 %``)."""
    if not math.isfinite(value):
        return number(value)
    return f"{100 * value:,.0f} %" if abs(value) >= 0.1 else f"{100 * value:.2g} %"


def tried(treatment: Treatment) -> str:
    """How the change was tried: at which horizons, on what, with which effect, at which cost; or why uncontrolled."""
    if treatment.trial != "controlled":
        return f"no control: {printable(treatment.uncontrolled)}" if treatment.uncontrolled else ""
    parts = []
    if treatment.horizons:
        parts.append(f"compared after {' and '.join(f'{steps:,}' for steps in treatment.horizons)} steps")
    if treatment.batches:
        parts.append(f"on {counted(treatment.batches, 'batch', 'batches')} of {printable(treatment.judged_on)}")
    if treatment.effect is not None:
        needed = f" ({share(treatment.least_effect)} needed)" if treatment.least_effect is not None else ""
        parts.append(f"loss lower by {share(treatment.effect)}{needed}")
    if treatment.p_value is not None:
        parts.append(f"p = {number(treatment.p_value)}")
    parts.append(counted(treatment.extra_steps, "extra step"))
    return ", ".join(parts)


def lost(treatment: Treatment) -> list[tuple[str, str]]:
    """(what was done, why it lost) for every other change of the same trial."""
    return [(printable(rival.change.summary), printable(rival.reason)) for rival in treatment.rivals]
