"""What a comparison comes to, in one sentence; and how its numbers are written."""

import math

from trainmedic.reports.comparison import Comparison, Metric, Standing
from trainmedic.reports.difference import ALPHA, Difference
from trainmedic.reports.wording import listed, measured, number, printable, share

SEEDS = (
    f"noise is that within these runs (equal ones are called different in {share(ALPHA)} of cases, at most); "
    "what another seed would give is not in it: to be sure, repeat with several"
)


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
        return _of_two(name, best, others[0], metric)
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
        could_be = f", ± {number(_two_digits(found.margin))}" if math.isfinite(found.margin) else ""
        if not math.isfinite(found.margin):
            return f"cannot tell which is better in {name}: {found.reason} ({best.label} {b}, {other.label} {a})"
        same = "the same to three digits" if found.reason.startswith("the same") else "no difference beyond noise"
        return f"{same} in {name}: {best.label} {b}, {other.label} {a}{could_be}, {steps}"
    if not math.isfinite(found.advantage):
        return f"{best.label} is better in {name}: {other.label} is not finite since step {found.since or 0:,}"
    side = "higher" if metric.better > 0 else "lower"
    return f"{best.label} is better in {name}: {b} against {a}, {side} by {gap(found)}, {since(found)}"


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
    whole = found.last - found.first
    all_along = found.since - found.first <= 0.02 * whole
    text = "all along" if all_along else f"since about step {found.since:,}"
    if found.reached is not None and whole > 0:
        earlier = 1 - (found.reached - found.first) / whole
        text += f", at the other's last level by step {found.reached:,} ({share(earlier)} earlier)"
    return text


def levels(found: Difference) -> tuple[str, str]:
    """Both levels, with the digits that their difference calls for."""
    unit = found.margin if math.isfinite(found.margin) and found.margin else abs(found.advantage)
    return measured(found.a, unit), measured(found.b, unit)


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}") if math.isfinite(value) else value
