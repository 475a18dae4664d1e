"""What a comparison comes to, in one sentence; and how its numbers are written."""

import math

from trainmedic.reports.comparison import Comparison, Metric, Standing
from trainmedic.reports.difference import ALPHA, WITHIN_NOISE, Difference
from trainmedic.reports.wording import listed, measured, number, printable, share


def reading(comparison: Comparison) -> list[str]:
    """What has to be known to read it right."""
    if comparison.metric is None or not comparison.metric.comparable:
        return list(comparison.notes)
    often = f"equal ones are called different in {share(ALPHA)} of cases, at most"
    noise = f"noise is how the runs of a group differ ({often})"
    if not comparison.grouped:
        noise = f"noise is that within these runs ({often}); what another seed would give is not in it: train each "
        noise += "setting with several, and compare them by --group NAME=PATH"
    return [*comparison.notes, noise]


def conclusion(comparison: Comparison) -> str:
    """Which run is better, by how much, and since when; or that there is no difference beyond noise."""
    metric = comparison.metric
    if metric is None:
        return "cannot be compared: the runs share no metric whose better side is known (name one: --metric NAME)"
    name, best = printable(metric.name), metric.best
    others = metric.standings[1:]
    if not metric.comparable:
        reason = next((s.against.reason for s in others if s.against), "")
        return f"cannot be compared by {name}: {reason}"
    if len(others) == 1:
        found = others[0].against
        return _of_two(name, best, others[0], metric) + (_elsewhere(comparison) if found and not found.verdict else "")
    beaten = [s.label for s in others if s.against and s.against.verdict < 0]
    equal = [s.label for s in others if s.against and s.against.count and not s.against.verdict]
    if not beaten:
        return f"no run is better than {best.label} in {name} beyond noise, nor worse"
    also = f"; no difference beyond noise to {listed(equal, 8)}" if equal else ""
    return f"{best.label} is better in {name} than {listed(beaten, 8)}, beyond noise{also}"


def _of_two(name: str, best: Standing, other: Standing, metric: Metric) -> str:
    found = other.against
    assert found is not None
    a, b = levels(found)
    steps = f"over steps {found.first:,} to {found.last:,}"
    if not found.verdict:
        if not math.isfinite(found.margin):
            return f"cannot tell which is better in {name}: {found.reason} ({best.label} {b}, {other.label} {a})"
        same = "the same to three digits" if found.reason != WITHIN_NOISE else "no difference beyond noise"
        margin = f"± {number(_two_digits(found.margin))}"
        return f"{same} in {name}: {best.label} {b}, {other.label} {a}, {margin}, {steps}"
    if not math.isfinite(found.advantage):
        return f"{best.label} is better in {name}: {other.label} is not finite since step {found.since or 0:,}"
    side = "higher" if metric.better > 0 else "lower"
    text = f"{best.label} is better in {name}: {b} against {a}, {side} by {gap(found)}, {since(found)}"
    return text + (f"; it came to {other.label}'s last level by {earlier(found)}" if earlier(found) else "")


def _elsewhere(comparison: Comparison) -> str:
    """What other metrics say, where the first one says nothing of two runs."""
    told = [
        f"{metric.best.label} is better in {printable(metric.name)}"
        for metric in comparison.metrics[1:]
        if metric.standings[1].against is not None and metric.standings[1].against.verdict
    ]
    return f"; but {listed(told, 2)}" if told else ""


def gap(found: Difference) -> str:
    """``0.0251 ± 0.004 (5.7 %)``: by how much the better one is, what that could be by noise, and its share."""
    if not math.isfinite(found.advantage):
        return "not finite"
    by = measured(abs(found.advantage), found.margin)
    margin = f" ± {number(_two_digits(found.margin))}" if math.isfinite(found.margin) and found.margin else ""
    worse = found.a if found.verdict < 0 else found.b
    part = abs(found.advantage / worse) if worse else math.nan
    return f"{by}{margin}" + (f" ({share(part)})" if math.isfinite(part) and part < 10 else "")


def since(found: Difference) -> str:
    """``since about step 1,200``, or that it was so all along."""
    if found.since is None:
        return ""
    all_along = found.since - found.first <= 0.02 * (found.last - found.first)
    return "all along" if all_along else f"since about step {found.since:,}"


def earlier(found: Difference) -> str:
    """``step 800 (43 % earlier)``: when the better one had come to where the other ended; else empty."""
    if found.reached is None or found.last <= found.first:
        return ""
    saved = 1 - (found.reached - found.first) / (found.last - found.first)
    return f"step {found.reached:,} ({share(saved)} earlier)"


def levels(found: Difference) -> tuple[str, str]:
    """Both levels, with the digits that their difference calls for."""
    unit = found.margin if math.isfinite(found.margin) and found.margin else abs(found.advantage)
    return measured(found.a, unit), measured(found.b, unit)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}") if math.isfinite(value) else value


def against(standing: Standing) -> str:
    """How a run ended against the best one."""
    found = standing.against
    if found is None:
        return "-"
    if not found.verdict:
        return found.reason if found.reason != WITHIN_NOISE else f"no difference beyond noise ({gap(found)})"
    if not math.isfinite(found.advantage):
        return f"not finite since step {found.since or 0:,}"
    text = f"{'worse' if found.verdict < 0 else 'better'} by {gap(found)}, {since(found)}"
    return text + (f"; the best was there by {earlier(found)}" if earlier(found) else "")


def short(standing: Standing) -> str:
    """The same in a word or two."""
    found = standing.against
    if found is None:
        return "best"
    words = {-1: "worse", 0: "within noise" if found.reason == WITHIN_NOISE else "undecided", 1: "better"}
    return "the same" if found.reason.startswith("the same") else words[found.verdict]
