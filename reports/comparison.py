"""``Comparison``: several runs side by side, computed once. The renderers beside it only show it."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainmedic.diagnose import Finding
from trainmedic.errors import UsageError, nearest
from trainmedic.history import History
from trainmedic.reports.difference import ALPHA, Difference, between_groups, difference, mean_curve
from trainmedic.reports.report import VERSION, Report, plain

MORE = re.compile(
    r"(?<![a-z])(?:acc|accuracy|top[-_@ ]?\d+|f1|fbeta|auc|auroc|auprc|ap|m?ap(?:50|75)?|precision|recall|sensitivity"
    r"|specificity|m?iou|dice|jaccard|bleu|rouge\w*|meteor|psnr|ssim|r2|score|mcc|kappa|ndcg|mrr|correct"
    r"|rewards?|returns?|success(?:_rate)?|win_rate|exact_match|em)(?![a-z])",
    re.IGNORECASE,
)
LESS = re.compile(
    r"(?<![a-z])(?:loss|losses|error|err|nll|nelbo|perplexity|ppl|mse|mae|rmse|mape|wer|cer|fid|bp[bcd]|kl|regret"
    r"|cross_?entropy|bce|ce|log_?loss|hinge|brier|ece)(?![a-z])",
    re.IGNORECASE,
)
"""Names of quantities, more of which is better, or less. Where a name says both (``score_loss``) it is a loss."""

PREFERRED = ("validation/loss", "validation/accuracy", "train/loss", "train/accuracy")
RUN_FACTS = frozenset(
    (
        *("names", "notes", "source", "lines", "started", "ended", "restarts", "time", "run", "tool", "summary"),
        *("monitor", "mode", "dead_after", "suppressed", "unused"),
    )
)
"""Facts that say how a run was recorded, not how it was set up."""
MOST_METRICS = 20
MOST_SETTINGS = 60
LONGEST = 80
OPTIONS_HIDDEN = frozenset({"foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"})
"""Options that change how an optimizer computes, not what, or that its name says already."""


@dataclass(frozen=True)
class Entry:
    """One run among those compared: its letter, a short name, and its report.

    Or a group of runs that repeat one setting: ``members`` are their reports, and ``report`` holds their mean curves,
    what they were all set to, and the worst finding of each illness.
    """

    label: str
    name: str
    report: Report
    members: tuple[Report, ...] = ()

    @property
    def history(self) -> History:
        return self.report.history


@dataclass(frozen=True)
class Standing:
    """One run by one metric.

    ``end`` is the mean of the last fifth of its values, ``best`` its best value and ``best_step`` where it was;
    ``against`` how it ended against the best run, ``None`` for that one itself.
    """

    label: str
    end: float
    best: float
    best_step: int
    last_step: int
    against: Difference | None = None


@dataclass(frozen=True)
class Metric:
    """All runs that have one metric, the best first. ``better`` is 1 where more is better, -1 where less is."""

    name: str
    better: int
    standings: tuple[Standing, ...]

    @property
    def best(self) -> Standing:
        return self.standings[0]

    @property
    def comparable(self) -> bool:
        """Whether any two of the runs could be held against each other."""
        return any(s.against is not None and s.against.count for s in self.standings)


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    - ``metric``: what the verdict is about; ``None`` where the runs share no metric whose better side is known.
    - ``metrics``: all such metrics, that one first.
    - ``settings``: (name, label -> value as text) of what differs; a run without a value is left out.
    - ``findings``: (code, name, label -> worst finding of that kind).
    - ``notes``: what has to be known to read it right.
    """

    entries: tuple[Entry, ...]
    metrics: tuple[Metric, ...]
    settings: tuple[tuple[str, Mapping[str, str]], ...]
    findings: tuple[tuple[str, str, Mapping[str, Finding]], ...]
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric | None:
        return self.metrics[0] if self.metrics else None

    @property
    def grouped(self) -> bool:
        """Whether groups of runs are compared, by how their runs differ."""
        return any(entry.members for entry in self.entries)

    def entry(self, label: str) -> Entry:
        """The run with this letter."""
        return next(entry for entry in self.entries if entry.label == label)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as a JSON document; numbers that are not finite are strings, as in a report."""
        from trainmedic import __version__
        from trainmedic.reports.conclusion import conclusion

        return {
            "version": VERSION,
            "tool": {"name": "trainmedic", "version": __version__},
            "verdict": conclusion(self),
            "alpha": ALPHA,
            "runs": [
                {
                    "label": entry.label,
                    "path": entry.report.path,
                    "format": entry.report.format,
                    "members": [run.path for run in entry.members],
                    "first_step": entry.history.first_step,
                    "last_step": entry.history.last_step,
                    "findings": [plain(finding.model_dump(mode="json")) for finding in entry.report.findings],
                }
                for entry in self.entries
            ],
            "metrics": [_metric_to_dict(metric) for metric in self.metrics],
            "settings": [{"name": name, "values": dict(values)} for name, values in self.settings],
            "notes": list(self.notes),
        }


def compare(
    reports: Sequence[Report], metric: str | None = None, groups: Mapping[str, Sequence[Report]] | None = None
) -> Comparison:
    """Hold runs against each other, by ``metric`` or by what they share (validation loss first).

    ``groups``: runs that repeat one setting with several seeds, by name. Then the groups are compared, ``reports``
    being groups of one, and noise is how the runs of a group differ.

    Raises:
        UsageError: for fewer than two runs, or a ``metric`` that no two of them have.

    """
    named = groups or {}
    if len(reports) + len(named) < 2:
        raise UsageError(f"a comparison needs at least two {'groups' if groups else 'runs'}")
    entries = _entries(reports, named)
    notes: list[str] = []
    alike = _same_clock(entries, notes)
    names = _order(_shared(alike), metric, entries, notes)
    metrics = [_ranked(name, _direction(name, metric, notes), alike) for name in names[:MOST_METRICS]]
    if len(names) > MOST_METRICS:
        notes.append(f"{len(names) - MOST_METRICS:,} more metrics are not shown")
    settings = _settings(entries)
    if not groups and not settings and len(entries) > 2:
        notes.append(
            "nothing is known to differ in how these runs were set up: between repeats, all that differs is chance"
        )
    return Comparison(entries, tuple(metrics), settings, _findings(entries), tuple(notes))


def better_side(name: str) -> int:
    """1 where the name is of a quantity that should grow, -1 where it should fall, 0 where that is not known."""
    last = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return -1 if LESS.search(last) else 1 if MORE.search(last) else 0


def label(place: int) -> str:
    """A, B, ... Z, AA, AB ..."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _entries(reports: Sequence[Report], groups: Mapping[str, Sequence[Report]]) -> tuple[Entry, ...]:
    paths = [_place(report) for report in reports]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths and _share_a_root(paths) else ""
    short = [os.path.relpath(path, shared) if shared else path for path in paths]
    named = [
        f"{name} run {report.history.facts['run']}" if short.count(name) > 1 and "run" in report.history.facts else name
        for name, report in zip(short, reports, strict=True)
    ]
    grouped = [Entry(label(i), *_group(name, runs), tuple(runs)) for i, (name, runs) in enumerate(groups.items())]
    single = [
        Entry(label(len(grouped) + i), name, report, (report,) if groups else ())
        for i, (name, report) in enumerate(zip(named, reports, strict=True))
    ]
    return (*grouped, *single)


def _group(name: str, runs: Sequence[Report]) -> tuple[str, Report]:
    """A group's name, and what its runs have in common as the report of one."""
    from trainmedic.reports.wording import counted

    history = History()
    for series in runs[0].history.names():
        if all(series in run.history for run in runs):
            steps, values = mean_curve([run.history.series(series) for run in runs])
            history.add_series(series, steps, values)
    for key, value in runs[0].history.facts.items():
        if all(run.history.facts.get(key) == value for run in runs):
            history.facts[key] = value
    worst: dict[str, Finding] = {}
    for finding in (finding for run in runs for finding in run.findings):
        if finding.code not in worst or finding.severity.rank > worst[finding.code].severity.rank:
            worst[finding.code] = finding.model_copy(update={"explained_by": None})
    checked = set.intersection(*(set(run.checked) for run in runs))
    report = Report(history, tuple(worst.values()), checked=tuple(sorted(checked)), path=name, format=runs[0].format)
    return f"{name} ({counted(len(runs), 'run')})", report


def _place(report: Report) -> str:
    """Where a run lies: its directory, where the file has a name that no person gave it."""
    folder, file = os.path.split(report.path)
    return (folder if folder and "tfevents" in file else report.path) or "this run"


def _share_a_root(paths: Sequence[str]) -> bool:
    kinds = {os.path.isabs(path) for path in paths}
    return len(kinds) == 1 and all(path != "this run" and "://" not in path for path in paths)


def _same_clock(entries: Sequence[Entry], notes: list[str]) -> tuple[Entry, ...]:
    """The runs that count the same thing as most do; the others cannot be held against them step by step."""
    clocks = [str(entry.history.facts.get("time", "step")) for entry in entries]
    usual = max(dict.fromkeys(clocks), key=clocks.count)
    for entry, clock in zip(entries, clocks, strict=True):
        if clock != usual:
            notes.append(f"{entry.label} counts {clock}s, others {usual}s: its curves are not compared with theirs")
    return tuple(entry for entry, clock in zip(entries, clocks, strict=True) if clock == usual)


def _shared(entries: Sequence[Entry]) -> list[str]:
    """Names of series that at least two runs have, in order of their first run."""
    seen: dict[str, int] = {}
    for entry in entries:
        for name in entry.history.names():
            seen[name] = seen.get(name, 0) + 1
    return [name for name, count in seen.items() if count > 1]


def _order(shared: Sequence[str], metric: str | None, entries: Sequence[Entry], notes: list[str]) -> list[str]:
    """The metrics to compare, the one that decides first."""
    if metric is not None and metric not in shared:
        known = {name for entry in entries for name in entry.history.names()}
        raise UsageError(
            f"no two of the runs have a series {metric!r} by the same clock{nearest(metric, sorted(known))}"
        )
    names = [name for name in shared if better_side(name)]
    monitors = {str(entry.history.facts.get("monitor", "")) for entry in entries}
    first = [metric, *(sorted(monitors) if len(monitors) == 1 else ()), *PREFERRED]
    losses = {str(entry.history.facts["loss"]) for entry in entries if "loss" in entry.history.facts}
    if len(losses) > 1 and metric is None:
        notes.append(f"the runs have different losses ({', '.join(sorted(losses))}): their values say little")
        first = [*(name for name in names if better_side(name) > 0), *first]
    by_kind = sorted(names, key=lambda name: (not name.startswith("validation/"), not name.startswith("train/")))
    return [name for name in dict.fromkeys([*first, *by_kind]) if name is not None and name in shared]


def _direction(name: str, metric: str | None, notes: list[str]) -> int:
    side = better_side(name)
    if not side and name == metric:
        notes.append(f"whether more or less of {name} is better is not known: less is taken to be")
    return side or -1


def _ranked(name: str, better: int, entries: Sequence[Entry]) -> Metric:
    """Runs by one metric. The best is the one that no other one beats, of those that ended best."""
    having = [entry for entry in entries if name in entry.history]
    pairs = len(having) * (len(having) - 1) // 2
    ended = sorted((_standing(entry, name, better) for entry in having), key=lambda s: _badness(s.end, better))
    best, tried = ended[0].label, set[str]()
    by_label = {entry.label: entry for entry in having}
    while True:
        tried.add(best)
        held = {one: _held(by_label[one], by_label[best], name, better, pairs) for one in by_label if one != best}
        beaten_by = [one for one, found in held.items() if found.verdict > 0 and one not in tried]
        if not beaten_by:
            break
        best = max(beaten_by, key=lambda one: held[one].advantage)
    first = next(standing for standing in ended if standing.label == best)
    others = [
        Standing(s.label, s.end, s.best, s.best_step, s.last_step, held[s.label]) for s in ended if s.label != best
    ]
    others.sort(key=lambda s: (not s.against.count, -s.against.advantage) if s.against else (True, 0.0))
    return Metric(name, better, (first, *others))


def _held(one: Entry, best: Entry, name: str, better: int, pairs: int) -> Difference:
    if one.members and best.members:
        ours, theirs = ([run.history.series(name) for run in entry.members] for entry in (one, best))
        return between_groups(ours, theirs, better, pairs)
    return difference(one.history.series(name), best.history.series(name), better, pairs)


def _standing(entry: Entry, name: str, better: int) -> Standing:
    steps, values = entry.history.series(name)
    finite = np.flatnonzero(np.isfinite(values))
    if not len(finite):
        return Standing(entry.label, math.nan, math.nan, int(steps[0]), int(steps[-1]))
    at = int(finite[np.argmax(better * values[finite])])
    end = values[-max(1, math.ceil(len(values) / 5)) :]
    level = float(end[np.isfinite(end)].mean()) if math.isfinite(values[-1]) else math.nan
    return Standing(entry.label, level, float(values[at]), int(steps[at]), int(steps[-1]))


def _badness(end: float, better: int) -> float:
    return -better * end if math.isfinite(end) else math.inf


def _settings(entries: Sequence[Entry]) -> tuple[tuple[str, Mapping[str, str]], ...]:
    """What is known to differ between at least two runs, or is known of some only while others of its kind are."""
    flat = [dict(_flat(_given(entry.history))) for entry in entries]
    names = dict.fromkeys(name for facts in flat for name in facts)
    rows = []
    for name in names:
        values = {entry.label: facts[name] for entry, facts in zip(entries, flat, strict=True) if name in facts}
        if len(values) > 1 and len(set(values.values())) > 1:
            rows.append((name, values))
    return tuple(rows[:MOST_SETTINGS])


def _given(history: History) -> dict[str, Any]:
    """How a run was set up: its facts, and what its curve of the learning rate tells."""
    given = {key: value for key, value in history.facts.items() if key not in RUN_FACTS}
    options = given.pop("optimizer_options", None)
    if isinstance(options, Mapping):
        given = {**given, **{key: value for key, value in options.items() if key not in OPTIONS_HIDDEN}}
        given.pop("initial_lr", None)
    if "optimizer/learning_rate" in history:
        rates = history.series("optimizer/learning_rate").values
        rates = rates[np.isfinite(rates)]
        if len(rates):
            given["learning rate, highest"] = float(rates.max())
            given["learning rate, last"] = float(rates[-1])
    given["steps"] = history.last_step - history.first_step + 1
    layers = [layer for layer in history.architecture.values() if layer.kind != "parameter"]
    if layers:
        given["layers"] = len(layers)
    return given


def _flat(given: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterable[tuple[str, str]]:
    from trainmedic.reports.wording import number

    for key, value in given.items():
        name = f"{prefix}{key}"[:LONGEST]
        if isinstance(value, Mapping) and depth < 4:
            yield from _flat(value, f"{name}.", depth + 1)
        elif isinstance(value, float):
            yield name, f"{value:.6g}" if math.isfinite(value) else number(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield name, ", ".join(map(str, value))[:LONGEST]
        else:
            yield (
                name,
                (f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))[:LONGEST],
            )


def _findings(entries: Sequence[Entry]) -> tuple[tuple[str, str, Mapping[str, Finding]], ...]:
    """Each illness that any of the runs has: of each run the worst finding of it. Worst illnesses first."""
    rows: dict[tuple[str, str], dict[str, Finding]] = {}
    for entry in entries:
        for finding in entry.report.findings:
            row = rows.setdefault((finding.code, finding.name), {})
            known = row.get(entry.label)
            if known is None or finding.severity.rank > known.severity.rank:
                row[entry.label] = finding
    worst = sorted(rows.items(), key=lambda row: (-max(f.severity.rank for f in row[1].values()), row[0]))
    return tuple((code, name, found) for (code, name), found in worst)


def _metric_to_dict(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "better": "higher" if metric.better > 0 else "lower",
        "standings": [
            plain({key: value for key, value in vars(standing).items() if key != "against"})
            | {"against_best": plain(vars(standing.against)) if standing.against else None}
            for standing in metric.standings
        ],
    }
