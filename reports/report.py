"""``Report``: everything at the end of a run, computed once. The renderers beside it only show it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Self

import numpy as np

from trainmedic.diagnose import Finding, Rule, Severity, number_to_json
from trainmedic.diagnose.judge import NotChecked, judge
from trainmedic.history import History
from trainmedic.remedies.change import Change, Rival, Treatment

VERSION = 1
"""Version of the JSON document. Within a version fields are only ever added."""


@dataclass(frozen=True)
class Report:
    """What was seen, found and changed in one run, and what could not be checked.

    - ``findings``: roots first, each followed by what it explains.
    - ``checked``: codes of the rules that could judge this history; the others are in ``not_checked`` with a reason.
    - ``treatments``: what was changed, in order.
    - ``advised``: (id of the finding, change) that would be made if ``fix`` allowed it.
    - ``refused``: (remedy, reason) for changes that could not be made safely.
    - ``cost``: what watching took: ``seconds``, ``share`` (of the time of all steps, 0 to 1), ``measured`` and
      ``steps`` (numbers of steps). Empty for a log that was only read.
    - ``notes``: errors inside the medic and other remarks, each told once.
    - ``path`` and ``format``: where it comes from; format is ``"live"`` for a run that was watched by this process,
      else the name of the reader. Of several runs in one file the path ends in ``#`` and what the run is called.
    - ``file`` and ``lines``: the file that the findings point at, and the line of onset by id of the finding, where the
      format has lines.
    """

    history: History
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    checked: tuple[str, ...] = ()
    treatments: tuple[Treatment, ...] = ()
    advised: tuple[tuple[str, Change], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: str = ""
    format: str = "live"
    file: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_history(
        cls,
        history: History,
        rules: Sequence[Rule] | None = None,
        *,
        path: str = "",
        format: str = "live",
        treatments: Iterable[Treatment] = (),
        advised: Iterable[tuple[str, Change]] = (),
        refused: Iterable[tuple[str, str]] = (),
        cost: Mapping[str, float] | None = None,
        notes: Iterable[str] = (),
    ) -> Self:
        """Judge ``history`` by ``rules`` (all of them, with their defaults, unless given) and put it all together."""
        diagnosis = judge(history, rules)
        return cls(
            history=history,
            findings=diagnosis.findings,
            not_checked=diagnosis.not_checked,
            checked=diagnosis.checked,
            treatments=tuple(treatments),
            advised=tuple(advised),
            refused=tuple(refused),
            cost=dict(cost or {}),
            notes=(*notes, *diagnosis.errors, *diagnosis.suppressed),
            path=path,
            format=format,
        )

    @classmethod
    def from_dict(cls, run: Mapping[str, Any], history: History) -> Self:
        """The report that ``run``, an entry of ``runs`` in the JSON document, was made from.

        Fields that are missing are left empty and unknown ones are ignored; ``ValueError`` where one is malformed.
        """
        try:
            return cls(
                history=history,
                findings=tuple(Finding.model_validate(entry) for entry in run.get("findings", ())),
                not_checked=tuple(
                    NotChecked(str(entry["code"]), str(entry["name"]), str(entry["reason"]))
                    for entry in run.get("not_checked", ())
                ),
                checked=tuple(map(str, run.get("checked", ()))),
                treatments=tuple(Treatment.model_validate(entry) for entry in run.get("treatments", ())),
                advised=tuple(
                    (str(entry["finding"]), Change.model_validate(entry["change"])) for entry in run.get("advised", ())
                ),
                refused=tuple((str(entry["remedy"]), str(entry["reason"])) for entry in run.get("refused", ())),
                cost={str(key): float(value) for key, value in run.get("cost", {}).items()},
                notes=tuple(map(str, run.get("notes", ()))),
                path=str(run.get("path", "")),
                format=str(run.get("format", "live")),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a report of trainmedic: {type(error).__name__}: {error}") from error

    def of(self, history: History) -> Self:
        """This report with another record of the same run, such as a copy."""
        return replace(self, history=history)

    @property
    def severity(self) -> Severity | None:
        """The worst severity among the findings; ``None`` where nothing was found."""
        return max((finding.severity for finding in self.findings), key=lambda one: one.rank, default=None)

    @property
    def roots(self) -> tuple[Finding, ...]:
        """The findings that no other finding explains."""
        by_id = {finding.id: finding for finding in self.findings}

        def has_cause(finding: Finding) -> bool:
            cause, seen = by_id.get(finding.explained_by or ""), {finding.id}
            while cause is not None and cause.id not in seen:
                seen.add(cause.id)
                cause = by_id.get(cause.explained_by or "")
            return finding.explained_by in by_id and cause is None  # a circle (from a file) has no root: show all of it

        return tuple(finding for finding in self.findings if not has_cause(finding))

    def explained_by(self, finding: Finding) -> tuple[Finding, ...]:
        """What ``finding`` explains directly."""
        return tuple(other for other in self.findings if other.explained_by == finding.id != other.id)

    def run_dict(self) -> dict[str, Any]:
        """This run as an entry of ``runs`` in the JSON document."""
        return {
            "path": self.path,
            "format": self.format,
            "first_step": self.history.first_step,
            "last_step": self.history.last_step,
            "series": self.history.names(),
            "names": plain(self.history.facts.get("names", {})),
            "file": self.file or self.path,
            "findings": [
                {**plain(finding.model_dump(mode="json")), "line": self.lines.get(finding.id)}
                for finding in self.findings
            ],
            "checked": list(self.checked),
            "not_checked": [
                {"code": entry.code, "name": entry.name, "reason": entry.reason} for entry in self.not_checked
            ],
            "treatments": [_treatment_to_dict(treatment) for treatment in self.treatments],
            "advised": [{"finding": finding, "change": plain(dict(change))} for finding, change in self.advised],
            "refused": [{"remedy": remedy, "reason": reason} for remedy, reason in self.refused],
            "cost": plain(self.cost),
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of this one run."""
        return document([self])

    def to_json(self) -> str:
        """The JSON document of this one run, as text. Always valid JSON."""
        return dumps(self.to_dict())

    def to_text(self, width: int | None = None, color: bool = False) -> str:
        """The report as the terminal shows it, ``width`` columns wide (100 unless given)."""
        from trainmedic.reports.terminal import render

        return render(self, width=width, color=color)

    def to_html(self) -> str:
        """The report as one HTML file that needs nothing else: curves, the map of the layers, findings, treatments."""
        from trainmedic.reports.page import render

        return render(self)

    def to_markdown(self) -> str:
        """The report as Markdown for pull requests and notes, within what a comment on GitHub may hold."""
        from trainmedic.reports.markdown import render

        return render(self)


def document(reports: Iterable[Report], unreadable: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """The JSON document of several runs; ``unreadable`` holds (path, reason) of what could not be judged."""
    from trainmedic import __version__

    return {
        "version": VERSION,
        "tool": {"name": "trainmedic", "version": __version__},
        "runs": [report.run_dict() for report in reports],
        "unreadable": [{"path": path, "reason": reason} for path, reason in unreadable],
    }


def dumps(content: Mapping[str, Any]) -> str:
    """``content`` as JSON text in ASCII, so that no control character of a log reaches a terminal through it."""
    return json.dumps(content, indent=1, allow_nan=False)


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: non-finite numbers and unknown objects become strings."""
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float):
        return number_to_json(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Iterable):
        return [plain(entry) for entry in value]
    return str(value)


def _treatment_to_dict(treatment: Treatment | Rival) -> dict[str, Any]:
    # dict() keeps `before` and `after` as they are: pydantic would refuse an object that it cannot serialise
    content: dict[str, Any] = {}
    for key, value in treatment:
        if key == "change":
            content[key] = plain(dict(value))
        elif key == "rivals":
            content[key] = [_treatment_to_dict(rival) for rival in value]
        elif key in ("control", "treated"):
            content[key] = [evidence.model_dump(mode="json") for evidence in value]
        else:
            content[key] = plain(value)
    return content
