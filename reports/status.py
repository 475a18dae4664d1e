"""The state of a run that goes on, in one line."""

from collections.abc import Sequence

from trainmedic.diagnose import Finding
from trainmedic.history import History
from trainmedic.reports.sparkline import sparkline
from trainmedic.reports.wording import number, printable

SPARKS = 12
SECONDS = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def status(
    history: History,
    findings: Sequence[Finding],
    *,
    step: int,
    total_steps: int | None = None,
    steps_per_second: float = 0.0,
    doing: str = "",
    width: int = 80,
) -> str:
    """Step, loss, speed and what is found, as far as they fit into ``width`` columns; what matters least goes first.

    ``findings``: those at the root, in order. ``doing``: what the medic does right now, such as a change on trial.
    """
    done = f"step {step:,}" + (f"/{total_steps:,}" if total_steps else "")
    parts = [("medic", 9), (done, 8), (_found(findings), 9), (printable(doing), 7)]
    parts[2:2] = [(_loss(history), 6), (_curve(history), 2), (_speed(steps_per_second), 1)]
    parts[5:5] = [(_left(step, total_steps, steps_per_second), 3)]
    shown = [(text, weight) for text, weight in parts if text]
    while len(shown) > 1 and len("  ".join(text for text, _ in shown)) > width:
        shown.remove(min(shown, key=lambda part: part[1]))
    return "  ".join(text for text, _ in shown)[:width]


def duration(seconds: float) -> str:
    """``3 h 20 min``, ``45 s``: the two largest units."""
    parts = []
    rest = round(seconds)
    for name, length in SECONDS:
        count, rest = divmod(rest, length)
        if count:
            parts.append(f"{count} {name}{'s' if name == 'day' and count > 1 else ''}")
    return " ".join(parts[:2]) or "0 s"


def _loss(history: History) -> str:
    if "train/loss" not in history:
        return ""
    return f"loss {number(float(history.series('train/loss').values[-1]))}"


def _curve(history: History) -> str:
    if "train/loss" not in history:
        return ""
    steps, values = history.series("train/loss")
    return sparkline(values, SPARKS, steps) if len(values) >= SPARKS else ""


def _speed(steps_per_second: float) -> str:
    if steps_per_second <= 0:
        return ""
    if steps_per_second < 1:
        return f"{number(1 / steps_per_second)} s/step"
    return f"{number(round(steps_per_second, 1) if steps_per_second < 100 else round(steps_per_second))} steps/s"


def _left(step: int, total_steps: int | None, steps_per_second: float) -> str:
    if not total_steps or steps_per_second <= 0 or step >= total_steps:
        return ""
    return f"{duration((total_steps - step) / steps_per_second)} left"


def _found(findings: Sequence[Finding]) -> str:
    if not findings:
        return "nothing wrong found"
    first = findings[0]
    more = f" and {len(findings) - 1:,} more" if len(findings) > 1 else ""
    return f"{first.severity.value}: {first.code} {printable(first.name)} since step {first.step:,}{more}"
